// Try: one input, and the answers of the folded model and of the reference side by side.

import { ApiError, get, post, statistics } from "./api.js";
import { bar } from "./charts.js";
import { commands, predictPath } from "./commands.js";
import { field, h, number, size, table } from "./dom.js";
import { drawing, pictures } from "./draw.js";

const SMALL = 64;
const TOP = 5;
const JSON_TYPE = "application/json";
const NOT_NOW = [429, 500, 501, 503, 504];

export const needsServing = true;

export async function show(panel, model) {
  const answer = h("div", { "aria-live": "polite" });
  const { grpc_port: grpcPort } = await get("v2");
  const [copies, update] = commands(model, grpcPort);
  let last = new AbortController();
  const refuse = (text) => {
    last.abort(); // what was sent before may still be on its way
    answer.replaceChildren(h("p", { class: "error" }, text));
  };
  // Strokes may follow each other faster than answers: only the last one is waited for.
  const ask = async (body, type) => {
    last.abort();
    const { signal } = (last = new AbortController());
    update({ type, text: type === JSON_TYPE ? body : "" });
    try {
      const served = await predict(model, body, type, signal);
      answer.replaceChildren(...drawn(model, served));
      const exact = await askReference(model, body, type, signal);
      answer.replaceChildren(...drawn(model, { ...served, ...exact }));
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      refuse(error.message);
    }
  };
  const how = model.info.preprocessing;
  const inputs = h("div", {});
  let gone = () => {};
  if (how) {
    if (how.mode === "L" && Math.max(how.width, how.height) <= SMALL) inputs.append(drawing((blob) => ask(blob, "image/png")));
    const [place, forget] = pictures((file) => ask(file, file.type), refuse);
    inputs.append(place);
    gone = forget;
  }
  const form = await rows(model, ask, refuse);
  inputs.append(how ? h("details", {}, h("summary", {}, "Numbers in place of a picture"), form) : form);
  panel.append(h("div", { class: "two" }, inputs, h("div", {}, h("h3", {}, "Answer"), answer, copies)));
  answer.append(h("p", { class: "quiet" }, "Both models answer here: the folded one that serves, and the trained one in float64."));
  return () => {
    last.abort();
    gone();
  };
}

