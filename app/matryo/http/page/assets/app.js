// The frame of the page: which server, which model, which tab, and whether the server answers.

import { Api, NO_KEY, isKey } from "./api.js";
import { copyButton, fill, h } from "./dom.js";

const READY_MS = 3000; // between two looks at /readyz
const TABS = ["now", "try", "choose", "map"];
const KEY = "matryo.key";
const METRICS_KEY = "matryo.metrics-key";

const $ = (id) => document.getElementById(id);
const server = document.body.dataset; // version, keys, metrics: what the page needs before a key

const api = new Api(new URL(".", document.baseURI).href, showWait);
const started = new Set();
const callbacks = [];
let models = [];
let chosen = null;
let isConnected = false;
let answers = true; // whether the server answered last time

const app = {
  api,
  /** `keys`: "yes" or "no"; `metrics`: "here", "key" or "elsewhere"; `version`. */
  server,
  /** Facts of every model, the default first. */
  models: () => models,
  /** Facts of the chosen model. */
  model: () => chosen,
  /** Call `callback(facts)` whenever another model is chosen. */
  onModel: (callback) => callbacks.push(callback),
  /** Have a screen reader say `text`. */
  announce,
  /** Show what went wrong at the top of a panel, until the next call; null takes it away. */
  showError,
  /** Keep the key of the metrics in this tab of the browser. */
  keepMetricsKey,
};

function announce(text) {
  $("said").textContent = "";
  requestAnimationFrame(() => ($("said").textContent = text));
}

function showError(panel, error) {
  panel.querySelector(":scope > .fault")?.remove();
  if (!error || error.name === "AbortError") return;
  if (error.status === 401) return askForKey(error.message);
  panel.prepend(h("p", { class: "fault", role: "alert" }, error.message));
  // The server may have started anew between two looks, with another model.
  if ([404, 412].includes(error.status)) refresh();
  if (!error.status && error.name !== "ApiError") console.error(error);
}

/** The tab's own memory, of which a browser may let the page have none. */
function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

/** Keep a value in it; an empty one takes the name away. */
function keep(name, value) {
  try {
    if (value) sessionStorage.setItem(name, value);
    else sessionStorage.removeItem(name);
  } catch {
    // The value then lasts until the page is loaded again.
  }
}

function keepMetricsKey(key) {
  api.metricsKey = key;
  keep(METRICS_KEY, key);
}

// --- the banner, and whether the server is ready

let countdown;

function showWait(seconds, error) {
  if (seconds === null) return showBanner(null);
  const end = performance.now() + seconds * 1000;
  const tell = () => {
    const left = Math.max(0, Math.ceil((end - performance.now()) / 1000));
    $("banner-left").textContent = left ? `Trying again in ${left} s.` : "Trying again.";
  };
  // The countdown is not announced each second.
  showBanner(error.message, h("span", { id: "banner-left", "aria-hidden": "true" }));
  tell();
  countdown = setInterval(tell, 250);
}

function showBanner(...parts) {
  clearInterval(countdown);
  const isShown = parts[0] != null;
  $("banner").hidden = !isShown;
  fill($("banner"), isShown ? parts.flatMap((part) => [part, " "]) : []);
}

function showReady(state, text, title) {
  const line = $("ready");
  if (line.dataset.state === state && $("ready-text").textContent === text) return;
  line.dataset.state = state;
  line.title = title ?? "";
  $("ready-text").textContent = text;
}

async function watch() {
  // A fault in one look must not end the looks.
  if (!document.hidden) await look().catch(console.error);
  setTimeout(watch, READY_MS);
}

async function look() {
  try {
    const { ready, reason } = await api.ready();
    if (ready) showReady("ok", "Ready");
    else showReady("wait", `Not ready: ${reason}`);
    if (!answers) {
      answers = true;
      showBanner(null);
      announce("The server answers again");
      if (isConnected) await refresh();
    }
    if (!isConnected && !isConnecting && $("keys").hidden) await connect();
  } catch (error) {
    if (error.status !== 0) throw error;
    showReady("gone", "No answer");
    if (answers) showBanner("The server does not answer. The page goes on once it does.");
    answers = false;
  }
}

// --- models

let isConnecting = false;

async function connect() {
  isConnecting = true;
  try {
    models = await api.models();
  } catch (error) {
    if (error.status === 401) askForKey(api.key ? error.message : null);
    else if (error.status) showBanner(error.message);
    return false;
  } finally {
    isConnecting = false;
  }
  if (!models.length) {
    askForKey("This key may use no model of the server. Use another key.");
    return false;
  }
  isConnected = true;
  $("keys").hidden = true;
  $("forget").hidden = !api.key;
  showBanner(null);
  showModels(chosen?.id);
  $("facts").hidden = $("tabs").hidden = false;
  openTab(tabOfAddress());
  return true;
}

