// Rankings side by side, and what moved between them.

import { fill, fmt, h } from "./dom.js";
import { agreement, moves, overlap } from "./numbers.js";

/** "9.4 of 10"; whole numbers without a decimal. */
export function keptOf(mean, k) {
  const text = fmt.fixed(mean, 1);
  // Never 10 where something moved out.
  const shown = text.endsWith(".0")
    ? mean < k && Number(text) === k
      ? fmt.fixed(k - 0.1, 1)
      : text.slice(0, -2)
    : text;
  return `${shown} of ${k}`;
}

/**
 * Lists beside each other, the first of which is the reference of the others.
 * @param {string} label of the whole, for screen readers
 * @param {string[]} texts of the documents
 * @param {{name: string, detail?: string, ranking: number[]}[]} lists
 * @param {number} k places shown
 */
export function sideBySide(label, texts, lists, k) {
  const reference = lists[0].ranking;
  const columns = lists.map(({ name, detail, ranking }, i) => {
    const { top, left } = moves(reference, ranking, k);
    const note = i === 0 ? "the reference" : `${overlap(reference, ranking, k)} of ${k} stay`;
    return h(
      "li",
      { class: "ranking" },
      h("h3", {}, name, " ", h("span", { class: "muted" }, note)),
      detail && h("p", { class: "hint" }, detail),
      h(
        "ol",
        {},
        top.map((each) =>
          h("li", {}, h("span", { class: "clipped" }, i > 0 && [mark(each, k), " "], h("bdi", {}, texts[each.index])))
        )
      ),
      left.length > 0 && h("p", { class: "hint" }, `No longer among the first ${k}:`),
      left.length > 0 &&
        h(
          "ul",
          { class: "left" },
          left.map((each) => h("li", {}, h("span", { class: "clipped" }, mark(each, k), " ", h("bdi", {}, texts[each.index]))))
        )
    );
  });
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": label },
    h("ul", { class: "rankings" }, columns)
  );
}

/** What moved, by an arrow and a number, and by words for screen readers. */
function mark({ place, from }, k) {
  const by = from - place;
  const [kind, shown, words] =
    by === 0
      ? ["same", "=", "same place"]
      : from > k
        ? ["new", `▲ from ${from}`, `new, was at ${from}`]
        : place > k
          ? ["gone", `▼ to ${place}`, `was at ${from}, now at ${place}`]
          : by > 0
            ? ["up", `▲ ${by}`, `up ${by}`]
            : ["down", `▼ ${-by}`, `down ${-by}`];
  return h("span", { class: `move ${kind}` }, h("span", { "aria-hidden": "true" }, shown), say(`${words}: `));
}

const say = (words) => h("span", { class: "hidden" }, words);

/** Agreement as text: the mean, and the question that keeps least. */
export function agreementOf(reference, rankings, k) {
  const found = agreement(reference, rankings, k);
  return { ...found, text: keptOf(found.mean, k) };
}

/** Replace the children of `element`, the focus staying in a control of the same `data-key`. */
export function refill(element, ...children) {
  const key = element.contains(document.activeElement) && document.activeElement.dataset.key;
  fill(element, ...children);
  if (key) element.querySelector(`[data-key="${key}"]`)?.focus();
}
