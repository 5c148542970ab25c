// Proof: the certificate part by part, a check of the session that serves, and the checks before it.

import { get, stream } from "./api.js";
import { download, field, h, number, redraw, size, table, tag, when } from "./dom.js";
import { layersOf } from "./layers.js";
import { binaryBody, readNpy } from "./npy.js";

const PARTS = {
  algebra: "A. Algebra: both graphs are one function before anything is rounded",
  rounding: "B. Rounding: each weight is the exact one, rounded once",
  outputs: "C. Error as served: no further from float64 than rounding explains",
  decisions: "D. Decisions: the class is the same, unless rounding explains it",
  search: "E. Search: the input with the largest difference",
};

export const needsServing = true;

export async function show(panel, model) {
  const certificate = h("div", {});
  const history = h("div", {});
  let published = null;
  let checks = [];
  const draw = async () => {
    ({ published, checks } = await get(`${model.path}/equivalence`));
    redraw(certificate, ...certificateOf(model, published, checks));
    history.replaceChildren(...historyOf(checks));
  };
  await draw();
  const drawComing = (coming) => redraw(certificate, ...certificateOf(model, published, checks, coming));
  const [form, leave] = proveForm(model, draw, drawComing);
  panel.append(certificate, h("h3", {}, "Prove now"), form, history, layersOf(model));
  return leave;
}

// Of each part the newest result: a new check of C does not hide an older A. `coming` has the parts of a check that runs.
function certificateOf(model, published, checks, coming = null) {
  const all = [...(coming ? [coming] : []), ...checks, published];
  const [{ verdict: newest }] = [...checks, published];
  let failed = null;
  const rows = Object.entries(PARTS).map(([part, question]) => {
    const found = all.find(({ verdict }) => verdict[part] && (part !== "decisions" || verdict[part].length));
    if (!found) return [question, "not computed", "", ""];
    const holds = holdsOf(part, found.verdict[part]);
    if (holds === false) failed ??= found.verdict;
    const mark = holds === null ? "" : tag(holds ? "holds" : "does NOT hold", holds ? "good" : "bad");
    const made = found === coming ? "now, by the check that runs" : found === published ? `${when(found.at)}, when it was folded` : when(found.at);
    return [question, numbersOf(part, found.verdict[part]), h("td", {}, mark), made];
  });
  const told = newest.equivalent && failed?.message ? failed : newest; // an older part that fails is not hidden, either
  const save = () => download(`${model.name}-${model.version}-proof.json`, JSON.stringify({ published, checks }, null, 2));
  return [
    h("p", { class: "answer" }, tag(told.equivalent ? "equivalent" : "NOT equivalent", told.equivalent ? "good" : "bad"), " ", told.message),
    table("The parts of the certificate", ["Part", "Found", "Verdict", "Made"], rows),
    h("button", { type: "button", onclick: save }, "Download as JSON"),
  ];
}

function holdsOf(part, found) {
  if (part === "outputs") return found.every((each) => each.equivalent !== false);
  if (part === "decisions") return found.every((each) => each.flips === each.excused);
  return found.holds ?? null;
}

function numbersOf(part, found) {
  if (part === "algebra") return (found.families ?? []).map((each) => `${each.name}: ${size(each.difference)}` + (each.limit > found.limit ? ` (its limit ${size(each.limit)})` : "")).join("; ") + (found.limit ? `; the limit is ${size(found.limit)}` : "");
  if (part === "rounding") return `${size(found.wrong)} of ${size(found.weights)} weights are wrong`;
  if (part === "outputs") return found.map((each) => `${each.name}: ${size(each.folded_error)}, the unfolded model ${size(each.unfolded_error)}, the limit is ${size(each.limit)}`).join("; ");
  if (part === "decisions") return found.map((each) => `${each.name}: ${each.decisions - each.flips} of ${each.decisions} are the same`).join("; ");
  return Object.entries(found.outputs ?? {}).map(([name, each]) => `${name}: ${size(each.found)} of the largest value`).join("; ");
}

