import { fill, h } from "./dom.js";

export function start(panel, app) {
  fill(panel, h("p", {}, app.model().id));
}
