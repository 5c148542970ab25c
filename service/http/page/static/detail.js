// One BatchNorm: where it stands in the graph before and after the fold, and its numbers as drawings.

import { byChannel, histogram } from "./charts.js";
import { h, size, svg } from "./dom.js";

const [WIDTH, HEIGHT, GAP] = [176, 44, 26];
const LETTERS = 22;

export function drawnDetail(row, detail, close) {
  const { distributions, factors, before, after } = detail;
  const names = { gamma: "γ", beta: "β", mean: "μ", variance: "σ²" };
  const part = (title, content) => h("div", {}, h("h4", {}, title), content);
  const numbers = Object.entries(names).map(([key, name]) => part(name, distributions[key]
    ? histogram(distributions[key], `${name} of ${row.channels} channels, from ${size(distributions[key].min)} to ${size(distributions[key].max)}`)
    : h("p", { class: "quiet" }, "It has no constant numbers of this kind.")));
  return h("section", { class: "card", id: "batchnorm", tabindex: "-1", "aria-label": `BatchNorm ${row.name}` },
    h("div", { class: "head" }, h("h3", {}, row.name), h("button", { type: "button", onclick: close }, "Close")),
    h("p", {}, [row.became, row.statistics?.placement.text].filter(Boolean).join("; ")),
    h("div", { class: "two" }, part("Before", graph(before, "Before")), part("After", graph(after, "After"))),
    h("p", { class: "legend row" }, h("span", { class: "reference" }, "this BatchNorm"), h("span", {}, "absorbs it")),
    h("div", { class: "four" }, numbers),
    part("Factor by channel", factors
      ? byChannel(factors, `γ/√(σ² + ε) of ${factors.length} channels, from ${size(Math.min(...factors))} to ${size(Math.max(...factors))}`)
      : h("p", { class: "quiet" }, "It has no constant factors.")),
    row.statistics?.stretch && h("p", { class: "quiet" }, `Single weights that absorb it are multiplied by ${size(row.statistics.stretch.min)} to ${size(row.statistics.stretch.max)}, by all that is folded into them.`));
}

const short = (name) => (name.length > LETTERS ? `${name.slice(0, LETTERS / 2 - 1)}…${name.slice(-LETTERS / 2)}` : name);

// Nodes as boxes, a row for each rank, with a line for each tensor between them.
function graph({ nodes, edges }, title) {
  if (!nodes.length) return h("p", { class: "quiet" }, "Nothing around it is left in the folded graph.");
  const rows = [];
  nodes.forEach((node, index) => (rows[node.rank] ??= []).push(index));
  const widest = Math.max(...Array.from(rows, (row) => row?.length ?? 0));
  const place = new Map(rows.flatMap((row, rank) => (row ?? []).map((index, at) =>
    [index, [WIDTH * (at + (widest - row.length) / 2), rank * (HEIGHT + GAP)]])));
  const line = ([from, to]) => {
    const [[x1, y1], [x2, y2]] = [place.get(from), place.get(to)];
    return svg("line", { x1: x1 + WIDTH / 2, y1: y1 + HEIGHT - 4, x2: x2 + WIDTH / 2, y2: y2 + 4 });
  };
  const box = ({ name, operator, role }, index) => {
    const [x, y] = place.get(index);
    return svg("g", { class: `node ${role}`, transform: `translate(${x} ${y})` }, svg("title", {}, `${name} (${operator})`),
      svg("rect", { x: "4", y: "4", width: WIDTH - 8, height: HEIGHT - 8, rx: "6" }),
      svg("text", { x: WIDTH / 2, y: "19", class: "operator" }, short(operator)), svg("text", { x: WIDTH / 2, y: "33" }, short(name)));
  };
  const called = ({ name, operator }) => `${name} (${operator})`;
  const label = `${title}: ${edges.map(([from, to]) => `${called(nodes[from])} to ${called(nodes[to])}`).join("; ") || nodes.map(called).join("; ")}`;
  const [width, height] = [widest * WIDTH, rows.length * (HEIGHT + GAP) - GAP];
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `${title}, a drawing` },
    svg("svg", { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, edges.map(line), nodes.map(box)));
}
