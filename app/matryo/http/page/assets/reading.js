// From files and pasted text to texts.

export const MOST_TEXTS = 2000;
export const MOST_QUESTIONS = 10;
const MOST_FILE_BYTES = 10e6;
const TITLES = new Set(["text", "texts", "document", "content", "body", "sentence", "title"]);

/**
 * The texts of a string.
 * @param {string} string
 * @param {"lines"|"paragraphs"} by a text ends at a line's end, or at an empty line
 * @returns {string[]} without white space around them; none is empty
 */
export function textsOf(string, by) {
  const plain = string.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
  return plain
    .split(by === "lines" ? "\n" : /\n[^\S\n]*\n/)
    .map((part) => part.trim())
    .filter(Boolean);
}

/**
 * The texts of a file, by the end of its name: `.csv`: the first column, a title left out;
 * `.jsonl`: the field `text` of each line, or the line where it is a string; `.md`: parts between
 * empty lines; another: as pasted text.
 * @param {string} name
 * @param {string} content
 * @param {"lines"|"paragraphs"} by
 * @returns {string[]}
 * @throws {Error} a line of `.jsonl` has no text
 */
export function textsOfFile(name, content, by) {
  if (/\.csv$/i.test(name)) return firstColumn(content.replace(/^\ufeff/, ""));
  if (/\.(jsonl|ndjson)$/i.test(name)) return textFields(name, content.replace(/^\ufeff/, ""));
  return textsOf(content, /\.md$/i.test(name) ? "paragraphs" : by);
}

/**
 * The texts of a chosen or dropped file.
 * @param {File} file
 * @param {"lines"|"paragraphs"} by
 * @returns {Promise<string[]>}
 * @throws {Error} the file is too large, is no UTF-8, or holds no text
 */
export async function readFile(file, by) {
  if (file.size > MOST_FILE_BYTES) {
    const size = (file.size / 1e6).toFixed(1);
    throw new Error(`${file.name} has ${size} MB, and a file may have 10. Give a part of the file.`);
  }
  let content;
  try {
    content = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is no text in UTF-8. Save the file as UTF-8.`);
  }
  const texts = textsOfFile(file.name, content, by);
  if (!texts.length) throw new Error(`${file.name} holds no text. Choose another file.`);
  return texts;
}

function textFields(name, content) {
  return content.split(/\r?\n|\r/).flatMap((line, i) => {
    if (!line.trim()) return [];
    let found;
    try {
      const value = JSON.parse(line);
      found = typeof value === "string" ? value : value?.text;
    } catch {
      found = undefined;
    }
    if (typeof found === "string") return found.trim() ? [found.trim()] : [];
    throw new Error(`${name}: line ${i + 1} has no text in a field "text". Correct the line, or take it out.`);
  });
}

function firstColumn(content) {
  const [line] = content.split(/\r?\n|\r/, 1);
  // Spreadsheets of many countries write semicolons.
  const separator = [",", ";", "\t"].find((each) => line.includes(each)) ?? ",";
  const cells = [];
  let cell = "";
  let quoted = false;
  let first = true; // whether the cell is its row's first
  for (let i = 0; i <= content.length; i++) {
    const sign = content[i];
    if (quoted && sign !== undefined) {
      if (sign !== '"') cell += sign;
      else if (content[i + 1] === '"') cell += content[++i];
      else quoted = false;
    } else if (sign === '"' && !cell) quoted = true;
    else if (sign === separator || sign === "\n" || sign === "\r" || sign === undefined) {
      if (first) cells.push(cell.trim());
      first = sign !== separator;
      cell = "";
    } else cell += sign;
  }
  if (TITLES.has(cells[0]?.toLowerCase())) cells.shift();
  return cells.filter(Boolean);
}
