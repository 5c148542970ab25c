// BatchNorms: what became of each, sortable and filtered, and its statistics on request.

import { ApiError, get } from "./api.js";
import { range } from "./charts.js";
import { h, number, size, table } from "./dom.js";

const FILTERS = { all: "All", folded: "Folded", kept: "Kept", suspicious: "Suspicious" };
const SPANS = { gamma: "γ", beta: "β", mean: "μ", variance: "σ²" };

export const needsServing = true;

export async function show(panel, model) {
  const path = `${model.path}/batchnorms`;
  let rows = rowsOf(await get(path));
  let inspected = false;
  let filter = "all";
  let order = { key: "position", down: false };
  const place = h("div", {});
  const told = h("p", { role: "status", class: "quiet" });
  const draw = () => {
    const wanted = rows.filter((row) => filter === "all" || row[filter]);
    wanted.sort((a, b) => (order.down ? -1 : 1) * compared(a[order.key], b[order.key]));
    place.replaceChildren(wanted.length ? tableOf(wanted, inspected, order, draw) : h("p", { class: "quiet" }, "No BatchNorm is of this kind."));
  };
  const choose = (name) => h("label", {}, h("input", { type: "radio", name: "kind", checked: name === filter, onchange: () => { filter = name; draw(); } }), ` ${FILTERS[name]}`);
  const button = h("button", { type: "button" }, "Show statistics");
  button.addEventListener("click", async () => {
    button.disabled = true;
    told.textContent = "Reading the unfolded model…";
    try {
      rows = rowsOf(await get(`${path}?statistics=true`));
      inspected = true;
      told.textContent = suspicionText(rows);
      button.hidden = true;
      draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      told.replaceChildren(h("span", { class: "error" }, error.message));
      button.disabled = false;
    }
  });
  panel.append(h("p", {}, `${rows.filter((row) => row.folded).length} of ${rows.length} BatchNorms are folded, ${rows.filter((row) => row.kept).length} are kept.`),
    h("fieldset", {}, h("legend", {}, "Which"), h("div", { class: "row" }, Object.keys(FILTERS).map(choose))),
    h("div", { class: "row" }, button, told), place);
  draw();
}

const suspicionText = (rows) => `${rows.filter((row) => row.suspicious).length} of ${rows.length} BatchNorms are suspicious.`;

const compared = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? "")));

function rowsOf({ folded, kept, inspection }) {
  const found = inspection?.batchnorms ?? [];
  const texts = new Map();
  for (const each of inspection?.suspicions ?? []) {
    for (const name of [each.name, ...each.also]) texts.set(name, [...(texts.get(name) ?? []), name === each.name ? each.text : each.code.replaceAll("_", " ")]);
  }
  const places = new Map(found.map((each, index) => [`${each.name}/${each.node}`, index]));
  const row = (entry, index, isFolded) => {
    const place = places.get(`${entry.name}/${entry.node}`) ?? found.findIndex((each) => each.name === entry.name);
    const statistics = found[place];
    return {
      position: place >= 0 ? place : index, name: entry.name, channels: entry.channels, folded: isFolded, kept: !isFolded,
      became: isFolded ? `folded into ${(entry.into ?? []).join(", ") || "nothing: no weight had to change"}` : `kept: ${entry.reason}`,
      statistics, suspicious: texts.get(entry.name)?.join("; ") ?? "", factor: statistics?.stretch?.max ?? null,
    };
  };
  return [...folded.map((entry, index) => row(entry, index, true)), ...kept.map((entry, index) => row(entry, folded.length + index, false))];
}

function tableOf(rows, inspected, order, draw) {
  const sortable = (key, text, kind = "") => h("th", { scope: "col", class: kind, "aria-sort": order.key === key ? (order.down ? "descending" : "ascending") : "none" },
    h("button", { type: "button", onclick: () => { Object.assign(order, { key, down: order.key === key && !order.down }); draw(); } }, text));
  const heads = [sortable("position", "#", "number"), sortable("name", "BatchNorm"), sortable("channels", "Channels", "number"), sortable("became", "What became of it")];
  if (inspected) heads.push("Where it is", ...Object.values(SPANS), sortable("factor", "Largest factor", "number"), sortable("suspicious", "Suspicion"));
  const limits = Object.fromEntries(Object.keys(SPANS).map((key) => {
    const spans = rows.map((row) => row.statistics?.[key]).filter(Boolean);
    return [key, [Math.min(0, ...spans.map((span) => span.min)), Math.max(0, ...spans.map((span) => span.max))]];
  }));
  const spanCell = (row, key) => {
    const span = row.statistics?.[key];
    if (!span) return "–";
    const label = `${SPANS[key]} from ${size(span.min)} to ${size(span.max)}`;
    return h("td", {}, range(span, ...limits[key], label), h("span", { class: "quiet" }, `${size(span.min)} … ${size(span.max)}`));
  };
  return table("BatchNorms", heads, rows.map((row) => [number(size(row.position + 1)), h("code", {}, row.name), number(size(row.channels)), h("td", { class: "words" }, row.became),
    ...(inspected ? [h("td", { class: "words" }, row.statistics?.placement.text), ...Object.keys(SPANS).map((key) => spanCell(row, key)), number(size(row.factor)), h("td", { class: "words" }, row.suspicious)] : [])]));
}
