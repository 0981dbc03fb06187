// Vectors on a plane (principal components) and in clusters (k-means). Each function gives the
// same result for the same vectors, and lets the page draw while it works.

const STEPS = 80; // of Lanczos' method at most; two components of real texts take about 30
const PRECISE = 1e-7; // of a component's variance
const ROUNDS = 40; // of k-means at most
const STARTS = 3; // of k-means for each number of clusters
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
 * Rows on the plane of their two principal components.
 *
 * Lanczos' method on the covariance, which is never formed; each vector is made orthogonal to all
 * before it. A component's largest weight is positive.
 * @param {Float32Array[]} rows at least one
 * @returns {Promise<{points: [number, number][], shares: [number, number]}>} `shares`: of the
 *   variance, 0 to 1
 */
export async function principalPlane(rows) {
  const pause = pauses();
  const width = rows[0].length;
  const mean = meanOf(
    rows,
    rows.map((_, i) => i),
    width
  );
  const centred = rows.map((row) => Float64Array.from(row, (x, i) => x - mean[i]));
  const total = centred.reduce((sum, row) => sum + dot(row, row), 0);
  // Of equal rows nothing but rounding would be drawn.
  if (total < 1e-10 * rows.length) return { points: rows.map(() => [0, 0]), shares: [0, 0] };
  const axes = [];
  const shares = [];
  for (const { value, vector } of await largestTwo(centred, width, pause)) {
    const weight = vector.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0);
    axes.push(weight < 0 ? vector.map((x) => -x) : vector);
    shares.push(Math.max(0, value / total));
  }
  while (axes.length < 2) {
    axes.push(new Float64Array(width));
    shares.push(0);
  }
  return { points: centred.map((row) => [dot(row, axes[0]), dot(row, axes[1])]), shares };
}

async function largestTwo(centred, width, pause) {
  const draw = random(1);
  const basis = [];
  const diagonal = [];
  const beside = []; // the tridiagonal matrix' other numbers
  const most = Math.min(STEPS, width, centred.length);
  let next = new Float64Array(width); // among the rows, where all components lie
  for (const row of centred) {
    const weight = draw() - 0.5;
    for (let i = 0; i < width; i++) next[i] += weight * row[i];
  }
  let found = [];
  for (let step = 0; step < most; step++) {
    const length = Math.sqrt(dot(next, next));
    basis.push(next.map((x) => x / length));
    const image = new Float64Array(width);
    for (const row of centred) {
      const along = dot(row, basis[step]);
      for (let i = 0; i < width; i++) image[i] += along * row[i];
      await pause();
    }
    diagonal.push(dot(image, basis[step]));
    let rest = orthogonal(image, basis);
    let size = Math.sqrt(dot(rest, rest));
    if (step % 5 === 4 || step === most - 1) {
      found = eigen(diagonal, beside).slice(0, 2);
      if (found.every(({ vector }) => size * Math.abs(vector[step]) < PRECISE * found[0].value)) break;
    }
    if (size <= 1e-12 * Math.max(...diagonal)) {
      // All that this start can reach is found; another start may reach more.
      rest = orthogonal(
        rest.map(() => draw() - 0.5),
        basis
      );
      size = 0;
    }
    beside.push(size);
    next = rest;
    await pause();
  }
  return found.map(({ value, vector }) => {
    const whole = new Float64Array(width);
    vector.forEach((weight, j) => basis[j].forEach((x, i) => (whole[i] += weight * x)));
    return { value, vector: whole };
  });
}

