// Which size and which type of numbers: rankings of the reader's own documents, side by side.

import { embedBody } from "./api.js";
import { LANGUAGES } from "./code.js";
import { collected, documentsInput, inputTypeOf, onDocuments, readingNotes } from "./documents.js";
import { starter, takeSample, vectorsOf } from "./documents.js";
import { copyButton, field, fill, fmt, h, select, table } from "./dom.js";
import { bytesOf, fits, places, rankings, sizesOf } from "./numbers.js";
import { prefixesCard } from "./prefixes.js";
import { agreementOf, refill, sideBySide } from "./ranks.js";
import { MOST_QUESTIONS, textsOf } from "./reading.js";
import { questions as sampleQuestions } from "./sample.js";

const TYPES = ["float", "int8", "binary"]; // uint8 and ubinary hold the same and rank the same
const NAMES = { float: "float32", int8: "int8, uint8", binary: "binary, ubinary" };
const ENOUGH = 0.9; // of the places; the smallest vectors that keep so many are chosen at first

/** Fill the panel. */
export function start(panel, app) {
  const questions = h("textarea", { rows: 5, dir: "auto", spellcheck: "false", oninput: () => stale() });
  const results = h("div", { class: "stack" });
  let stopPrefixes = () => {};
  const compare = starter(app, panel, "Compare", "primary", async (work) => {
    const model = app.model();
    const { texts } = collected();
    const asked = textsOf(questions.value, "lines");
    if (!asked.length) throw new Error("There are no questions. Write one or more, one a line.");
    if (asked.length > MOST_QUESTIONS) {
      throw new Error(
        `There are ${asked.length} questions, and this page compares at most ${MOST_QUESTIONS}. Take some out.`
      );
    }
    if (texts.length < 2) throw new Error("There is one document, and a ranking needs two. Add documents.");
    const comparison = await compared(app, model, texts, asked, work);
    work.signal.throwIfAborted();
    stopPrefixes = show(app, panel, results, comparison);
    app.announce(results.querySelector(".verdict").textContent);
  });
  const sample = h("button", { type: "button", onclick: () => take() }, "Take the sample");

  function take() {
    questions.value = sampleQuestions.join("\n");
    takeSample();
    compare.run();
  }

  function stale() {
    compare.stop();
    stopPrefixes();
    fill(results);
  }

  onDocuments(stale);
  app.onModel(stale);
  fill(
    panel,
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Which size, on your own texts"),
      h(
        "p",
        { class: "muted" },
        "Documents and questions are embedded once, at full size. The page cuts the vectors and makes smaller numbers of " +
          "them as the server does, and compares the rankings. The texts go to this server alone."
      ),
      h(
        "div",
        { class: "two" },
        documentsInput(panel, app, 9),
        field(`Questions, one a line, up to ${MOST_QUESTIONS}`, questions)
      ),
      h("div", { class: "row" }, compare.button, sample),
      compare.progress
    ),
    results
  );
}

/** Embed, and rank by each size and type of numbers. */
async function compared(app, model, texts, asked, work) {
  const documents = await vectorsOf(app, model, "documents", texts, inputTypeOf(model, "document"), work);
  const questions = await vectorsOf(app, model, "questions", asked, inputTypeOf(model, "query"), work);
  const sizes = sizesOf(model.dimensions);
  const k = places(texts.length);
  const cells = [];
  for (const { size, trained } of sizes) {
    for (const type of TYPES.filter((each) => fits(size, each))) {
      await new Promise((resolve) => setTimeout(resolve)); // the page stays alive
      work.signal.throwIfAborted();
      cells.push({ size, trained, type, rankings: rankings(documents.rows, questions.rows, size, type) });
    }
  }
  const reference = cells[0].rankings; // full size, float32
  for (const cell of cells) {
    cell.kept = agreementOf(reference, cell.rankings, k);
    cell.bytes = bytesOf(cell.size, cell.type);
    cell.factor = cells[0].bytes / cell.bytes;
  }
  const notes = [readingNotes(documents, model), readingNotes(questions, model)].filter(Boolean);
  return { model, texts, asked, sizes, cells, reference, k, notes, chosen: suggested(cells, k) };
}

