// The documents that Choose and Map share: typed or from files, and their vectors.

import { field, fill, fmt, h } from "./dom.js";
import { fullSize } from "./numbers.js";
import { MOST_TEXTS, readFile, textsOf } from "./reading.js";
import { documents as sampleDocuments } from "./sample.js";

const state = { typed: "", by: "lines", files: [] }; // files: {name, texts}
const inputs = [];
const answers = new Map();

/**
 * The documents as they stand.
 * @returns {{texts: string[], source: number[], sources: string[]}} `source`: of each text, a
 *   position in `sources`
 * @throws {Error} there are none, or too many
 */
export function collected() {
  const typed = textsOf(state.typed, state.by);
  const parts = [...(typed.length ? [{ name: "typed", texts: typed }] : []), ...state.files];
  const texts = parts.flatMap((part) => part.texts);
  if (!texts.length) throw new Error("There are no documents. Paste some, choose files, or take the sample.");
  if (texts.length > MOST_TEXTS) throw new Error(tooMany(texts.length));
  return {
    texts,
    source: parts.flatMap((part, i) => part.texts.map(() => i)),
    sources: parts.map((part) => part.name),
  };
}

function tooMany(count) {
  return (
    `There are ${fmt.int(count)} documents, and this page compares at most ${fmt.int(MOST_TEXTS)}. ` +
    "Give a part of them; for all of them, use the API."
  );
}

/** Whether there is anything to collect. */
export function hasDocuments() {
  return state.files.length > 0 || /\S/.test(state.typed);
}

/** Make the sample the documents. */
export function takeSample() {
  Object.assign(state, { typed: sampleDocuments.join("\n"), by: "lines", files: [] });
  changed();
}

function changed(by) {
  for (const show of inputs) if (show !== by) show();
  for (const callback of callbacks) callback();
}

const callbacks = [];

/** Call `callback()` whenever the documents change. */
export function onDocuments(callback) {
  callbacks.push(callback);
}

/**
 * The control of the documents: a text area, files, and how many there are. All such controls
 * show the same documents.
 */
export function documentsInput(panel, app, rows) {
  const area = h("textarea", { rows, dir: "auto", spellcheck: "false", oninput: () => typed(area.value) });
  const typed = (value) => {
    state.typed = value;
    showCount();
    changed(show);
  };
  const name = `by-${panel.id}`;
  const radios = [
    ["lines", "One a line"],
    ["paragraphs", "Empty lines between"],
  ].map(([value, label]) => {
    const radio = h("input", { type: "radio", name, value, onchange: () => chosen(value) });
    return { radio, label: h("label", {}, radio, label) };
  });
  const chosen = (value) => {
    state.by = value;
    changed();
  };
  const count = h("p", { class: "muted", "aria-live": "polite" });
  const files = h("ul", { class: "files", "aria-label": "Chosen files" });
  const picker = h("input", { type: "file", multiple: true, accept: ".txt,.md,.csv,.jsonl,.ndjson,text/*" });
  picker.addEventListener("change", async () => {
    await add([...picker.files]);
    picker.value = "";
  });

  async function add(chosenFiles) {
    app.showError(panel, null);
    try {
      for (const file of chosenFiles) {
        const texts = await readFile(file, state.by);
        const others = state.files.filter((each) => each.name !== file.name);
        const held = others.reduce((sum, each) => sum + each.texts.length, 0);
        if (held + texts.length > MOST_TEXTS) {
          throw new Error(`${file.name} was not taken. ${tooMany(held + texts.length)}`);
        }
        state.files = [...others, { name: file.name, texts }];
      }
    } catch (error) {
      app.showError(panel, error);
    }
    changed();
  }

  function remove(file) {
    state.files = state.files.filter((each) => each !== file);
    changed();
    picker.focus(); // the button that had the focus is gone
  }

  function showCount() {
    const n = textsOf(state.typed, state.by).length + state.files.reduce((sum, each) => sum + each.texts.length, 0);
    count.textContent = n === 1 ? "1 document" : `${fmt.int(n)} documents`;
  }

  function show() {
    if (area.value !== state.typed) area.value = state.typed;
    for (const { radio } of radios) radio.checked = radio.value === state.by;
    files.hidden = !state.files.length;
    fill(
      files,
      state.files.map((file) =>
        h(
          "li",
          {},
          `${file.name}: ${fmt.int(file.texts.length)} `,
          h(
            "button",
            {
              type: "button",
              class: "copy",
              "aria-label": `Remove ${file.name}`,
              onclick: () => remove(file),
            },
            "Remove"
          )
        )
      )
    );
    showCount();
  }

  const box = h(
    "div",
    { class: "documents" },
    field("Documents", area),
    h(
      "div",
      { class: "row spread" },
      h(
        "fieldset",
        { class: "choices" },
        h("legend", { class: "hidden" }, "Documents are"),
        radios.map(({ label }) => label)
      ),
      count
    ),
    field(
      "Files",
      picker,
      "Text, Markdown (empty lines between), CSV (first column), JSON Lines (field text); drop them here, too."
    ),
    files
  );
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    box.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      box.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") add([...event.dataTransfer.files]);
    });
  }
  inputs.push(show);
  show();
  return box;
}

