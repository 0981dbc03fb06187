// The tab Now: what is served, and how busy the server is between two scrapes of /metrics.

import { NO_KEY, isKey } from "./api.js";
import { copyButton, field, fill, fmt, h, svg, table } from "./dom.js";
import { growth, most, parse, quantile, sum } from "./metrics.js";

const POLL_MS = 2000;
const POINTS = 31; // a minute
const WIDTH = 120;
const HEIGHT = 32;

const KIND_HEAD = ["Requests a second", "Tokens a second", "p95"].map((text) => ({ text, class: "num" }));

const isCall = ({ door }) => door !== "operations";
const isAnswered = ({ input_type, status }) => input_type !== "" && /^(200|OK)$/.test(status);

/** What a tile shows: `lines` are names of values, each with a class of its own. */
const TILES = [
  { title: "Requests a second", lines: ["requests"], write: fmt.short, hint: "Without probes and pages" },
  { title: "Tokens a second", lines: ["tokens"], write: fmt.short, hint: "Computed, without padding" },
  { title: "Backlog", lines: ["backlog"], write: fmt.seconds, hint: "Time that waiting work takes" },
  { title: "Latency", lines: ["p50", "p95"], write: fmt.seconds, hint: "p50 and, dashed, p95" },
];

export function start(panel, app) {
  const served = h("section", { class: "card", "aria-labelledby": "served" });
  const load = h("section", { class: "card", "aria-labelledby": "load" });
  fill(panel, load, served);
  showServed(served, app);
  app.onModel(() => showServed(served, app));
  if (app.server.metrics === "elsewhere") {
    fill(
      load,
      h("h2", { id: "load" }, "Load"),
      h("p", {}, "This server gives its metrics on a port of its own (MATRYO_METRICS_PORT), which this page does not reach.")
    );
  } else {
    new Load(load, panel, app).run();
  }
}

// --- what is served

function showServed(section, app) {
  const models = app.models();
  const rows = models.map((model, index) => {
    const { native, trained, can_be_cut, default: usual } = model.dimensions;
    const others = trained.filter((size) => size !== native);
    const bound = usual === native ? "fixed" : `this server gives ${usual} only`;
    const sizes = !can_be_cut ? bound : others.length ? `also trained for ${others.join(", ")}` : "can be cut";
    return [
      h("span", {}, model.id, index === 0 && h("span", { class: "tag" }, "default")),
      model.precision,
      h(
        "span",
        { class: "fingerprint pair" },
        h("span", { class: "mono" }, model.fingerprint),
        copyButton(`Copy the fingerprint of ${model.id}`, () => model.fingerprint, app.announce)
      ),
      h("span", {}, fmt.int(native), h("span", { class: "hint block" }, sizes)),
      { text: model.limits.max_tokens === null ? "no limit" : fmt.int(model.limits.max_tokens), class: "num" },
    ];
  });
  const head = ["Model", "Precision", "Fingerprint", "Dimensions", { text: "Most tokens of a text", class: "num" }];
  fill(
    section,
    h("h2", { id: "served" }, models.length === 1 ? "Served model" : "Served models"),
    table("Models that your key may use", head, rows)
  );
}

// --- load

class Load {
  #before = null; // the last scrape and its time in ms
  #points = []; // values of each poll, the newest last; null after a gap
  #isPaused = false;
  #seen = new Set(); // models and input types that had a request