function suggested(cells, k) {
  const enough = cells.filter((cell) => cell.trained && cell.kept.mean >= ENOUGH * k);
  return enough.reduce((best, cell) => (cell.bytes < best.bytes ? cell : best));
}

/** Show a comparison; returns what stops the requests that its last card may send. */
function show(app, panel, results, comparison) {
  const { notes } = comparison;
  const sizes = h("section", { class: "card" });
  const moved = h("section", { class: "card" });
  const code = h("section", { class: "card" });
  const view = { question: 0, type: comparison.chosen.type, language: "python", side: "document", exact: null };
  const choose = (cell) => {
    comparison.chosen = cell;
    view.type = cell.type;
    draw();
    app.announce(verdict(comparison));
  };
  const draw = () => {
    refill(sizes, sizesCard(comparison, choose));
    refill(moved, movesCard(comparison, view, draw));
    refill(code, codeCard(app, comparison, view, draw));
  };
  draw();
  const prefixes = prefixesCard(app, panel, comparison, () => view.question);
  fill(results, notes.length > 0 && h("p", { class: "warning" }, notes.join(" ")), sizes, moved, code, prefixes.card);
  return prefixes.stop;
}

// --- the sizes

function verdict({ chosen, k, cells, model }) {
  const isFull = chosen.size === model.dimensions.native;
  if (chosen === cells[0]) {
    return `At ${isFull ? "full size" : `${chosen.size} dimensions`} in float32, a million vectors take ${fmt.bytes(chosen.bytes)}.`;
  }
  const place = `At ${chosen.size} dimensions in ${typeName(chosen.type)}`;
  const stay = chosen.kept.mean === k ? `all of the first ${k} results stay` : `${chosen.kept.text} results stay`;
  return `${place}, ${stay}, at ${part(chosen.factor)} of the bytes.`;
}

/** "a twelfth"; a factor that is not whole is rounded. */
function part(factor) {
  const names = {
    2: "half",
    3: "a third",
    4: "a quarter",
    6: "a sixth",
    8: "an eighth",
    12: "a twelfth",
    16: "a sixteenth",
  };
  if (factor === 1) return "all";
  return names[factor] ?? `1/${trimmed(factor)}`;
}

/** 1.5, 12, 384: no zeros at the end. */
const trimmed = (factor) => (factor >= 100 ? fmt.int(factor) : String(Number(factor.toFixed(factor >= 10 ? 1 : 2))));

function sizesCard(comparison, choose) {
  const { sizes, cells, chosen, k, asked, texts, model } = comparison;
  const rows = sizes.map(({ size, trained }) => [
    [
      String(size),
      h(
        "span",
        { class: "hint" },
        size === model.dimensions.native ? "full size" : sizes.length === 1 ? "the only size" : trained ? "trained" : "not trained"
      ),
    ],
    ...TYPES.map((type) => {
      const cell = cells.find((each) => each.size === size && each.type === type);
      return cell ? cellButton(cell, k, cell === chosen, cell === cells[0], () => choose(cell)) : "–";
    }),
  ]);
  const least = chosen.kept.least;
  return [
    h("h2", {}, "What each size keeps"),
    h("p", { class: "verdict" }, verdict(comparison)),
    chosen !== cells[0] &&
      asked.length > 1 &&
      h(
        "p",
        {},
        `The question that keeps least keeps ${least} of ${k}; the first place stays for ${chosen.kept.first} of ${asked.length} questions.`
      ),
    table(
      `First ${k} results that stay, and bytes of a million vectors, by size and type of numbers`,
      ["Size", ...TYPES.map((type) => NAMES[type])],
      rows.map(([head, ...rest]) => [h("span", { class: "size" }, head), ...rest]),
      { class: "sizes" }
    ),
    h("p", {}, "Agreement is not accuracy: it says what changes, and not whether the full size was right."),
    h(
      "details",
      {},
      h("summary", {}, "How to read the table"),
      h(
        "p",
        { class: "hint" },
        `Each cell: how many of the first ${k} results of full size in float32 stay, on average over ` +
          `${asked.length === 1 ? "one question" : `${asked.length} questions`} and ${fmt.int(texts.length)} documents; ` +
          "bytes of a million vectors, without what an index adds. " +
          "Chosen at first: the smallest trained one that keeps nine tenths. Bits rank by the number that differs; equal " +
          "ones keep the order of your documents. To rank the best again by larger vectors brings much back."
      )
    ),
  ];
}

