// BatchNorms: what became of each, sortable and filtered; on request its statistics, and one of them drawn.

import { ApiError, get } from "./api.js";
import { range } from "./charts.js";
import { drawnDetail } from "./detail.js";
import { h, number, redraw, size, table } from "./dom.js";
import { runJob } from "./job.js";

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
  const one = h("div", {});
  const told = h("p", { role: "status", class: "quiet" });
  const draw = () => {
    const wanted = rows.filter((row) => filter === "all" || row[filter]);
    wanted.sort((a, b) => (order.down ? -1 : 1) * compared(a[order.key], b[order.key]));
    redraw(place, wanted.length ? tableOf(wanted, inspected, order, draw, open) : h("p", { class: "quiet" }, "No BatchNorm is of this kind."));
  };
  const choose = (name) => h("label", {}, h("input", { type: "radio", name: "kind", checked: name === filter, onchange: () => { filter = name; draw(); } }), ` ${FILTERS[name]}`);
  const button = h("button", { type: "button" }, "Show statistics");
  const inspect = async () => {
    if (inspected) return;
    rows = rowsOf(await get(`${path}?statistics=true`));
    inspected = true;
    button.hidden = true;
    draw();
  };
  // What needs the unfolded model is read from its reference, which may take a while, or may not be here.
  const reading = (job) => runJob(button, told, "Reading the unfolded model…", async () => {
    await job();
    return suspicionText(rows);
  });
  button.addEventListener("click", () => reading(inspect));
  const open = ({ key }) => reading(async () => {
    await inspect();
    const row = rows.find((each) => each.key === key);
    if (!row.statistics) throw new ApiError(0, "The model was published without it: its reference has no BatchNorm of this name.");
    const { detail } = await get(`${path}?number=${row.position + 1}`);
    const close = () => {
      one.replaceChildren();
      [...place.querySelectorAll("td button")].find((each) => each.textContent === row.name)?.focus();
    };
    one.replaceChildren(drawnDetail(row, detail, close));
    one.firstChild.focus();
  });
  panel.append(h("p", {}, `${rows.filter((row) => row.folded).length} of ${rows.length} BatchNorms are folded, ${rows.filter((row) => row.kept).length} are kept. Choose one by its name to see its neighbours and its numbers.`),
    h("fieldset", {}, h("legend", {}, "Which"), h("div", { class: "row" }, Object.keys(FILTERS).map(choose))),
    h("div", { class: "row" }, button, told), one, place);
  draw();
}

const suspicionText = (rows) => `${rows.filter((row) => row.suspicious).length} of ${rows.length} BatchNorms are suspicious.`;

const compared = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? "")));

export const became = (entry, isFolded) => (isFolded ? `folded into ${(entry.into ?? []).join(", ") || "nothing: no weight had to change"}` : `kept: ${entry.reason}`);

function rowsOf({ folded, kept, inspection }) {
  const found = inspection?.batchnorms ?? [];
  const texts = new Map();
  for (const each of inspection?.suspicions ?? []) {
    for (const name of [each.name, ...each.also]) texts.set(name, [...(texts.get(name) ?? []), name === each.name ? each.text : each.code.replaceAll("_", " ")]);
  }
  const places = new Map(found.map((each, index) => [`${each.name}/${each.node}`, index]));
  const row = (entry, index, isFolded) => {
    const key = `${entry.name}/${entry.node}`;
    const place = places.get(key) ?? found.findIndex((each) => each.name === entry.name);
    const statistics = found[place];
    return {
      key, position: place >= 0 ? place : index, name: entry.name, channels: entry.channels, folded: isFolded, kept: !isFolded,
      became: became(entry, isFolded),
      statistics, suspicious: texts.get(entry.name)?.join("; ") ?? "", factor: statistics?.stretch?.max ?? null,
    };
  };
  return [...folded.map((entry, index) => row(entry, index, true)), ...kept.map((entry, index) => row(entry, folded.length + index, false))];
}

function tableOf(rows, inspected, order, draw, open) {
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
  return table("BatchNorms", heads, rows.map((row) => [number(size(row.position + 1)), h("button", { type: "button", onclick: () => open(row) }, h("code", {}, row.name)), number(size(row.channels)), h("td", { class: "words" }, row.became),
    ...(inspected ? [h("td", { class: "words" }, row.statistics?.placement.text), ...Object.keys(SPANS).map((key) => spanCell(row, key)), number(size(row.factor)), h("td", { class: "words" }, row.suspicious)] : [])]));
}