  constructor(section, panel, app) {
    Object.assign(this, { section, panel, app });
    this.tiles = TILES.map((tile) => new Tile(tile));
    this.said = h("p", { class: "muted" }, "Reading the metrics");
    this.button = h("button", { type: "button", onclick: () => this.#toggle() }, "Pause");
    this.kinds = table("Load by model and input type", ["Model", "Input type", ...KIND_HEAD], []);
    this.kinds.hidden = true;
    fill(
      section,
      h("div", { class: "row spread" }, h("h2", { id: "load" }, "Load"), this.button),
      h("div", { class: "tiles" }, this.tiles.map(({ element }) => element)),
      this.said,
      this.kinds
    );
  }

  async run() {
    // Two scrapes make the first figures; after them, nothing moves for people who want no motion.
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    for (let polls = 0; ; polls++) {
      if (isStill && polls === 2) this.#toggle();
      await new Promise((resolve) => setTimeout(resolve, polls ? POLL_MS : 0));
      if (this.#isPaused || document.hidden || this.panel.hidden) {
        this.#before = null;
        continue;
      }
      try {
        this.#take(await this.app.api.metrics());
      } catch (error) {
        this.#before = null;
        if (error.status === 404) {
          this.said.textContent = "The metrics are not within reach of this page: something before the server keeps /metrics away.";
          return;
        }
        if (error.status === 401) await this.#askForKey(error);
        else this.said.textContent = `No metrics now: ${error.message}`;
      }
    }
  }

  #toggle() {
    this.#isPaused = !this.#isPaused;
    this.button.textContent = this.#isPaused ? "Go on" : "Pause";
    if (this.#isPaused) this.said.textContent = "Paused";
  }

  #take(text) {
    const samples = parse(text, "matryo_");
    const now = performance.now();
    const before = this.#before;
    this.#before = { samples, now };
    if (!before) {
      if (this.#points.length) this.#points.push(null);
      this.#show({ backlog: sum(samples, "matryo_backlog_seconds") });
      return;
    }
    const seconds = (now - before.now) / 1000;
    const grown = (name, keep) => growth(before.samples, samples, name, keep);
    const latency = (q) =>
      quantile(q, before.samples, samples, "matryo_request_seconds_bucket", isAnswered);
    const status = (pattern) => (labels) => isCall(labels) && pattern.test(labels.status);
    const point = {
      requests: grown("matryo_requests_total", isCall) / seconds,
      tokens: grown("matryo_tokens_total") / seconds,
      backlog: sum(samples, "matryo_backlog_seconds"),
      p50: latency(0.5),
      p95: latency(0.95),
      n: grown("matryo_requests_total", isCall),
      refused: grown("matryo_requests_total", status(/^(429|RESOURCE_EXHAUSTED)$/)),
      failed: grown("matryo_requests_total", status(/^(5..|INTERNAL|UNKNOWN|UNAVAILABLE)$/)),
    };
    this.#points.push(point);
    this.#points.splice(0, this.#points.length - POINTS);
    this.#show(point);
    this.#tell(samples);
    this.#split(before.samples, samples, seconds);
  }

  #show(point) {
    for (const tile of this.tiles) tile.show(point, this.#points);
  }

  #tell(samples) {
    const total = (name) => this.#points.reduce((all, point) => all + (point?.[name] ?? 0), 0);
    const n = total("n");
    const busy = sum(samples, "matryo_busy_workers");
    const workers = sum(samples, "matryo_workers");
    const processes = most(samples, "matryo_processes");
    this.said.textContent = [
      `In the last minute, since you look: ${fmt.int(n)} ${n === 1 ? "request" : "requests"}, ` +
        `${fmt.int(total("refused"))} refused for lack of room or by a limit, ${fmt.int(total("failed"))} failed.`,
      `${fmt.int(busy)} of ${fmt.int(workers)} workers busy.`,
      processes > 1 && `${fmt.int(processes)} processes.`,
    ].filter(Boolean).join(" ");
  }

  /** What models and input types had to do since the last scrape. */
  #split(before, after, seconds) {
    const count = "matryo_request_seconds_count";
    for (const { labels } of after[count] ?? []) {
      if (isAnswered(labels)) this.#seen.add(JSON.stringify([labels.model, labels.input_type]));
    }
    const rows = [...this.#seen].sort().map((key) => {
      const [model, type] = JSON.parse(key);
      const isKind = (labels) => labels.model === model && labels.input_type === type;
      const isRow = (labels) => isKind(labels) && isAnswered(labels);
      const p95 = quantile(0.95, before, after, "matryo_request_seconds_bucket", isRow);
      return [
        model,
        type,
        fmt.short(growth(before, after, count, isRow) / seconds),
        fmt.short(growth(before, after, "matryo_tokens_total", isKind) / seconds),
        p95 === null ? "–" : fmt.seconds(p95),
      ].map((text, column) => (column > 1 ? { text, class: "num" } : text));
    });
    this.kinds.hidden = !rows.length;
    // The region around the table stays, and with it the reader's focus.
    this.kinds.firstChild.replaceWith(table("Load by model and input type", ["Model", "Input type", ...KIND_HEAD], rows).firstChild);
  }

  /** Resolves once the reader has typed in a key. */
  #askForKey(error) {
    const asked = this.app.api.metricsKey;
    const input = h("input", { type: "password", autocomplete: "off", required: true, spellcheck: "false" });
    this.said.textContent = "";
    const tell = (fault) => {
      this.section.querySelector(".fault")?.remove();
      if (fault) this.section.append(h("p", { class: "fault", role: "alert" }, fault));
    };
    return new Promise((resolve) => {
      const form = h(
        "form",
        {
          class: "row",
          onsubmit: (event) => {
            event.preventDefault();
            const key = input.value.trim();
            if (!isKey(key)) return tell(NO_KEY);
            this.app.keepMetricsKey(key);
            form.remove();
            tell(null);
            resolve();
          },
        },
        field("Key of the metrics", input, "The metrics of this server ask for a key of their own (MATRYO_METRICS_KEY)."),
        h("button", { type: "submit", class: "primary" }, "Use this key")
      );
      tell(asked && error.message);
      this.section.append(form);
    });
  }
}

class Tile {
  constructor({ title, lines, write, hint }) {
    Object.assign(this, { title, lines, write });
    this.values = lines.map(() => h("span", { class: "value" }, "–"));
    this.chart = svg("svg", {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": title,
    });
    this.element = h(
      "div",
      { class: "tile" },
      h("h3", {}, title),
      h("p", { class: "values" }, this.values),
      this.chart,
      h("p", { class: "hint" }, hint ?? "\u00a0")
    );
  }

  show(point, points) {
    const texts = this.lines.map((name) => (point[name] == null ? "–" : this.write(point[name])));
    texts.forEach((text, index) => (this.values[index].textContent = text));
    const highest = Math.max(0, ...points.flatMap((one) => this.lines.map((name) => one?.[name] ?? 0)));
    const now = this.lines.map((name, index) => (this.lines.length > 1 ? `${name} ${texts[index]}` : texts[index]));
    const spoken = now.join(", ").replaceAll("–", "no value");
    this.chart.setAttribute("aria-label", `${this.title}: ${spoken} now, ${this.write(highest)} at most`);
    fill(this.chart, this.lines.map((name, index) => line(points.map((one) => one?.[name] ?? null), highest, index)));
  }
}

/** A line with gaps where there is no value. */
function line(values, highest, index) {
  const x = (at) => WIDTH - ((values.length - 1 - at) * WIDTH) / (POINTS - 1);
  const y = (value) => HEIGHT - 2 - (highest ? (value / highest) * (HEIGHT - 4) : 0);
  let path = "";
  values.forEach((value, at) => {
    if (value === null) return;
    const goesOn = at > 0 && values[at - 1] !== null;
    path += `${goesOn ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!goesOn) path += "h.01"; // a lone value is a dot
  });
  return svg("path", { d: path, class: `line${index}` });
}
