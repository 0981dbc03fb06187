// The documents on a plane: two principal components, coloured and shaped by cluster or by file.

import {
  collected,
  documentsInput,
  hasDocuments,
  inputTypeOf,
  onDocuments,
  readingNotes,
  starter,
  takeSample,
  vectorsOf,
} from "./documents.js";
import { field, fill, fmt, h, select, svg, table } from "./dom.js";
import { MOST_CLUSTERS, clusters, principalComponents } from "./plane.js";
import { refill } from "./ranks.js";

const SHAPES = [
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
  "M-.9-.9h1.8v1.8h-1.8z",
  "M0-1.15 1.1.85h-2.2z",
  "M0-1.3 1.1 0 0 1.3-1.1 0z",
  "M0 1.15 1.1-.85h-2.2z",
  "M-.4-1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z",
  "M0-1.3.35-.4 1.3-.4.55.2.8 1.15 0 .6-.8 1.15-.55.2-1.3-.4-.35-.4z",
  "M-.6-1.1h1.2L1.2 0 .6 1.1h-1.2L-1.2 0z",
];
const EDGE = 16; // px around the points
const REACH = 28; // px from the pointer to a point that is shown
const NEAREST = 3; // texts shown of a group
const LONGEST = 160; // characters of a text that is shown

const STEPS = {
  ArrowRight: ["across", 1],
  ArrowLeft: ["across", -1],
  ArrowDown: ["down", 1],
  ArrowUp: ["down", -1],
  Home: ["across", -Infinity],
  End: ["across", Infinity],
};

/** Fill the panel. */
export function start(panel, app) {
  const results = h("div", { class: "stack" });
  const drawing = starter(app, panel, "Draw", "primary", async (work) => {
    const model = app.model();
    const documents = collected();
    if (documents.texts.length < 3) {
      throw new Error("There are fewer than three documents, of which no map can be made. Add documents.");
    }
    const found = await vectorsOf(app, model, "documents", documents.texts, inputTypeOf(model, "document"), work);
    const plane = await principalComponents(found.rows);
    work.signal.throwIfAborted();
    const grouping = await clusters(plane.points);
    work.signal.throwIfAborted();
    show(results, { ...documents, notes: readingNotes(found, model), plane, grouping });
    app.announce(`A map of ${documents.texts.length} texts in ${grouping.length} clusters`);
  });
  const sample = h("button", { type: "button", onclick: () => take() }, "Take the sample");

  function take() {
    takeSample();
    drawing.run();
  }

  function stale() {
    drawing.stop();
    fill(results);
  }

  onDocuments(stale);
  app.onModel(stale);
  fill(
    panel,
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Which texts lie together"),
      documentsInput(panel, app, 4),
      h("div", { class: "row" }, drawing.button, sample),
      drawing.progress
    ),
    results
  );
  if (hasDocuments()) drawing.run();
}

/** Groups of the texts: `{name, members}`, members of a cluster nearest to its centre first. */
function groupsOf({ texts, source, sources, grouping }, by) {
  if (by === "clusters") return grouping.map((members, i) => ({ name: `Cluster ${i + 1}`, members }));
  const files = sources.map((name, i) => ({
    name,
    members: texts.flatMap((_, at) => (source[at] === i ? [at] : [])),
  }));
  if (files.length <= SHAPES.length) return files;
  const rest = files.splice(SHAPES.length - 1);
  return [...files, { name: `${rest.length} other files`, members: rest.flatMap(({ members }) => members) }];
}

function show(results, map) {
  const view = { by: map.sources.length > 1 ? "files" : "clusters", count: "auto" };
  const controls = h("div", { class: "row controls" });
  const body = h("div", { class: "stack" });
  const draw = () => {
    const groups = groupsOf(map, view.by);
    refill(
      controls,
      map.sources.length > 1 &&
        field(
          "Colour and shape by",
          select(
            { "data-key": "by", onchange: (event) => ((view.by = event.target.value), draw()) },
            [
              ["files", "File"],
              ["clusters", "Cluster"],
            ],
            view.by
          )
        ),
      view.by === "clusters" &&
        field(
          "Clusters",
          select(
            { "data-key": "count", onchange: (event) => recount(event.target.value) },
            [["auto", "The most distinct"], ...counts(map).map((n) => [n, n])],
            view.count
          )
        )
    );
    fill(body, plotOf(map, groups), legend(groups), groupTable(map, groups, view.by));
  };
  const recount = async (count) => {
    view.count = count;
    map.grouping = await clusters(map.plane.points, count === "auto" ? undefined : Number(count));
    if (view.count === count) draw();
  };
  const [first, second] = map.plane.shares.map((share) => `${fmt.short(100 * share)} %`);
  const both = fmt.short(100 * (map.plane.shares[0] + map.plane.shares[1]));
  draw();
  fill(
    results,
    map.notes && h("p", { class: "warning" }, map.notes),
    h(
      "section",
      { class: "card" },
      h("h2", {}, `${fmt.int(map.texts.length)} texts on a plane`),
      h(
        "p",
        { class: "muted" },
        `The two axes hold ${both} % of the variance: ${first} from left to right, ${second} from bottom to top. ` +
          "Texts that lie together here may differ in what the axes leave out. Clusters are found in the first eight axes."
      ),
      controls,
      body
    )
  );
}

