// The tab Try: texts in; vectors, tokens, similarity and the request as code out.

import { embedBody } from "./api.js";
import { LANGUAGES } from "./code.js";
import { copyButton, field, fill, fmt, h, select } from "./dom.js";
import { similarityTable } from "./similarity.js";
import { showTokens } from "./tokens.js";

const EXAMPLE = ["The sky is blue.", "Grass is green.", "What colour is the sky?"].join("\n");
const MOST_TEXTS = 256; // as many as go in one request of the page
const SHOWN_NUMBERS = 6;
const CANONICAL = ["query", "document", "classification", "clustering", "none"];
const TYPES = {
  float: ["float", 4],
  int8: ["int8", 1],
  uint8: ["uint8", 1],
  binary: ["binary: signs, eight to an int8", 1 / 8],
  ubinary: ["ubinary: signs, eight to a uint8", 1 / 8],
};
const NAMES = { curl: "curl", python: "Python (openai)", javascript: "JavaScript (fetch)" };

export function start(panel, app) {
  const form = new Form(app);
  const results = h("div", { class: "stack" });
  fill(panel, h("div", { class: "sides" }, form.element, results));
  fill(results, h("p", { class: "card muted" }, "Vectors, tokens, similarity and the request as code appear here."));
  let running = null;
  form.element.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return running.abort();
    const texts = form.texts();
    app.showError(panel, null);
    if (form.size.validity.badInput) {
      app.showError(panel, new Error("The size is no whole number. Write one, or leave the field empty."));
      return form.size.focus();
    }
    if (!texts.length) {
      app.showError(panel, new Error("There is no text. Write one at least."));
      return form.focus();
    }
    running = new AbortController();
    form.isBusy(true);
    try {
      await run(texts.slice(0, MOST_TEXTS), texts.length, form.options(), running.signal);
    } catch (error) {
      app.showError(panel, error);
    } finally {
      running = null;
      form.isBusy(false);
    }
  });

  async function run(texts, n, options, signal) {
    const model = app.model();
    const begun = performance.now();
    const answer = await app.api.embed(texts, { ...options, fingerprint: model.fingerprint, limits: model.limits, signal });
    const ms = performance.now() - begun;
    const asked = { texts, options, model };
    const tokens = h("section", { class: "card", "aria-labelledby": "tokens" });
    fill(
      results,
      summary(asked, answer, n, ms, app),
      vectors(asked, answer, app),
      texts.length > 1 && similarityTable(texts, answer.rows, options.embeddingType),
      tokens,
      code(asked, answer, app)
    );
    app.announce(`${texts.length} ${texts.length === 1 ? "vector" : "vectors"}`);
    await showTokens(tokens, asked, answer, app, signal);
  }
}

// --- the form