function orthogonal(vector, basis) {
  const rest = Float64Array.from(vector);
  for (const each of [...basis, ...basis]) {
    const along = dot(rest, each); // twice: once leaves what rounding brought in
    for (let i = 0; i < rest.length; i++) rest[i] -= along * each[i];
  }
  return rest;
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

function meanOf(rows, members, width) {
  const mean = new Float64Array(width);
  for (const member of members) rows[member].forEach((x, i) => (mean[i] += x / members.length));
  return mean;
}

const apart = (a, b) => {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += (a[i] - b[i]) ** 2;
  return total;
};

/**
 * Rows in clusters: k-means with fixed starts, the best of three.
 *
 * @param {Float32Array[]} rows at least one
 * @param {number} [wanted] clusters; without a number, the one of 2 to 8 whose clusters are the
 *   most distinct by the mean silhouette to their centres
 * @returns {Promise<{labels: number[], nearest: number[][]}>} the clusters are numbered by their
 *   number of rows, largest first; `nearest`: each cluster's rows, nearest to its centre first
 */
export async function clusters(rows, wanted) {
  const pause = pauses();
  const most = Math.min(MOST_CLUSTERS, Math.floor(rows.length / 3));
  const numbers = [];
  if (wanted) numbers.push(Math.min(wanted, rows.length));
  else for (let k = 2; k <= most; k++) numbers.push(k);
  let best = {
    labels: rows.map(() => 0),
    centres: [
      meanOf(
        rows,
        rows.map((_, i) => i),
        rows[0].length
      ),
    ],
  };
  let highest = -Infinity;
  for (const k of numbers) {
    const made = await kMeans(rows, k, pause);
    const clear = silhouette(rows, made);
    if (clear > highest) [best, highest] = [made, clear];
  }
  const members = best.centres.map((centre, c) =>
    rows
      .flatMap((row, i) => (best.labels[i] === c ? [{ i, far: apart(row, centre) }] : []))
      .sort((a, b) => a.far - b.far || a.i - b.i)
      .map(({ i }) => i)
  );
  const nearest = members
    .filter((rowsOf) => rowsOf.length)
    .sort((a, b) => b.length - a.length || a[0] - b[0]);
  const labels = rows.map(() => 0);
  nearest.forEach((rowsOf, c) => rowsOf.forEach((i) => (labels[i] = c)));
  return { labels, nearest };
}

async function kMeans(rows, k, pause) {
  let best = null;
  for (let start = 0; start < STARTS; start++) {
    const made = await oneStart(rows, k, random(start + 1), pause);
    if (!best || made.spread < best.spread) best = made;
  }
  return best;
}

async function oneStart(rows, k, draw, pause) {
  const centres = [Float64Array.from(rows[Math.floor(draw() * rows.length)])];
  const far = rows.map(() => Infinity);
  while (centres.length < k) {
    // k-means++: a row far from every centre is likely the next
    rows.forEach((row, i) => (far[i] = Math.min(far[i], apart(row, centres.at(-1)))));
    let rest = draw() * far.reduce((sum, x) => sum + x, 0);
    const chosen = far.findIndex((x) => (rest -= x) < 0);
    centres.push(Float64Array.from(rows[Math.max(0, chosen)]));
    await pause();
  }
  let labels = [];
  let spread = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const before = labels;
    labels = [];
    spread = 0;
    for (const row of rows) {
      const [label, distance] = nearestOf(row, centres);
      labels.push(label);
      spread += distance;
      await pause();
    }
    if (labels.every((label, i) => label === before[i])) break;
    centres.forEach((_, c) => {
      const members = rows.flatMap((_row, i) => (labels[i] === c ? [i] : []));
      if (members.length) centres[c] = meanOf(rows, members, rows[0].length);
    });
  }
  return { labels, centres, spread };
}

function nearestOf(row, centres) {
  let [label, least] = [0, Infinity];
  centres.forEach((centre, c) => {
    const distance = apart(row, centre);
    if (distance < least) [label, least] = [c, distance];
  });
  return [label, least];
}

/** The mean over rows of (b - a) / b, where a and b are the distances to the own and next centre. */
function silhouette(rows, { centres, labels }) {
  if (centres.length < 2) return 0;
  const each = rows.map((row, i) => {
    const own = Math.sqrt(apart(row, centres[labels[i]]));
    const others = centres.map((centre, c) => (c === labels[i] ? Infinity : apart(row, centre)));
    const next = Math.sqrt(Math.min(...others));
    return next > 0 ? (next - own) / Math.max(next, own) : 0;
  });
  return each.reduce((sum, x) => sum + x, 0) / rows.length;
}
