// Vectors by principal components, and in clusters. Each function gives the same result for the
// same vectors, and lets the page draw while it works.

const COMPONENTS = 8;
const FEWEST = 30; // steps of Lanczos' method
const STEPS = 100; // at most
const PRECISE = 1e-7; // of the largest eigenvalue
const ROUNDS = 40; // of k-means at most
const STARTS = 8; // of k-means for each number of clusters
export const MOST_CLUSTERS = 8;

/** @returns {() => number} numbers from 0 to 1, the same ones for a seed */
function random(seed) {
  let state = seed; // mulberry32
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** A function to await often; it waits a turn of the event loop where 15 ms have passed. */
function pauses() {
  let last = Date.now();
  return async () => {
    if (Date.now() - last < 15) return;
    await new Promise((resolve) => setTimeout(resolve));
    last = Date.now();
  };
}

const dot = (a, b) => {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
};

/**
 * Rows by their principal components, which hold the most of the rows' variance.
 *
 * Lanczos' method on the covariance, which is never formed; each vector is made orthogonal to all
 * before it. A component's largest weight is positive.
 * @param {Float32Array[]} rows at least one
 * @param {number} [count] components; fewer if the rows have fewer
 * @returns {Promise<{points: number[][], shares: number[]}>} `points`: `count` numbers of each row,
 *   zeros after the last component; `shares`: of the variance, 0 to 1
 */
export async function principalComponents(rows, count = COMPONENTS) {
  const pause = pauses();
  const mean = meanOf(rows);
  const centred = [];
  let total = 0;
  for (const row of rows) {
    const own = Float64Array.from(row);
    for (let i = 0; i < own.length; i++) own[i] -= mean[i];
    total += dot(own, own);
    centred.push(own);
    await pause();
  }
  const shares = Array.from({ length: count }, () => 0);
  const points = rows.map(() => shares.slice());
  // Of equal rows nothing but rounding would be drawn.
  if (total < 1e-10 * rows.length) return { points, shares };
  const found = await largest(centred, count, pause);
  for (const [c, { value, vector }] of found.entries()) {
    const weight = vector.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0);
    shares[c] = Math.max(0, value / total);
    centred.forEach((row, i) => (points[i][c] = Math.sign(weight) * dot(row, vector)));
    await pause();
  }
  return { points, shares };
}

/** The largest eigenvalues of the rows' scatter, and their vectors. */
async function largest(centred, count, pause) {
  const draw = random(1);
  const width = centred[0].length;
  const most = Math.min(STEPS, width, centred.length);
  const basis = [];
  const diagonal = [];
  const beside = []; // the tridiagonal matrix' other numbers
  let next = new Float64Array(width); // among the rows, where all components lie
  for (const row of centred) add(next, draw() - 0.5, row);
  let length = Math.sqrt(dot(next, next));
  let found = [];
  for (let step = 0; step < most; step++) {
    basis.push(next.map((x) => x / length));
    next = new Float64Array(width);
    for (const row of centred) {
      add(next, dot(row, basis[step]), row);
      await pause();
    }
    diagonal.push(dot(next, basis[step]));
    orthogonalize(next, basis);
    length = Math.sqrt(dot(next, next));
    if (step === most - 1 || (step >= FEWEST && step % 10 === 0)) {
      found = eigen(diagonal, beside).slice(0, count);
      // The plane's two must be right; of the others, the bulk of the variance is enough.
      const isPrecise = ({ vector }) => length * Math.abs(vector[step]) < PRECISE * found[0].value;
      if (found.slice(0, 2).every(isPrecise)) break;
    }
    beside.push(length);
    if (length <= 1e-12 * Math.max(...diagonal)) {
      // All that this start can reach is found; another start may reach more.
      beside[step] = 0;
      next = next.map(() => draw() - 0.5);
      orthogonalize(next, basis);
      length = Math.sqrt(dot(next, next));
    }
  }
  return found.map(({ value, vector }) => {
    const whole = new Float64Array(width);
    vector.forEach((weight, j) => add(whole, weight, basis[j]));
    return { value, vector: whole };
  });
}

function add(to, weight, row) {
  for (let i = 0; i < to.length; i++) to[i] += weight * row[i];
}

/** Take what lies along the basis out of a vector; the second time, what rounding left. */
function orthogonalize(vector, basis) {
  for (const each of [...basis, ...basis]) add(vector, -dot(vector, each), each);
}

