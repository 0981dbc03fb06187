// The cosine of each pair of texts, as a shaded table.

import { h, table } from "./dom.js";
import { score } from "./numbers.js";

const MOST = 50;
const SHADES = 9;

/** The card with the table of up to 50 texts. */
export function similarityTable(texts, rows, type) {
  const shown = texts.slice(0, MOST);
  const cells = shown.map((text, i) => [
    h("span", { class: "text", dir: "auto", title: text }, `${i + 1} ${text}`),
    ...shown.map((_, j) => {
      const value = cosine(rows[i], rows[j], type);
      return { text: value.toFixed(2), class: `num shade${shade(value)}` };
    }),
  ]);
  const head = ["Text", ...shown.map((_, j) => ({ text: String(j + 1), class: "num" }))];
  const rest = texts.length - shown.length;
  return h(
    "section",
    { class: "card", "aria-labelledby": "similarity" },
    h("h2", { id: "similarity" }, "Similarity"),
    h("p", { class: "muted" }, "The cosine of each pair", rest > 0 && ` of the first ${MOST} texts`, type.endsWith("binary") && ", by signs", "."),
    table("Cosine of each pair of texts", head, cells, { class: "matrix" })
  );
}

/** The cosine of two vectors of a number type; of packed signs, each counts as 1 or -1. */
export function cosine(a, b, type) {
  if (type.endsWith("binary")) return 1 + (2 * score(a, b, type)) / (a.length * 8);
  const length = Math.sqrt(score(a, a, type) * score(b, b, type));
  return length ? score(a, b, type) / length : 0;
}

function shade(value) {
  return Math.max(0, Math.min(SHADES, Math.round(value * SHADES)));
}
