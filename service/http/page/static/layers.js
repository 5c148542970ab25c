// The error of each layer, of the unfolded and of the folded graph: computed on request, as a proof is.

import { get } from "./api.js";
import { logarithmic } from "./charts.js";
import { h, number, size, table } from "./dom.js";
import { runJob } from "./job.js";

export function layersOf(model) {
  const place = h("div", {});
  const told = h("p", { role: "status", class: "quiet" });
  const button = h("button", { type: "button" }, "Show the error by layer");
  button.addEventListener("click", () => runJob(button, told, "Running both graphs layer by layer…", async () => {
    place.replaceChildren(...drawn(await get(`${model.path}/layers`)));
    button.hidden = true;
  }));
  return h("section", {}, h("h3", {}, "Error by layer"),
    h("p", { class: "quiet" }, "How far each layer is from float64, relative to its largest value: of the unfolded graph, and of the folded one where it still has this layer."),
    h("div", { class: "row" }, button, told), place);
}

function drawn({ layers, tensors, rows }) {
  if (!layers.length) return [h("p", { class: "quiet" }, "No layer could be compared.")];
  const shared = layers.filter((each) => each.folded !== null);
  const worst = (key, name) => {
    const found = (key === "folded" ? shared : layers).reduce((a, b) => (b[key] > a[key] ? b : a), { [key]: -1, name: "–" });
    return found[key] < 0 ? `the ${name} graph shares no layer` : `the ${name} graph is furthest from float64 in ${found.name}, by ${size(found[key])}`;
  };
  const some = layers.length === tensors ? "" : ` of ${tensors}, chosen at even distances`;
  const text = `${layers.length} layers${some}, ${rows} rows: ${worst("unfolded", "unfolded")}; ${worst("folded", "folded")}.`;
  const series = [layers.map((each) => each.unfolded), layers.map((each) => each.folded)];
  const [drawing, low, high] = logarithmic(series, text);
  return [
    h("p", {}, text), drawing, h("p", { class: "legend row" }, h("span", { class: "first" }, "unfolded"), h("span", { class: "second" }, "folded")),
    h("p", { class: "quiet" }, `Each line is a power of ten, from 1e${low} at the bottom to 1e${high} at the top. Layers stand in the order of the graph; an error of 0 is not drawn.`),
    h("details", {}, h("summary", {}, "The numbers"), table("Error by layer", ["#", "Layer", "Unfolded", "Folded"],
      layers.map((each, index) => [number(size(index + 1)), h("code", {}, each.name), number(size(each.unfolded)), number(size(each.folded))]))),
  ];
}