/** Eigenvalues, largest first, and vectors of a symmetric tridiagonal matrix; Jacobi's rotations. */
function eigen(diagonal, beside) {
  const n = diagonal.length;
  const a = diagonal.map((x, i) => diagonal.map((_, j) => (i === j ? x : 0)));
  for (let i = 0; i + 1 < n; i++) a[i][i + 1] = a[i + 1][i] = beside[i];
  const v = a.map((_, i) => a.map((_row, j) => (i === j ? 1 : 0)));
  const greatest = Math.max(...diagonal.map(Math.abs));
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        off = Math.max(off, Math.abs(a[p][q]));
        if (Math.abs(a[p][q]) < 1e-300) continue;
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1);
        const s = t * c;
        const turned = (x, y) => [c * x - s * y, s * x + c * y];
        for (let i = 0; i < n; i++) [a[i][p], a[i][q]] = turned(a[i][p], a[i][q]);
        for (let i = 0; i < n; i++) [a[p][i], a[q][i]] = turned(a[p][i], a[q][i]);
        for (let i = 0; i < n; i++) [v[i][p], v[i][q]] = turned(v[i][p], v[i][q]);
      }
    }
    if (off <= 1e-14 * greatest) break;
  }
  const pairs = a.map((row, i) => ({ value: row[i], vector: v.map((line) => line[i]) }));
  return pairs.sort((x, y) => y.value - x.value);
}

function meanOf(rows) {
  const mean = new Float64Array(rows[0].length);
  for (const row of rows) add(mean, 1 / rows.length, row);
  return mean;
}

function apart(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += (a[i] - b[i]) ** 2;
  return total;
}

/**
 * Points in clusters: k-means with fixed starts, of which the best counts.
 *
 * The first principal components tell subjects better apart than whole vectors do: what the rest
 * holds is mostly of one text alone.
 * @param {number[][]} points at least one
 * @param {number} [wanted] clusters; without it, the number from 2 to 8 with the greatest ratio of
 *   the variance between clusters to that within (Calinski and Harabasz, 1974)
 * @returns {Promise<number[][]>} each cluster's points, the nearest to its centre first; the
 *   largest cluster first
 */
export async function clusters(points, wanted) {
  const pause = pauses();
  const mean = meanOf(points);
  const total = points.reduce((sum, point) => sum + apart(point, mean), 0);
  let best = { labels: points.map(() => 0), centres: [mean] };
  let highest = 0;
  const from = wanted ?? 2;
  const to = wanted ?? Math.min(MOST_CLUSTERS, Math.floor(points.length / 3));
  for (let k = from; k <= to && total > 0; k++) {
    const made = await kMeans(points, k, pause);
    const within = made.spread / Math.max(1, points.length - k);
    const ratio = (total - made.spread) / Math.max(1, k - 1) / Math.max(within, 1e-12 * total);
    if (ratio > highest) [best, highest] = [made, ratio];
  }
  const members = best.centres.map((centre, c) => {
    const own = points.flatMap((point, i) => (best.labels[i] === c ? [{ i, far: apart(point, centre) }] : []));
    return own.sort((a, b) => a.far - b.far || a.i - b.i).map(({ i }) => i);
  });
  return members.filter((own) => own.length).sort((a, b) => b.length - a.length || a[0] - b[0]);
}

async function kMeans(points, k, pause) {
  let best = null;
  for (let seed = 1; seed <= STARTS; seed++) {
    const made = await fromOneStart(points, k, random(seed), pause);
    if (!best || made.spread < best.spread) best = made;
  }
  return best;
}

async function fromOneStart(points, k, draw, pause) {
  let centres = [points[Math.floor(draw() * points.length)]];
  const far = points.map(() => Infinity);
  while (centres.length < k) {
    // k-means++: a point far from every centre is likely the next.
    points.forEach((point, i) => (far[i] = Math.min(far[i], apart(point, centres.at(-1)))));
    let rest = draw() * far.reduce((sum, x) => sum + x, 0);
    const chosen = far.findIndex((x) => (rest -= x) < 0);
    centres.push(points[Math.max(0, chosen)]);
  }
  let labels = [];
  let spread = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const before = labels;
    const found = points.map((point) => nearestOf(point, centres));
    labels = found.map(([label]) => label);
    spread = found.reduce((sum, [, distance]) => sum + distance, 0);
    await pause();
    if (labels.every((label, i) => label === before[i])) break;
    centres = centres.map((centre, c) => {
      const own = points.filter((_, i) => labels[i] === c);
      return own.length ? meanOf(own) : centre;
    });
  }
  return { labels, centres, spread };
}

function nearestOf(point, centres) {
  let [label, least] = [0, Infinity];
  centres.forEach((centre, c) => {
    const distance = apart(point, centre);
    if (distance < least) [label, least] = [c, distance];
  });
  return [label, least];
}