function counts({ texts }) {
  return Array.from({ length: MOST_CLUSTERS - 1 }, (_, i) => String(i + 2)).filter((n) => Number(n) <= texts.length);
}

const clip = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);

const symbol = (group, scale) => svg("path", { class: `g${group}`, d: SHAPES[group], transform: `scale(${scale})` });

function legend(groups) {
  return h(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    groups.map(({ name, members }, i) =>
      h(
        "li",
        {},
        svg("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, symbol(i, 6)),
        `${name} (${fmt.int(members.length)})`
      )
    )
  );
}

function groupTable({ texts }, groups, by) {
  const title = by === "clusters" ? "Nearest to the centre" : "First texts";
  return table(
    "The texts of each group",
    [by === "clusters" ? "Cluster" : "File", { text: "Texts", class: "num" }, title],
    groups.map(({ name, members }) => [
      name,
      { text: fmt.int(members.length), class: "num" },
      h(
        "ul",
        { class: "nearest" },
        members.slice(0, NEAREST).map((i) => h("li", {}, h("bdi", {}, clip(texts[i]))))
      ),
    ]),
    { class: "groups" }
  );
}

// --- the plot

function plotOf({ texts, plane }, groups) {
  const groupOf = new Map(groups.flatMap(({ members }, group) => members.map((i) => [i, group])));
  const along = (axis, sign) =>
    texts.map((_, i) => i).sort((a, b) => sign * (plane.points[a][axis] - plane.points[b][axis]) || a - b);
  const orders = { across: along(0, 1), down: along(1, -1) }; // every text has a place in both
  const tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
  const points = texts.map((text, i) => {
    const group = groupOf.get(i);
    const label = `${clip(text)} (${groups[group].name})`;
    return svg(
      "g",
      { role: "option", "aria-label": label, "aria-selected": "false", tabindex: i === orders.across[0] ? 0 : -1 },
      symbol(group, 1)
    );
  });
  const list = svg(
    "g",
    { role: "listbox", "aria-label": "Texts on the plane; arrow keys go to the next one across or down" },
    points
  );
  const canvas = svg("svg", { class: "plot" }, list);
  const box = h("div", { class: "plane" }, canvas, tip);
  let places = [];
  let shown = -1;

  function lay() {
    const { width, height } = canvas.getBoundingClientRect();
    if (!width) return; // the tab is not open
    const scale =
      ([from, to], low, high) =>
      (x) =>
        low + (high - low) * (to > from ? (x - from) / (to - from) : 0.5);
    const across = scale(range(plane.points, 0), EDGE, width - EDGE);
    const up = scale(range(plane.points, 1), height - EDGE, EDGE);
    const radius = texts.length > 400 ? 3.5 : texts.length > 100 ? 4.5 : 6;
    places = plane.points.map(([x, y]) => [across(x), up(y)]);
    points.forEach((point, i) => {
      point.setAttribute("transform", `translate(${places[i].map((x) => x.toFixed(1))})`);
      point.firstChild.setAttribute("transform", `scale(${radius})`);
    });
    tell(-1);
  }

  function tell(i) {
    points[shown]?.classList.remove("shown");
    shown = i;
    tip.hidden = i < 0;
    if (i < 0) return;
    points[i].classList.add("shown");
    fill(tip, h("strong", {}, groups[groupOf.get(i)].name), h("span", { dir: "auto" }, clip(texts[i])));
    const { width, height } = canvas.getBoundingClientRect();
    const [x, y] = places[i];
    tip.style.left = `${Math.max(0, Math.min(x + 12, width - tip.offsetWidth))}px`;
    const below = y + 14 + tip.offsetHeight <= height;
    tip.style.top = `${below ? y + 14 : Math.max(0, y - 14 - tip.offsetHeight)}px`;
  }

  function point({ clientX, clientY }) {
    const { left, top } = canvas.getBoundingClientRect();
    let [best, least] = [-1, REACH];
    places.forEach(([x, y], i) => {
      const far = Math.hypot(x - clientX + left, y - clientY + top);
      if (far < least) [best, least] = [i, far];
    });
    tell(best);
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") tell(points.indexOf(document.activeElement));
  });
  // Chromium puts SVG elements that listen to the focus into the order of Tab.
  box.addEventListener("focusin", (event) => tell(points.indexOf(event.target)));
  box.addEventListener("focusout", () => tell(-1));
  box.addEventListener("keydown", (event) => {
    const from = points.indexOf(document.activeElement);
    if (event.key === "Escape") tell(-1);
    const [order, step] = STEPS[event.key] ?? [];
    if (!order || from < 0) return;
    event.preventDefault();
    const line = orders[order];
    const to = line.at(Math.max(0, Math.min(line.length - 1, line.indexOf(from) + step)));
    points[from].setAttribute("tabindex", -1);
    points[to].setAttribute("tabindex", 0);
    points[to].focus();
  });
  new ResizeObserver(lay).observe(canvas);
  return box;
}

function range(points, axis) {
  let [low, high] = [Infinity, -Infinity];
  for (const point of points) [low, high] = [Math.min(low, point[axis]), Math.max(high, point[axis])];
  return [low, high];
}
