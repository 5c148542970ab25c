// API: every endpoint with an example that can be sent, and what it answers.

import { ApiError, get, send } from "./api.js";
import { field, h, size } from "./dom.js";

const SHOWN = 20_000;
const CONTROL = "/v2/repository/models/";

export async function show(panel, model) {
  const { paths } = await get("openapi.json");
  const example = await exampleOf(model);
  const endpoints = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
  const choose = h("select", {}, endpoints.map(({ method, path }, index) => h("option", { value: String(index) }, `${method} ${path}`)));
  const what = h("p", { class: "quiet" });
  const path = h("input", { size: "60", spellcheck: "false" });
  const body = h("textarea", { spellcheck: "false", rows: "8" });
  const bodyField = field("Body", body);
  const schemas = h("details", {});
  const status = h("p", { role: "status" });
  const answer = h("pre", { tabindex: "0", role: "region", "aria-label": "Answer", hidden: true });
  const chosen = () => endpoints[Number(choose.value)];
  const fill = () => {
    const { path: pattern, method, operation } = chosen();
    what.textContent = operation.description ?? operation.summary ?? "";
    path.value = pattern.replace("{name}", encodeURIComponent(model.name)).replace("{version}", encodeURIComponent(model.version)).slice(1);
    schemas.replaceChildren(h("summary", {}, "Schemas"), ...schemasOf(operation));
    bodyField.hidden = method !== "POST";
    body.value = method === "POST" ? JSON.stringify(bodyOf(pattern, example), null, 1) : "";
    status.textContent = "";
    answer.hidden = true;
  };
  choose.addEventListener("change", fill);
  const button = h("button", { class: "main" }, "Send");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    const { method, path: pattern } = chosen();
    const started = performance.now();
    try {
      const options = method === "POST" ? { body: body.value, headers: { "Content-Type": "application/json" } } : {};
      const response = await send(method, path.value, { ...options, admin: pattern.startsWith(CONTROL) });
      const text = await response.text();
      status.textContent = `${response.status} ${response.statusText} in ${size(performance.now() - started)} ms`;
      answer.textContent = pretty(text);
      answer.hidden = false;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      status.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };
  fill();
  panel.append(h("form", { onsubmit: submit }, field("Endpoint", choose), what, schemas, field("Path", path), bodyField, h("div", { class: "row" }, button)), status, answer);
}

// Of the parameters, of each type of body, and of each type of the answer.
function schemasOf({ parameters = [], requestBody, responses }) {
  const ofContent = (title, content = {}) => Object.entries(content).map(([type, { schema }]) => [`${title}, ${type}`, schema]);
  const known = [
    ...parameters.map((each) => [`${each.name}, in the ${each.in}`, each.schema]),
    ...ofContent("Body", requestBody?.content), ...ofContent("Answer", responses["200"]?.content),
  ];
  return known.flatMap(([title, schema]) => [h("p", { class: "quiet" }, title), h("pre", { tabindex: "0" }, JSON.stringify(schema, null, 1))]);
}

async function exampleOf(model) {
  try {
    return await get(`${model.path}/example`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return { inputs: [] };
  }
}

function bodyOf(pattern, example) {
  if (pattern.endsWith("/infer")) return example;
  if (pattern.endsWith("/equivalence")) return { samples: 16, seed: 0 };
  if (!pattern.endsWith(":predict")) return {};
  const rows = example.inputs.map(({ name, data }) => [name, data.length === 1 ? data[0] : data]);
  return { instances: [rows.length === 1 ? rows[0][1] : Object.fromEntries(rows)] };
}

function pretty(text) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 1);
  } catch { /* metrics are no JSON, and NaN is shown as it came */ }
  return shown.length > SHOWN ? `${shown.slice(0, SHOWN)}\n… ${shown.length} characters in all` : shown;
}
