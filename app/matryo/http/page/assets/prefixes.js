// What becomes of a ranking whose questions and documents got no prefix, or a wrong one.

import { inputTypeOf, starter, vectorsOf } from "./documents.js";
import { field, fill, h, select, table } from "./dom.js";
import { fullSize, rankings } from "./numbers.js";
import { agreementOf, sideBySide } from "./ranks.js";

/** Input types of questions and documents that give other prefixes than the right ones do. */
function otherPrefixes(model) {
  const prefixes = (...types) => JSON.stringify(types.map((type) => model.prompts[inputTypeOf(model, type)] ?? ""));
  const seen = new Set([prefixes("query", "document")]);
  const all = [
    ["none", "No prefixes"],
    ["document", "Both as documents"],
    ["query", "Both as queries"],
  ];
  return all.filter(([type]) => !seen.has(prefixes(type, type)) && seen.add(prefixes(type, type)));
}

function noOthers({ id, prompts, input_types: types, default_input_type: usual }) {
  const isBound = Object.keys(prompts).some((type) => !types.includes(type));
  return isBound
    ? `This server embeds every text as ${usual}, so there is no other prefix to try.`
    : `${id} puts no prefix before questions or documents, so there is none to forget.`;
}

/**
 * What wrong prefixes do, by further requests, which a button of the card sends.
 * @returns {{card: HTMLElement, stop: () => void}} `stop` ends the requests
 */
export function prefixesCard(app, panel, comparison, question) {
  const { model } = comparison;
  const card = h("section", { class: "card" }, h("h2", {}, "What prefixes do"));
  const settings = otherPrefixes(model);
  if (!settings.length) {
    card.append(h("p", {}, noOthers(model)));
    return { card, stop: () => {} };
  }
  const result = h("div", { class: "stack" });
  const starting = starter(app, panel, "Try other prefixes", "", async (work) => {
    fill(result);
    const lists = [];
    for (const [type, name] of settings) {
      const documents = await vectorsOf(app, model, "documents", comparison.texts, inputTypeOf(model, type), work);
      const questions = await vectorsOf(app, model, "questions", comparison.asked, inputTypeOf(model, type), work);
      const found = rankings(documents.rows, questions.rows, fullSize(model.dimensions), "float");
      lists.push({ name, rankings: found, kept: agreementOf(comparison.reference, found, comparison.k) });
    }
    work.signal.throwIfAborted();
    fill(result, prefixesResult(comparison, lists, question()));
    app.announce("Prefixes compared");
  });
  const quoted = (type) => {
    const prefix = model.prompts[inputTypeOf(model, type)];
    return prefix ? h("code", { class: "prefix" }, prefix) : "nothing";
  };
  card.append(
    h(
      "p",
      {},
      "The model reads ",
      quoted("query"),
      " before a question, ",
      quoted("document"),
      " before a document."
    ),
    h("p", { class: "muted" }, "To see what a wrong prefix does, the texts are embedded again, at full size."),
    h("div", { class: "row" }, starting.button),
    starting.progress,
    result
  );
  return { card, stop: starting.stop };
}

function prefixesResult({ reference, k, asked, texts }, lists, question) {
  const right = { name: "Query and document", rankings: reference };
  const own = select(
    { onchange: () => draw() },
    asked.map((text, i) => [String(i), text]),
    String(question)
  );
  const ranks = h("div", {});
  const draw = () => {
    const at = Number(own.value);
    const shown = [right, ...lists].map(({ name, rankings: all }) => ({ name, ranking: all[at] }));
    fill(ranks, sideBySide(`The first ${k} results with each prefix`, texts, shown, k));
  };
  draw();
  return [
    table(
      `First ${k} results that stay with other prefixes`,
      ["Prefixes", "Results that stay", "First place stays"],
      lists.map(({ name, kept }) => [name, kept.text, `${kept.first} of ${asked.length}`])
    ),
    field("Question", own),
    ranks,
  ];
}