/** The input type of a side of a search: its own name where the model knows it. */
export function inputTypeOf(model, name) {
  return model.input_types.includes(name) ? name : model.default_input_type;
}

/**
 * Vectors of full size as float32; the last ones of each part of the page are kept.
 * @param {object} app
 * @param {object} model its facts
 * @param {string} part what the texts are to the page: "documents", "questions"
 * @param {string[]} texts
 * @param {string} inputType
 * @param {{signal: AbortSignal, onProgress: (done: number, all: number) => void}} work
 * @returns {Promise<{rows: Float32Array[], truncated: number, unknown: number}>}
 */
export async function vectorsOf(app, model, part, texts, inputType, work) {
  const key = `${part}/${inputType}`;
  const of = JSON.stringify([model.fingerprint, texts]);
  const kept = answers.get(key);
  if (kept?.of === of) return kept.answer;
  const dimensions = fullSize(model.dimensions);
  const answer = await app.api.embed(texts, {
    model: model.id,
    inputType,
    dimensions,
    fingerprint: model.fingerprint,
    limits: model.limits,
    ...work,
  });
  answers.set(key, { of, answer });
  return answer;
}

/** What a reader must know of texts that the model did not read whole; empty if it did. */
export function readingNotes({ truncated, unknown }, model) {
  const texts = (n) => (n === 1 ? "1 text" : `${fmt.int(n)} texts`);
  const notes = [];
  if (truncated) notes.push(`${texts(truncated)} cut to the model's ${fmt.int(model.limits.max_tokens)} tokens`);
  if (unknown) notes.push(`${texts(unknown)} with characters that the model does not know`);
  return notes.length ? `${notes.join("; ")}.` : "";
}

/**
 * A button, and the progress of what it starts, which can be cancelled.
 * @param {object} app
 * @param {HTMLElement} panel where errors are shown
 * @param {string} label of the button
 * @param {string} name for "primary" or another class of the button
 * @param {(work: {signal: AbortSignal, onProgress: (done: number, all: number) => void}) => Promise<void>} job
 * @returns {{button: HTMLElement, progress: HTMLElement, run: () => Promise<void>, stop: () => void}}
 */
export function starter(app, panel, label, name, job) {
  const button = h("button", { type: "button", class: name, onclick: () => run() }, label);
  const bar = h("progress", { "aria-label": label });
  const said = h("span", { class: "muted" });
  const cancel = h("button", { type: "button", onclick: () => stop() }, "Cancel");
  const progress = h("div", { class: "row working", hidden: true }, bar, said, cancel);
  let control = null;

  const onProgress = (done, all) => {
    bar.max = all;
    bar.value = done;
    said.textContent = `${fmt.int(done)} of ${fmt.int(all)} texts`;
  };

  async function run() {
    stop();
    const own = (control = new AbortController());
    app.showError(panel, null);
    bar.removeAttribute("value");
    said.textContent = "Embedding";
    progress.hidden = false;
    if (document.activeElement === button) cancel.focus();
    button.disabled = true;
    try {
      await job({ signal: own.signal, onProgress });
    } catch (error) {
      app.showError(panel, error);
      if (error.name === "AbortError") app.announce("Cancelled");
    } finally {
      if (control === own) {
        const held = progress.contains(document.activeElement);
        control = null;
        progress.hidden = true;
        button.disabled = false;
        if (held) button.focus();
      }
    }
  }

  function stop() {
    control?.abort();
  }

  return { button, progress, run, stop };
}