// Fields for one row, filled with the example that was published, and a .npy in their place.
async function rows(model, ask, refuse) {
  let example = null;
  try {
    example = await get(`${model.path}/example`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
  }
  const areas = model.signature.inputs.map((spec) => {
    const tensor = example?.inputs.find((each) => each.name === spec.name);
    const area = h("textarea", { spellcheck: "false", rows: "5" });
    area.value = tensor ? JSON.stringify(nested(tensor, spec.shape[0] === -1)) : "";
    return [spec, area];
  });
  const submit = (event) => {
    event.preventDefault();
    const row = {};
    for (const [spec, area] of areas) {
      try {
        row[spec.name] = JSON.parse(area.value);
      } catch (error) {
        refuse(`${spec.name}: is not JSON: ${error.message}`);
        area.focus();
        return;
      }
    }
    const instance = areas.length === 1 ? row[areas[0][0].name] : row;
    ask(JSON.stringify({ instances: [instance] }), JSON_TYPE);
  };
  const file = h("input", { type: "file", accept: ".npy", onchange: () => file.files[0] && ask(file.files[0], "application/x-npy") });
  const form = h("form", { onsubmit: submit },
    areas.map(([spec, area]) => field(`${spec.name}: ${spec.datatype}, shape ${spec.shape.map((n) => (n === -1 ? "n" : n)).join(" × ") || "scalar"}`, area)),
    h("div", { class: "row" }, h("button", { class: "main" }, "Predict"), example && h("span", { class: "quiet" }, "The example is a row that was published with the model.")),
    areas.length === 1 && field("or rows of a .npy", file));
  return form;
}

// The row of an example as nested lists, without the axis of the batch.
function nested({ shape, data }, batched) {
  const build = (sizes, values) => (sizes.length < 2 ? values : Array.from({ length: sizes[0] }, (_, index) => {
    const part = values.length / sizes[0];
    return build(sizes.slice(1), values.slice(index * part, (index + 1) * part));
  }));
  const row = batched ? shape.slice(1) : shape;
  return row.length ? build(row, data) : data[0];
}

// The served answer, and how long it took.
async function predict(model, body, type, signal) {
  const before = await statistics(model.path);
  const started = performance.now();
  const { predictions } = await post(predictPath(model), body, { "Content-Type": type }, { signal });
  const total = performance.now() - started;
  const after = await statistics(model.path);
  signal.throwIfAborted();
  const count = Math.max(after.count - before.count, 1);
  return { predictions, total, count, queue: (after.queue - before.queue) / count / 1e6, compute: (after.compute - before.compute) / count / 1e6 };
}

// Both answers, or why the reference's is not to be had.
async function askReference(model, body, type, signal) {
  try {
    return await post(`${predictPath(model)}?reference=true`, body, { "Content-Type": type }, { signal });
  } catch (error) {
    if (!NOT_NOW.includes(error.status)) throw error;
    return { why: error.message };
  }
}

function drawn(model, { predictions, reference, why, total, count, queue, compute }) {
  const [served] = predictions;
  const exact = reference?.predictions[0];
  const parts = [];
  const classes = scores(model, served);
  if (classes) {
    const truth = exact === undefined ? null : scores(model, exact);
    const best = top(classes)[0];
    const same = truth && top(truth)[0].index === best.index;
    parts.push(h("p", { class: "answer" }, truth ? (same ? "Both models say " : "The models DISAGREE; the folded one says ") : "The folded model says ", h("strong", {}, best.name), "."));
    parts.push(bars(classes, truth));
  } else {
    const text = (value) => h("pre", { tabindex: "0" }, JSON.stringify(value, null, 1).slice(0, 4000));
    parts.push(h("div", { class: "two" }, h("div", {}, h("h3", {}, "Folded"), text(served)), exact === undefined ? null : h("div", {}, h("h3", {}, "Reference, float64"), text(exact))));
  }
  if (reference) {
    parts.push(table("Difference of both answers", ["Output", "Largest difference", "Margin of the first class"],
      reference.outputs.map((each) => [h("code", {}, each.name), number(size(Math.max(...each.difference))), number(size(each.margin?.[0]))])));
  } else {
    parts.push(h("p", { class: "quiet" }, why ? `The reference gave no answer: ${why}` : "The reference computes in float64…"));
  }
  const share = count === 1 ? "" : ` (mean of the ${count} requests meanwhile)`;
  parts.push(h("p", { class: "quiet" }, `Queue ${size(queue)} ms, compute ${size(compute)} ms${share}; ${size(total)} ms in all.`));
  return parts;
}

// Scores by class: of an image's answer, or of one row of numbers. Null for any other answer.
function scores(model, value) {
  const numbers = value?.probabilities ? Object.values(value.probabilities) : value;
  if (!Array.isArray(numbers) || numbers.length < 2 || numbers.some((each) => typeof each !== "number")) return null;
  const labels = model.info.labels?.length === numbers.length ? model.info.labels : numbers.map((_, index) => String(index));
  const names = value.probabilities ? Object.keys(value.probabilities) : labels;
  return numbers.map((score, index) => ({ index, name: names[index], score }));
}

const top = (classes) => [...classes].sort((a, b) => b.score - a.score).slice(0, TOP);

function bars(classes, truth) {
  const most = Math.max(...classes.map((each) => Math.abs(each.score)), 1e-12);
  const legend = h("p", { class: "legend row" }, h("span", {}, "folded"), truth && h("span", { class: "reference" }, "reference, float64"));
  const drawing = (score, kind) => bar(Math.max(score, 0) / most, kind, `${kind || "folded"} ${size(score)}`);
  const row = ({ index, name, score }) => {
    const exact = truth?.[index].score;
    const both = h("div", { class: "both" }, drawing(score, ""), truth && drawing(exact, "reference"));
    return [name, h("td", {}, both), number(size(score)), number(size(exact))];
  };
  return h("div", {}, legend, table("The classes with the highest scores", ["Class", "Score", "Folded", "Reference"], top(classes).map(row)));
}
