// Traffic: the last quarter of an hour of one version, drawn again while somebody can see it.

import { ApiError, get } from "./api.js";
import { bar, chart } from "./charts.js";
import { bytes, h, number, redraw, size, table } from "./dom.js";

const POLL = 10_000;
const MILLISECONDS = 1000;

export const needsServing = true;

export async function show(panel, model) {
  let timer = 0;
  let left = false;
  const draw = async () => {
    clearTimeout(timer);
    if (document.visibilityState === "visible") {
      try {
        const found = await get(`${model.path}/traffic`);
        redraw(panel, ...drawn(found), ...usage(model.usage()));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        panel.replaceChildren(h("p", { class: "error" }, error.message));
      }
    }
    if (!left) timer = setTimeout(draw, POLL);
  };
  const seen = () => document.visibilityState === "visible" && draw();
  document.addEventListener("visibilitychange", seen);
  await draw();
  return () => {
    left = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const last = (values) => values.filter((value) => value !== null).at(-1);
const inMilliseconds = (seconds) => (seconds === undefined || seconds === null ? "–" : `${size(seconds * MILLISECONDS)} ms`);

const legend = () => h("p", { class: "legend row" }, ["first", "second", "third"].map((kind, index) => h("span", { class: kind }, ["p50", "p95", "p99"][index])));

function drawn(found) {
  const perSecond = found.requests.map((count, index) => count / Math.max(found.seconds[index], 0.1));
  const minutes = Math.max(1, Math.round(sum(found.seconds) / 60));
  const most = (values) => Math.max(...values.map((value) => value ?? 0), 0);
  const times = (name, text) => {
    const { p50, p95, p99 } = found[name];
    const label = `${text}: p50 ${inMilliseconds(last(p50))}, p95 ${inMilliseconds(last(p95))}, p99 ${inMilliseconds(last(p99))}`;
    return h("div", {}, h("h3", {}, text), chart([p50, p95, p99], label), legend(), h("p", { class: "quiet" }, label, ` in the last interval with requests. The top line is ${inMilliseconds(most(p99))}.`));
  };
  const batches = found.batch_rows.filter((each) => each.batches);
  const all = sum(batches.map((each) => each.batches));
  const errors = Object.entries(found.errors);
  const rate = `${size(perSecond.at(-1) ?? 0)} requests a second now, ${sum(found.requests)} in all, ${sum(found.rows)} rows`;
  return [
    h("p", { class: "quiet" }, `The last ${minutes === 1 ? "minute" : `${minutes} minutes`}, in intervals of ten seconds. A quarter of an hour is kept.`),
    h("div", { class: "two" },
      h("div", {}, h("h3", {}, "Requests"), chart([perSecond], rate), h("p", { class: "quiet" }, `${rate}. The top line is ${size(most(perSecond))} a second.`)),
      times("queue_seconds", "Waiting in the queue"), times("compute_seconds", "Computing a batch")),
    h("h3", {}, "Rows of a batch"),
    batches.length ? table("Rows of a batch", ["Rows", "Share", "Batches"], batches.map((each) => [each.up_to === null ? "more" : `up to ${each.up_to}`,
      h("td", {}, bar(each.batches / all, "", `${size((100 * each.batches) / all)} %`)), number(size(each.batches))])) : h("p", { class: "quiet" }, "No batch was computed."),
    h("h3", {}, "Refusals and errors"),
    errors.length ? table("Refusals and errors", ["Kind", "Requests"], errors.map(([kind, counts]) => [kind.replaceAll("_", " "), number(size(sum(counts)))])) : h("p", { class: "quiet" }, "None."),
    h("p", { class: "quiet" }, `Shadow check: ${sum(found.compared_rows)} rows compared with the reference, ${sum(found.disagreements)} disagreements.`),
  ];
}

// Of the whole service: the process, and each GPU on which a model computes.
function usage(process) {
  const most = (values) => Math.max(...values.map((value) => value ?? 0), 0);
  const part = (title, values, text) => h("div", {}, h("h3", {}, title), chart([values], `${title}: ${text}`), h("p", { class: "quiet" }, text));
  const { memory_bytes: memory, in_flight_bytes: flight, in_flight_limit_bytes: limit, gpus } = process;
  return [h("h3", {}, "All models together"), h("div", { class: "two" },
    part("Memory of the process", memory, `${bytes(last(memory))} now. The top line is ${bytes(most(memory))}.`),
    part("Memory of requests in flight", flight, `${bytes(last(flight))} at most in this interval, without bodies up to 64 KiB; ${bytes(limit)} are allowed. The top line is ${bytes(most(flight))}.`),
    gpus.map((gpu) => [
      part(`Memory of GPU ${gpu.gpu}`, gpu.memory_used_bytes, `${bytes(last(gpu.memory_used_bytes))} of ${bytes(gpu.memory_total_bytes)} now, of all processes. The top line is ${bytes(most(gpu.memory_used_bytes))}.`),
      part(`GPU ${gpu.gpu} in use`, gpu.utilization, `${size(100 * (last(gpu.utilization) ?? 0))} % now. The top line is ${size(100 * most(gpu.utilization))} %.`),
    ]))];
}