/** Read the models again: the server may have started anew, with others. */
async function refresh() {
  let found;
  try {
    found = await api.models();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    return;
  }
  if (!found.length) return;
  const facts = (all) => JSON.stringify(all.map((model) => ({ ...model, canary: null })));
  const vectors = (all) => all.map((model) => model.fingerprint).join();
  if (facts(found) === facts(models)) return;
  const isOther = vectors(found) !== vectors(models);
  models = found;
  showModels(chosen.id);
  if (isOther) showBanner("The server now serves other models, or the same with other vectors.");
}

function showModels(wanted) {
  fill($("model"), models.map(({ id }) => h("option", { value: id }, id)));
  choose(models.find(({ id }) => id === wanted) ?? models[0]);
}

function choose(model) {
  chosen = model;
  $("model").value = model.id;
  $("precision").textContent = model.precision;
  const button = $("fingerprint");
  button.setAttribute("aria-expanded", "false");
  button.textContent = shortened(model.fingerprint);
  button.title = model.fingerprint;
  fill($("fingerprint-copy"), copyButton("Copy the fingerprint", () => model.fingerprint, announce));
  for (const callback of callbacks) callback(model);
}

/** The part of a fingerprint after model and precision, which stand beside it. */
function shortened(fingerprint) {
  const key = fingerprint.split("/").at(-1);
  return key.replace(/^([0-9a-f]{8})[0-9a-f]+/, "$1…");
}

$("model").addEventListener("change", () => {
  choose(models.find(({ id }) => id === $("model").value));
});

$("fingerprint").addEventListener("click", () => {
  const button = $("fingerprint");
  const isFull = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!isFull));
  button.textContent = isFull ? shortened(chosen.fingerprint) : chosen.fingerprint;
});

// --- keys

function askForKey(fault) {
  isConnected = false;
  $("keys").hidden = false;
  $("facts").hidden = $("tabs").hidden = true;
  $("key-fault").hidden = !fault;
  $("key-fault").textContent = fault ?? "";
  $("key").setAttribute("aria-invalid", String(Boolean(fault)));
  $("key").focus();
}

$("keys").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!isKey(key)) return askForKey(NO_KEY);
  api.key = key;
  if (await connect()) {
    keep(KEY, key);
    $("key").value = "";
    $("tab-now").parentElement.querySelector("[aria-selected=true]").focus();
  }
});

$("forget").addEventListener("click", () => {
  keep(KEY, null);
  keep(METRICS_KEY, null);
  location.reload(); // what the panels hold goes, too
});

// --- tabs

function tabOfAddress() {
  const name = location.hash.slice(1);
  return TABS.includes(name) ? name : TABS[0];
}

async function openTab(name) {
  for (const other of TABS) {
    const tab = $(`tab-${other}`);
    const isOpen = other === name;
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    $(`panel-${other}`).hidden = !isOpen;
  }
  if (tabOfAddress() !== name) history.replaceState(null, "", `#${name}`);
  if (started.has(name) || !isConnected) return;
  started.add(name);
  const panel = $(`panel-${name}`);
  try {
    const module = await import(`./${name}.js`);
    module.start(panel, app);
    // The other tabs then open even while the server does not answer.
    for (const other of TABS) import(`./${other}.js`).catch(() => {});
  } catch (error) {
    started.delete(name);
    showError(panel, error);
  }
}

for (const [index, name] of TABS.entries()) {
  const tab = $(`tab-${name}`);
  tab.addEventListener("click", () => openTab(name));
  tab.addEventListener("keydown", (event) => {
    const to = {
      ArrowRight: (index + 1) % TABS.length,
      ArrowLeft: (index + TABS.length - 1) % TABS.length,
      Home: 0,
      End: TABS.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    openTab(TABS[to]);
    $(`tab-${TABS[to]}`).focus();
  });
}

addEventListener("hashchange", () => openTab(tabOfAddress()));
$("skip").addEventListener("click", (event) => {
  event.preventDefault(); // a fragment would be one of <base>
  $("main").focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  look();
  if (isConnected) refresh(); // what happened meanwhile was not seen
});
for (const kind of ["dragover", "drop"]) {
  // A file that misses its field would otherwise take the page's place.
  addEventListener(kind, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
}

// --- the start

api.key = kept(KEY);
api.metricsKey = kept(METRICS_KEY);
if (server.keys === "yes" && !api.key) askForKey(null);
else connect();
watch();
