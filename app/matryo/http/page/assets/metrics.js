// Prometheus' text as numbers, and what two scrapes say of the time between them. Pure.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)",?/g;
const ESCAPES = { "\\\\": "\\", '\\"': '"', "\\n": "\n" };

/** `{name: [{labels, value}]}` of the samples whose names begin with `prefix`. */
export function parse(text, prefix = "") {
  const found = {};
  for (const line of text.split("\n")) {
    if (!line.startsWith(prefix)) continue;
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    if (name) (found[name] ??= []).push({ labels: labelsOf(labels), value: numberOf(value) });
  }
  return found;
}

function labelsOf(text) {
  const pairs = text.matchAll(LABEL);
  return Object.fromEntries(
    Array.from(pairs, ([, name, value]) => [name, value.replace(/\\./g, (pair) => ESCAPES[pair] ?? pair)])
  );
}

function numberOf(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}

/** The sum of a metric's samples for which `keep(labels)` is true; 0 where there is none. */
export function sum(samples, name, keep = () => true) {
  return (samples[name] ?? []).reduce((all, { labels, value }) => (keep(labels) ? all + value : all), 0);
}

/** The largest of them, or null where there is none. */
export function most(samples, name) {
  const values = (samples[name] ?? []).map(({ value }) => value);
  return values.length ? Math.max(...values) : null;
}

/**
 * By how much each sample of a counter grew, summed. A counter that fell began anew, as
 * Prometheus' `increase` has it.
 */
export function growth(before, after, name, keep = () => true) {
  const key = ({ labels }) => JSON.stringify(Object.entries(labels).sort());
  const old = new Map((before[name] ?? []).map((sample) => [key(sample), sample.value]));
  return (after[name] ?? []).reduce((all, sample) => {
    if (!keep(sample.labels)) return all;
    const from = old.get(key(sample)) ?? 0;
    return all + (sample.value >= from ? sample.value - from : sample.value);
  }, 0);
}

/**
 * The quantile of what a histogram observed between two scrapes, as Prometheus'
 * `histogram_quantile` interpolates; null if it observed nothing. Observations above the last bound
 * have that bound.
 */
export function quantile(q, before, after, name, keep = () => true) {
  const bounds = [...new Set((after[name] ?? []).map(({ labels }) => labels.le))]
    .map((le) => ({ le, bound: numberOf(le) }))
    .sort((one, other) => one.bound - other.bound);
  const counts = bounds.map(({ le }) =>
    growth(before, after, name, (labels) => labels.le === le && keep(labels))
  );
  const all = counts.at(-1);
  if (!all) return null;
  const index = counts.findIndex((count) => count >= q * all);
  const { bound } = bounds[index];
  const low = index ? bounds[index - 1].bound : 0;
  if (bound === Infinity) return low;
  const below = index ? counts[index - 1] : 0;
  return low + ((bound - low) * (q * all - below)) / (counts[index] - below);
}