function historyOf(checks) {
  if (!checks.length) return [h("p", { class: "quiet" }, "No check was made since this version was loaded.")];
  const rows = checks.map(({ at, verdict }) => [when(at), tag(verdict.equivalent ? "equivalent" : "NOT equivalent", verdict.equivalent ? "good" : "bad"),
    number(size(verdict.samples)), number(size(verdict.seed)), number(`${size(verdict.seconds)} s`), verdict.message]);
  return [h("h3", {}, "Checks since it was loaded"), table("Checks since it was loaded", ["Made", "Verdict", "Rows", "Seed", "Time", "Message"], rows)];
}

function proveForm(model, done, drawComing) {
  const samples = h("input", { type: "number", min: "1", value: "16", required: true });
  const seed = h("input", { type: "number", min: "0", value: "0", required: true });
  const seconds = h("input", { type: "number", min: "0.1", step: "any", value: "5", required: true });
  const file = h("input", { type: "file", accept: ".npy" });
  const boxes = Object.fromEntries(["algebra", "rounding", "search"].map((part) => [part, h("input", { type: "checkbox", checked: part !== "search" })]));
  const start = h("button", { class: "main" }, "Prove now");
  const stop = h("button", { type: "button", hidden: true, onclick: () => abort?.abort() }, "Stop");
  const steps = h("ol", { class: "log", "aria-live": "polite", "aria-label": "Progress" });
  const verdict = h("p", { role: "status" });
  let abort = null;
  let coming = {};
  const on = (name, data) => {
    if (name === "step") steps.append(h("li", {}, data.text));
    if (name === "part") {
      const parts = Object.keys(PARTS).filter((part) => data[part] && (part !== "decisions" || data[part].length));
      steps.append(...parts.map((part) => h("li", {}, `${PARTS[part][0]}: ${numbersOf(part, data[part])}`)));
      coming = { verdict: { ...coming.verdict, ...Object.fromEntries(parts.map((part) => [part, data[part]])) } };
      drawComing(coming);
    }
    if (name === "search") verdict.textContent = `Search: step ${data.step} of ${data.steps}, ${size(data.found)} found`;
    if (name === "error") verdict.replaceChildren(h("span", { class: "error" }, data.error));
    if (name === "verdict") verdict.replaceChildren(tag(data.equivalent ? "equivalent" : "NOT equivalent", data.equivalent ? "good" : "bad"), " ", data.message);
    steps.scrollTop = steps.scrollHeight;
  };
  const prove = async (event) => {
    event.preventDefault();
    steps.replaceChildren(h("li", {}, "waiting for its turn, and for the reference to be loaded"));
    verdict.textContent = "";
    coming = {};
    abort = new AbortController();
    start.disabled = true;
    stop.hidden = false;
    try {
      const parts = Object.keys(boxes).filter((part) => boxes[part].checked);
      const more = { parts, search_seconds: Number(seconds.value) };
      const given = file.files[0];
      const { body, headers } = given
        ? binaryBody(model.signature.inputs[0].name, readNpy(await given.arrayBuffer()), more)
        : { body: JSON.stringify({ samples: Number(samples.value), seed: Number(seed.value), ...more }), headers: { "Content-Type": "application/json" } };
      await stream(`${model.path}/equivalence`, body, headers, abort.signal, on);
      await done();
    } catch (error) {
      drawComing(null);
      if (error.name === "AbortError") verdict.textContent = "Stopped.";
      else verdict.replaceChildren(h("span", { class: "error" }, error.message));
    } finally {
      start.disabled = false;
      stop.hidden = true;
    }
  };
  const form = h("form", { onsubmit: prove },
    h("div", { class: "row" }, field("Rows to draw", samples), field("Seed", seed), field("Seconds of the search", seconds),
      model.signature.inputs.length === 1 && field("or your own rows, a .npy", file)),
    h("fieldset", {}, h("legend", {}, "Parts beside C and D"), h("div", { class: "row" },
      h("label", {}, boxes.algebra, " A. Algebra"), h("label", {}, boxes.rounding, " B. Rounding"), h("label", {}, boxes.search, " E. Search"))),
    h("div", { class: "row" }, start, stop), steps, verdict);
  return [form, () => abort?.abort()];
}
