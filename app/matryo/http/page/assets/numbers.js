// The server's arithmetic of vectors, and what rankings tell of each other. Nothing here touches
// the page, so that tests run this file without one.

/**
 * @typedef {"float"|"int8"|"uint8"|"binary"|"ubinary"} NumberType
 * @typedef {Float32Array|Int8Array|Uint8Array} Row
 */

const TINY = 1.1754943508222875e-38; // the least normal float32, as the server has it
const INT8_SPAN = 6; // the server's: six times the root mean square of a unit vector's components
const BYTES = { float: 4, int8: 1, uint8: 1, binary: 1 / 8, ubinary: 1 / 8 };
const ONES = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let rest = byte; rest; rest >>= 1) count += rest & 1;
  return count;
});

/**
 * The first `size` components at unit length, as the server gives that size.
 *
 * Every model's last steps are the cut and the division by the length, so a vector of full size
 * holds all smaller ones.
 * @param {Float32Array} row a vector of full size
 * @param {number} size 1 to the full size
 * @returns {Float32Array}
 */
export function cut(row, size) {
  if (size === row.length) return row;
  let squares = 0;
  for (let i = 0; i < size; i++) squares += row[i] * row[i];
  const length = Math.max(Math.sqrt(squares), TINY);
  return Float32Array.from({ length: size }, (_, i) => row[i] / length);
}

/** Whether a number type can hold a size: bits fill their bytes. @param {number} size @param {NumberType} type */
export function fits(size, type) {
  return !type.endsWith("binary") || size % 8 === 0;
}

/**
 * A unit vector in a smaller number type, as the server makes it of float32.
 * @param {Float32Array} row
 * @param {NumberType} type
 * @returns {Row}
 */
export function quantize(row, type) {
  if (type === "float") return row;
  if (type === "ubinary") return packed(row);
  if (type === "binary") return Int8Array.from(packed(row), (byte) => byte - 128);
  // The product is rounded to float32 before it is rounded to a level, as on the server.
  const scale = Math.fround((127 * Math.sqrt(row.length)) / INT8_SPAN);
  const levels = Int8Array.from(row, (x) => Math.max(-127, Math.min(127, evenRound(Math.fround(x * scale)))));
  return type === "int8" ? levels : Uint8Array.from(levels, (level) => level + 128);
}

function packed(row) {
  const bytes = new Uint8Array(row.length / 8);
  row.forEach((x, i) => {
    if (x > 0) bytes[i >> 3] |= 128 >> (i & 7);
  });
  return bytes;
}

function evenRound(x) {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/**
 * How alike two vectors of one number type are; more is more alike.
 *
 * `float` and `int8`: the dot product. `uint8`: that of the levels, 128 taken off. Bits: minus
 * the number of bits that differ.
 * @param {Row} a
 * @param {Row} b
 * @param {NumberType} type
 */
export function score(a, b, type) {
  let total = 0;
  if (type.endsWith("binary")) {
    for (let i = 0; i < a.length; i++) total -= ONES[(a[i] ^ b[i]) & 255];
    return total;
  }
  const zero = type === "uint8" ? 128 : 0;
  for (let i = 0; i < a.length; i++) total += (a[i] - zero) * (b[i] - zero);
  return total;
}

/**
 * The documents' indices by each question, best first; equal scores keep the documents' order.
 * @param {Float32Array[]} documents of full size
 * @param {Float32Array[]} questions of full size
 * @param {number} size
 * @param {NumberType} type
 * @returns {number[][]} a list for each question
 */
export function rankings(documents, questions, size, type) {
  const smaller = (row) => quantize(cut(row, size), type);
  const rows = documents.map(smaller);
  return questions.map((question) => {
    const asked = smaller(question);
    return ranked(rows.map((row) => score(asked, row, type)));
  });
}

/** Indices of scores, the greatest first; equal scores keep their order. @param {number[]} scores */
export function ranked(scores) {
  return scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
}

/**
 * How many first places are compared: ten, or half of fewer than twenty documents, because of a
 * list that holds nearly all documents every ranking keeps most.
 * @param {number} count of documents
 */
export function places(count) {
  return Math.max(1, Math.min(10, Math.floor(count / 2)));
}

/** How many of the first `k` of one ranking are among the first `k` of another. */
export function overlap(one, other, k) {
  const held = new Set(one.slice(0, k));
  return other.slice(0, k).filter((i) => held.has(i)).length;
}

/**
 * Agreement of rankings with reference rankings, over the questions.
 * @param {number[][]} reference
 * @param {number[][]} other
 * @param {number} k places compared
 * @returns {{mean: number, least: number, first: number}} kept of `k`: on average, and for the
 *   question that keeps least; `first`: questions whose first place stays
 */
export function agreement(reference, other, k) {
  const kept = reference.map((ranking, i) => overlap(ranking, other[i], k));
  return {
    mean: kept.reduce((sum, n) => sum + n, 0) / kept.length,
    least: Math.min(...kept),
    first: reference.filter((ranking, i) => ranking[0] === other[i][0]).length,
  };
}

/**
 * What moved between two rankings of the same documents. Places count from 1.
 * @param {number[]} reference
 * @param {number[]} other
 * @param {number} k places shown
 * @returns {{top: {index: number, place: number, from: number}[],
 *            left: {index: number, place: number, from: number}[]}}
 *   `top`: the first `k` of `other`, each with its place in `reference`; `left`: the first `k` of
 *   `reference` that are not among them, each with its place in `other`
 */
export function moves(reference, other, k) {
  const was = new Map(reference.map((index, i) => [index, i + 1]));
  const is = new Map(other.map((index, i) => [index, i + 1]));
  const moved = (index) => ({ index, place: is.get(index), from: was.get(index) });
  return {
    top: other.slice(0, k).map(moved),
    left: reference
      .slice(0, k)
      .map(moved)
      .filter(({ place }) => place > k),
  };
}

/** Bytes of vectors, without what an index adds. @param {number} size @param {NumberType} type */
export function bytesOf(size, type, count = 1e6) {
  return size * BYTES[type] * count;
}

/**
 * The largest size that the server gives: the model's own, unless the server is bound to another.
 * @param {{native: number, can_be_cut: boolean, default: number}} dimensions
 */
export function fullSize({ native, can_be_cut: cuts, default: usual }) {
  return cuts ? native : usual;
}

/**
 * The sizes to compare, largest first: the trained ones; of a model that was trained for its full
 * size alone, also a half and a quarter, where the server cuts to any size.
 * @param {{native: number, trained: number[], can_be_cut: boolean, default: number, strict: boolean}} dimensions
 * @returns {{size: number, trained: boolean}[]}
 */
export function sizesOf(dimensions) {
  const { native, trained, can_be_cut: cuts, strict } = dimensions;
  if (!cuts) return [{ size: fullSize(dimensions), trained: true }];
  const sizes = [...new Set([native, ...trained])].map((size) => ({ size, trained: true }));
  if (sizes.length > 1 || strict) return sizes.sort((a, b) => b.size - a.size);
  const parts = [2, 4].map((n) => Math.floor(native / n / 8) * 8).filter((size) => size > 0);
  return [...sizes, ...parts.map((size) => ({ size, trained: false }))];
}