function cellButton(cell, k, isChosen, isReference, onclick) {
  const { kept, bytes, factor, size, type } = cell;
  const say = (words) => h("span", { class: "hidden" }, words);
  const bar = h("span", { class: "bar-of", "aria-hidden": "true" }, h("span", {}));
  bar.firstChild.style.width = `${(100 * kept.mean) / k}%`; // CSSOM, which the policy allows
  return h(
    "button",
    { type: "button", class: "cell", "aria-pressed": String(isChosen), "data-key": `${size}-${type}`, onclick },
    say(`${size} dimensions, ${typeName(type)}: `),
    h("strong", {}, kept.text, say(" stay, ")),
    bar,
    h("span", { class: "hint" }, fmt.bytes(bytes), say(", ")),
    h(
      "span",
      { class: "hint" },
      `${trimmed(factor)}×`,
      h("span", { class: "wide" }, isReference ? ", the reference" : " smaller")
    )
  );
}

// --- the rankings

function movesCard({ cells, texts, asked, k, sizes }, view, draw) {
  const question = select(
    { "data-key": "question", onchange: (event) => ((view.question = Number(event.target.value)), draw()) },
    asked.map((text, i) => [String(i), text]),
    String(view.question)
  );
  const type = select(
    { "data-key": "type", onchange: (event) => ((view.type = event.target.value), draw()) },
    TYPES.map((each) => [each, NAMES[each]]),
    view.type
  );
  const shown = [cells[0], ...cells.filter((cell) => cell.type === view.type && cell !== cells[0])];
  const lists = shown.map((cell) => ({
    name: `${cell.size} ${typeName(cell.type)}`,
    detail: cell.trained ? null : "not trained",
    ranking: cell.rankings[view.question],
  }));
  return [
    h("h2", {}, "What moves"),
    h(
      "div",
      { class: "row controls" },
      h("div", { class: "question" }, field("Question", question)),
      field("Type of numbers", type)
    ),
    sideBySide(`The first ${k} results at ${sizes.length} sizes`, texts, lists, k),
  ];
}

// --- the code

const EXACT = { float: ["float"], int8: ["int8", "uint8"], binary: ["binary", "ubinary"] };
const WRITTEN = { python: "Python", curl: "curl", javascript: "JavaScript" };

function codeCard(app, { chosen, model }, view, draw) {
  const types = EXACT[chosen.type];
  const type = types.includes(view.exact) ? view.exact : types[0];
  const body = embedBody(["A text of yours."], {
    model: model.id,
    inputType: inputTypeOf(model, view.side),
    dimensions: chosen.size,
    embeddingType: type,
  });
  const text = LANGUAGES[view.language](app.api.base, body, Boolean(app.api.key));
  const choice = (label, name, choices, value) =>
    field(
      label,
      select({ "data-key": name, onchange: (event) => ((view[name] = event.target.value), draw()) }, choices, value)
    );
  return [
    h("h2", {}, `The code for ${chosen.size} dimensions in ${typeName(type)}`),
    h(
      "div",
      { class: "row" },
      choice("Language", "language", Object.entries(WRITTEN), view.language),
      choice(
        "For",
        "side",
        [
          ["document", "documents"],
          ["query", "questions"],
        ],
        view.side
      ),
      types.length > 1 &&
        choice(
          "Type of numbers",
          "exact",
          types.map((each) => [each, each]),
          type
        ),
      copyButton("Copy the code", () => text, app.announce)
    ),
    h("pre", { tabindex: "0", role: "region", "aria-label": "The request as code" }, text),
  ];
}

const typeName = (type) => (type === "float" ? "float32" : type);
