// Makes elements, and writes numbers for people. Nothing here knows the server.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `attributes`: a function under a name such as `onclick` becomes a listener; true an
 * attribute without a value; false, null and undefined none. `style` does not work under the page's
 * Content-Security-Policy: use classes, or `element.style`. Children are nodes, texts and lists of
 * them; null and false are left out.
 */
export function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same, of SVG. */
export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false);
}

/** Give `element` other children. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/**
 * A table that scrolls inside its own region, which the keyboard reaches. The first cell of each row
 * is the row's header. Cells are texts, nodes, or `{text, class}`, whose text may be a node.
 */
export function table(caption, head, rows, attributes) {
  const cell = (tag, extra) => (value) => {
    const { text, ...own } = isCell(value) ? value : { text: value };
    return h(tag, { ...extra, ...own }, text);
  };
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    h(
      "table",
      attributes,
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, head.map(cell("th", { scope: "col" })))),
      h(
        "tbody",
        {},
        rows.map(([first, ...rest]) =>
          h("tr", {}, cell("th", { scope: "row" })(first), rest.map(cell("td")))
        )
      )
    )
  );
}

function isCell(value) {
  return value !== null && typeof value === "object" && !(value instanceof Node) && "text" in value;
}

/** A labelled control: the label stands above. */
export function field(label, control, hint) {
  const id = (control.id ||= `field-${++lastId}`);
  if (hint) {
    control.setAttribute("aria-describedby", `${id}-hint`);
    hint = h("span", { id: `${id}-hint`, class: "hint" }, hint);
  }
  return h("div", { class: "field" }, h("label", { for: id }, label), control, hint);
}

let lastId = 0;

/** A select of `[value, text]` pairs. */
export function select(attributes, choices, value) {
  const element = h(
    "select",
    attributes,
    choices.map(([key, text]) => h("option", { value: key, selected: key === value }, text))
  );
  return element;
}

/** A button that copies what `text()` returns. */
export function copyButton(label, text, announce) {
  const button = h("button", { type: "button", class: "copy", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.textContent = done ? "Copied" : "Not copied";
    announce(done ? "Copied" : "The browser does not let this page copy");
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, browsers keep the clipboard from pages of other machines.
    const held = document.activeElement;
    const area = h("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.focus({ preventScroll: true });
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    held.focus({ preventScroll: true });
    return done;
  }
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Numbers for people. */
export const fmt = {
  /** 12,345 */
  int: (n) => whole.format(n),
  /** A number with so many decimals. */
  fixed: (n, digits = 2) => n.toFixed(digits),
  /** About three digits: 0.42, 4.2, 42, 4,200. */
  short: (n) => (n >= 100 ? whole.format(n) : n >= 10 ? n.toFixed(1) : n.toFixed(2)),
  /** 3.1 MB: thousands, as disks are sold. */
  bytes(n) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    for (; n >= 999.5 && unit < units.length - 1; unit++) n /= 1000;
    return `${unit && n < 99.95 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
  },
  /** 340 µs, 12 ms, 1.3 s. */
  seconds(s) {
    if (s === 0) return "0 s";
    if (s < 0.0009995) return `${Math.round(s * 1e6)} µs`;
    if (s < 0.0995) return `${(s * 1000).toFixed(1)} ms`;
    if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
    return `${s < 99.5 ? s.toFixed(1) : Math.round(s)} s`;
  },
};
