// Two versions of a model side by side: what became of their BatchNorms, their errors, and how long they take.

import { ApiError, get, modelPath, post, statistics } from "./api.js";
import { became } from "./batchnorms.js";
import { field, h, number, size, table } from "./dom.js";
import { runJob } from "./job.js";

const REQUESTS = 20;

export function comparison(model) {
  const readable = model.versions.filter((each) => each.digest).map((each) => each.version);
  if (readable.length < 2) return h("p", { class: "quiet" }, "With a second version here, the two can be compared.");
  const last = readable.includes(model.version) ? model.version : readable.at(-1);
  const first = readable.filter((each) => each !== last).at(-1);
  const place = h("div", {});
  const told = h("p", { role: "status" });
  const choice = (chosen) => h("select", { onchange: () => draw() }, readable.map((each) => h("option", { value: each, selected: each === chosen }, `version ${each}`)));
  const selects = [choice(first), choice(last)];
  const draw = async () => {
    const chosen = selects.map((each) => each.value);
    try {
      const both = await Promise.all(chosen.map((version) => get(`v2/repository/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(version)}`)));
      const parts = await sideBySide(model, both);
      if (selects.every((each, index) => each.value === chosen[index])) place.replaceChildren(...parts);
      told.textContent = "";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      told.replaceChildren(h("span", { class: "error" }, error.message));
    }
  };
  draw();
  return h("section", {}, h("h3", {}, "Two versions side by side"),
    h("div", { class: "row" }, field("First", selects[0]), field("Second", selects[1])), told, place);
}

async function sideBySide(model, both) {
  const heads = both.map((each) => `Version ${each.version}`);
  const outputs = [...new Set(both.flatMap((each) => each.outputs.map((output) => output.name)))];
  const errorOf = (each, name) => {
    const found = each.outputs.find((output) => output.name === name);
    return number(found ? `${size(found.folded_error)} of ${size(found.limit)}` : "–");
  };
  const folds = differences(both);
  return [
    table("What the versions are", ["What", ...heads], [
      ["State", ...both.map((each) => each.state)], ["Source", ...both.map((each) => h("code", {}, each.source.file ?? "–"))],
      ["Precision", ...both.map((each) => each.precision)], ["BatchNorms folded", ...both.map((each) => number(`${each.folded} of ${each.batchnorms}`))],
      ...outputs.map((name) => [`Error of ${name}, of its limit`, ...both.map((each) => errorOf(each, name))])]),
    folds.length
      ? table("BatchNorms that differ", ["BatchNorm", ...heads], folds)
      : h("p", {}, "The same became of every BatchNorm in both versions."),
    ...(await latency(model, both, heads)),
  ];
}

// A row for each BatchNorm whose fate differs, in the order of the first version.
function differences(both) {
  const fates = both.map(({ fold }) => new Map([...fold.folded.map((each) => [each, true]), ...fold.kept.map((each) => [each, false])]
    .map(([each, folded]) => [each.name, `${became(each, folded)} (${each.channels} channels)`])));
  const names = [...new Set(fates.flatMap((each) => [...each.keys()]))];
  return names.filter((name) => fates[0].get(name) !== fates[1].get(name))
    .map((name) => [h("code", {}, name), ...fates.map((each) => h("td", { class: "words" }, each.get(name) ?? "has none of this name"))]);
}

async function latency(model, both, heads) {
  const paths = both.map((each) => (each.state === "READY" ? modelPath(model.name, each.version) : null));
  const seen = await Promise.all(paths.map((path) => path && statistics(path)));
  const rows = [
    ["Requests since it was loaded", ...seen.map((each) => number(size(each?.count)))],
    ["Queue, mean", ...seen.map((each) => number(each?.count ? `${size(each.queue / each.count / 1e6)} ms` : "–"))],
    ["Compute, mean", ...seen.map((each) => number(each?.count ? `${size(each.compute / each.count / 1e6)} ms` : "–"))],
  ];
  const place = h("div", {}, table("Latency", ["Time", ...heads], rows));
  if (paths.includes(null)) return [h("h4", {}, "Latency"), place, h("p", { class: "quiet" }, "Only versions that serve have a latency.")];
  const told = h("p", { role: "status" });
  const button = h("button", { type: "button" }, `Send ${REQUESTS} requests to each`);
  button.addEventListener("click", () => runJob(button, told, "Sending to both in turns…", async () => {
    const found = await measured(paths);
    place.replaceChildren(table("Latency", ["Time", ...heads], [...rows,
      [`Answer, median of ${REQUESTS}`, ...found.map((each) => number(`${size(each.median)} ms`))],
      ["Compute of these, mean", ...found.map((each) => number(`${size(each.compute)} ms`))]]));
  }));
  return [h("h4", {}, "Latency"), place, h("div", { class: "row" }, button, told),
    h("p", { class: "quiet" }, "The requests hold the row that the model was published with, and go to both versions in turns.")];
}

async function measured(paths) {
  const bodies = await Promise.all(paths.map(async (path) => JSON.stringify(await get(`${path}/example`))));
  const ask = async (index) => {
    const started = performance.now();
    await post(`${paths[index]}/infer`, bodies[index]);
    return performance.now() - started;
  };
  for (const index of [0, 1]) await ask(index); // the first one may open a connection
  const before = await Promise.all(paths.map(statistics));
  const times = [[], []];
  for (let round = 0; round < REQUESTS; round += 1) {
    for (const index of round % 2 ? [1, 0] : [0, 1]) times[index].push(await ask(index));
  }
  const after = await Promise.all(paths.map(statistics));
  return times.map((each, index) => ({
    median: each.sort((a, b) => a - b)[Math.floor(each.length / 2)],
    compute: (after[index].compute - before[index].compute) / Math.max(after[index].count - before[index].count, 1) / 1e6,
  }));
}