class Form {
  constructor(app) {
    this.app = app;
    this.area = h("textarea", { rows: "7", dir: "auto", spellcheck: "false", "aria-keyshortcuts": "Control+Enter" });
    this.area.value = EXAMPLE;
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.element.requestSubmit();
    });
    this.lines = radio("split", "lines", "One text a line", true);
    this.whole = radio("split", "whole", "One whole text");
    this.inputType = h("select", { onchange: () => this.#hints() });
    this.size = h("input", { type: "number", min: "1", step: "1", inputmode: "numeric", oninput: () => this.#hints() });
    this.sizes = h("div", { class: "chips", role: "group", "aria-label": "Trained sizes" });
    this.type = select({ onchange: () => this.#hints() }, Object.entries(TYPES).map(([key, [name]]) => [key, name]), "float");
    this.button = h("button", { type: "submit", class: "primary" }, "Embed");
    this.prompt = h("span", { class: "hint" });
    this.sizeHint = h("span", { class: "hint" });
    this.typeHint = h("span", { class: "hint" });
    this.element = h(
      "form",
      { class: "card", novalidate: true, "aria-label": "Texts and choices" },
      field("Texts", this.area),
      h("fieldset", {}, h("legend", { class: "hidden" }, "What is a text"), h("div", { class: "choices" }, this.lines, this.whole)),
      described(field("Input type", this.inputType), this.inputType, this.prompt),
      described(field("Size", this.size), this.size, this.sizeHint, this.sizes),
      described(field("Number type", this.type), this.type, this.typeHint),
      h("div", { class: "row middle" }, this.button, h("span", { class: "hint" }, "or Ctrl+Enter"))
    );
    app.onModel((model) => this.#offer(model));
    this.#offer(app.model());
  }

  focus() {
    this.area.focus();
  }

  isBusy(is) {
    this.button.textContent = is ? "Stop" : "Embed";
  }

  texts() {
    const text = this.area.value;
    const found = this.whole.querySelector("input").checked ? [text] : text.split("\n");
    return found.filter((one) => one.trim());
  }

  options() {
    return {
      model: this.app.model().id,
      inputType: this.inputType.value || undefined,
      dimensions: this.size.value ? Number(this.size.value) : undefined,
      embeddingType: this.type.value,
    };
  }

  /** Offer what a model has. */
  #offer(model) {
    const chosen = this.inputType.value;
    const types = CANONICAL.filter((type) => model.input_types.includes(type));
    fill(
      this.inputType,
      h("option", { value: "" }, `The server's default: ${model.default_input_type}`),
      types.map((type) => h("option", { value: type, selected: type === chosen }, type))
    );
    const { native, trained, default: usual, can_be_cut: canBeCut } = model.dimensions;
    this.size.max = native;
    this.size.placeholder = `The server's default: ${usual}`;
    this.size.disabled = !canBeCut;
    if (!canBeCut || Number(this.size.value) > native) this.size.value = "";
    const offered = canBeCut ? [...new Set([native, ...trained])].sort((a, b) => b - a) : [];
    fill(
      this.sizes,
      offered.map((size) =>
        h("button", {
          type: "button",
          onclick: () => {
            this.size.value = size;
            this.#hints();
          },
        }, String(size))
      )
    );
    this.#hints();
  }

  #hints() {
    const { prompts, default_input_type: usual, dimensions } = this.app.model();
    const type = this.inputType.value || usual;
    const hasPrompts = Object.keys(prompts).length > 0;
    fill(
      this.prompt,
      !hasPrompts
        ? "This model has no prompts: every input type gives the same vectors."
        : prompts[type]
          ? ["The model reads ", h("code", { class: "prefix" }, prompts[type]), " before each text."]
          : "The model reads the text alone."
    );
    const size = this.size.value ? Number(this.size.value) : this.size.validity.badInput ? NaN : dimensions.default;
    for (const chip of this.sizes.children) chip.setAttribute("aria-pressed", String(Number(chip.textContent) === size));
    const { native, trained, strict, can_be_cut: canBeCut } = dimensions;
    let fault = null;
    if (!Number.isInteger(size) || size < 1 || size > native) fault = `The model has 1 to ${native} dimensions.`;
    else if (size !== native && !trained.includes(size)) {
      fault = strict
        ? "This server refuses sizes that the model was not trained for."
        : "The model was not trained for this size: vectors may rank worse than their size suggests.";
    }
    this.sizeHint.className = fault ? "warning" : "hint";
    this.sizeHint.textContent = fault ?? (canBeCut ? "" : `This server gives ${dimensions.default} dimensions only.`);
    const packs = this.type.value.endsWith("binary");
    const bytes = (size >= 1 ? size : dimensions.default) * TYPES[this.type.value][1];
    this.typeHint.className = packs && size % 8 ? "warning" : "hint";
    this.typeHint.textContent =
      packs && size % 8
        ? `Signs go eight to a byte, and ${size} is not a multiple of 8.`
        : `${fmt.int(bytes)} bytes a vector, ${fmt.bytes(bytes * 1e6)} a million.`;
  }
}

function radio(name, value, text, checked = false) {
  return h("label", {}, h("input", { type: "radio", name, value, checked }), text);
}

/** A field with hints below, of which the first describes the control. */
function described(element, control, hint, ...more) {
  hint.id = `${control.id}-said`;
  control.setAttribute("aria-describedby", hint.id);
  element.append(...more, hint);
  return element;
}

// --- the results

function summary({ texts, model }, answer, n, ms, app) {
  const count = (k, one, many) => `${fmt.int(k)} ${k === 1 ? one : many}`;
  const facts = [
    count(texts.length, "text", "texts"),
    count(answer.tokens, "token", "tokens"),
    `${fmt.seconds(ms / 1000)} to the answer`,
  ];
  const notes = [
    n > texts.length && `Only the first ${fmt.int(texts.length)} of ${fmt.int(n)} texts were sent.`,
    answer.truncated && `${count(answer.truncated, "text was", "texts were")} cut to the ${fmt.int(model.limits.max_tokens)} tokens that the model reads.`,
    answer.unknown && `${count(answer.unknown, "text has", "texts have")} words or characters that the model's vocabulary lacks.`,
    answer.warning,
  ].filter(Boolean);
  return h(
    "section",
    { class: "card", "aria-labelledby": "answer" },
    h("h2", { id: "answer" }, "Answer"),
    h("p", {}, facts.join(" · ")),
    notes.map((note) => h("p", { class: "warning" }, note)),
    h(
      "p",
      { class: "fingerprint pair" },
      h("span", { class: "muted" }, "Fingerprint"),
      h("span", { class: "mono" }, answer.fingerprint),
      copyButton("Copy the fingerprint of the answer", () => answer.fingerprint, app.announce)
    )
  );
}

function vectors({ texts, options }, { rows }, app) {
  const item = (text, index) => {
    const row = rows[index];
    const numbers = h("p", { class: "mono numbers" }, preview(row));
    const more = h("button", { type: "button", class: "copy", "aria-expanded": "false" }, `All ${row.length}`);
    more.setAttribute("aria-label", `All ${row.length} numbers of text ${index + 1}`);
    more.addEventListener("click", () => {
      const isOpen = more.getAttribute("aria-expanded") === "true";
      more.setAttribute("aria-expanded", String(!isOpen));
      numbers.textContent = isOpen ? preview(row) : Array.from(row, written).join(", ");
    });
    return h(
      "li",
      {},
      h(
        "div",
        { class: "row spread" },
        h("span", { class: "text", dir: "auto" }, text),
        h("span", { class: "buttons" }, more, copyButton(`Copy the vector of text ${index + 1}`, () => `[${Array.from(row, written).join(", ")}]`, app.announce))
      ),
      numbers
    );
  };
  const size = rows[0].length;
  const packed = options.embeddingType.endsWith("binary");
  return h(
    "section",
    { class: "card", "aria-labelledby": "vectors" },
    h("h2", { id: "vectors" }, "Vectors"),
    h("p", { class: "muted" }, packed ? `${size} bytes hold ${size * 8} signs.` : `${size} numbers each, ${options.embeddingType}.`),
    h("ol", { class: "items", tabindex: texts.length > 8 ? "0" : false, "aria-label": "Vectors" }, texts.map(item))
  );
}

function preview(row) {
  const first = Array.from(row.subarray(0, SHOWN_NUMBERS), (x) => (row instanceof Float32Array ? x.toFixed(4).replace("-0.0000", "0.0000") : String(x)));
  return first.join(", ") + (row.length > SHOWN_NUMBERS ? ", …" : "");
}

/** The shortest decimal that is read as the same float32; whole numbers as they are. */
function written(x) {
  for (let digits = 1; digits <= 9; digits++) {
    const text = Number(x.toPrecision(digits));
    if (Math.fround(text) === x) return String(text);
  }
  return String(x);
}

function code({ texts, options }, { requests }, app) {
  const body = embedBody(texts, options);
  const shown = h("pre", { tabindex: "0", role: "region", "aria-label": "The request as code" });
  let text = "";
  const show = (language) => {
    text = LANGUAGES[language](app.api.base, body, Boolean(app.api.key));
    shown.textContent = text;
  };
  const choices = Object.keys(LANGUAGES).map((language, index) => {
    const label = radio("language", language, NAMES[language], index === 0);
    label.firstChild.addEventListener("change", () => show(language));
    return label;
  });
  show("curl");
  return h(
    "section",
    { class: "card", "aria-labelledby": "code" },
    h("div", { class: "row spread" }, h("h2", { id: "code" }, "The same as code"), copyButton("Copy the code", () => text, app.announce)),
    h("fieldset", {}, h("legend", { class: "hidden" }, "Language"), h("div", { class: "choices" }, choices)),
    shown,
    h(
      "p",
      { class: "hint" },
      requests === 1
        ? "The page sends this very body, and asks for the numbers as bytes (Accept: application/octet-stream)."
        : `The page has sent these texts in ${requests} requests, because one may be too large for the server.`
    )
  );
}
