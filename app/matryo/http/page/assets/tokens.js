// The tokens of each text, with those that the vocabulary lacks and those that are cut off.

import { fill, fmt, h } from "./dom.js";

const MOST_TEXTS = 20;
const MOST_TOKENS = 200; // of a text, until all are asked for

/** Fill a card with the tokens that the server's default model reads. */
export async function showTokens(section, { texts, options, model }, answer, app, signal) {
  const title = h("h2", { id: "tokens" }, "Tokens");
  if (model.id !== app.models()[0].id) {
    fill(
      section,
      title,
      h("p", {}, `The server spells tokens for its default model alone, ${app.models()[0].id}. This answer counts ${fmt.int(answer.tokens)}.`)
    );
    return;
  }
  const shown = texts.slice(0, Math.min(MOST_TEXTS, model.limits.max_inputs ?? MOST_TEXTS));
  let found;
  try {
    found = await app.api.tokenize(shown, { promptName: options.inputType, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    fill(section, title, h("p", { class: "warning" }, `No tokens to show: ${error.message}`));
    return;
  }
  fill(
    section,
    title,
    h(
      "p",
      { class: "muted" },
      "As the model reads them, with prompt and special tokens",
      texts.length > shown.length && `, of the first ${shown.length === 1 ? "text" : `${shown.length} texts`}`,
      "."
    ),
    h("ol", { class: "items", tabindex: "0", "aria-label": "Tokens" }, found.map((tokens) => h("li", {}, spelled(tokens, model))))
  );
}

function spelled(tokens, model) {
  const most = model.limits.max_tokens ?? Infinity;
  const isUnknown = ({ id }) => id === model.unknown_token_id;
  const marked = marks(tokens, most);
  const nUnknown = tokens.filter(isUnknown).length;
  const nCut = marked.filter(({ isCut }) => isCut).length;
  const list = h("p", { class: "tokens" });
  const show = (n) => fill(list, marked.slice(0, n).map(({ token, isCut }) => chip(token, isUnknown(token), isCut)));
  show(MOST_TOKENS);
  const hidden = tokens.length - MOST_TOKENS;
  const all = hidden > 0 && h("button", { type: "button", class: "copy" }, `Show ${fmt.int(hidden)} more`);
  if (all) {
    all.addEventListener("click", () => {
      show(tokens.length);
      all.remove();
    });
  }
  const counts = [`${fmt.int(tokens.length)} ${tokens.length === 1 ? "token" : "tokens"}`];
  if (nUnknown) counts.push(`${fmt.int(nUnknown)} unknown`);
  if (nCut) counts.push(`the last ${fmt.int(nCut)} are cut off`);
  return [h("p", { class: "hint" }, counts.join(", ")), list, all];
}

/** Each token, and whether it is beyond what the model reads. Special tokens are kept. */
function marks(tokens, most) {
  let room = most - tokens.filter(({ special }) => special).length;
  return tokens.map((token) => ({ token, isCut: !token.special && room-- <= 0 }));
}

function chip(token, isUnknown, isCut) {
  const kind = ["token", token.special && "special", isUnknown && "unknown", isCut && "cut"];
  const said = [isUnknown && "unknown", isCut && "cut off"].filter(Boolean).join(", ");
  return [
    h("span", { class: kind.filter(Boolean).join(" ") }, token.text, said && h("span", { class: "hidden" }, ` (${said})`)),
    " ",
  ];
}
