// Versions: all of a model, two of them side by side, what each was made from, and load and unload for who has an admin's token.

import { ApiError, hasToken, post, setToken } from "./api.js";
import { comparison } from "./compare.js";
import { field, h, number, size, table, tag, when } from "./dom.js";

export async function show(panel, model) {
  const rows = model.versions.map((each) => [
    number(each.version || "?"), h("td", {}, tag(each.state, each.state === "READY" ? "good" : ""), each.reason && h("div", {}, each.reason)),
    each.created ? when(each.created) : "–", each.folded === undefined ? "–" : `${each.folded} of ${each.batchnorms}`,
    h("td", {}, (each.outputs ?? []).map((output) => h("div", {}, `${output.name}: ${size(output.folded_error)} of ${size(output.limit)}`))),
    each.digest ? h("code", {}, each.digest.slice(0, 12)) : "–",
  ]);
  panel.append(
    table("Versions", ["Version", "State", "Folded at", "BatchNorms folded", "Error of its limit", "Digest"], rows),
    comparison(model), ...model.versions.filter((each) => each.digest).map(origin), control(model));
}

function origin(version) {
  const pairs = (title, content) => [h("h3", {}, title), table(`${title}, version ${version.version}`, ["Name", "Value"], Object.entries(content).map(([key, value]) =>
    [key, h("code", {}, typeof value === "string" ? value : JSON.stringify(value))]))];
  return h("details", {}, h("summary", {}, `Where version ${version.version} comes from`),
    pairs("Source", version.source), pairs("Tools", version.tools), pairs("SHA-256 of its files", version.files));
}

function control(model) {
  const token = h("input", { type: "password", autocomplete: "off", placeholder: hasToken("admin") ? "given" : "" });
  const told = h("p", { role: "status" });
  const buttons = { load: h("button", { type: "submit", value: "load" }, "Load or reload"), unload: h("button", { type: "submit", value: "unload" }, "Unload") };
  const run = async (event) => {
    event.preventDefault();
    const action = event.submitter?.value ?? "load";
    if (token.value) setToken("admin", token.value);
    Object.values(buttons).forEach((each) => { each.disabled = true; });
    told.textContent = `${action}…`;
    try {
      await post(`v2/repository/models/${encodeURIComponent(model.name)}/${action}`, "{}", undefined, { admin: true });
      told.textContent = `${action}: done.`;
      model.refresh();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      told.replaceChildren(h("span", { class: "error" }, error.message));
    } finally {
      Object.values(buttons).forEach((each) => { each.disabled = false; });
    }
  };
  return h("form", { class: "card", onsubmit: run }, h("h3", {}, "Load what is on disk, or unload the model"), field("Token of an admin", token),
    h("p", { class: "quiet" }, "The token is kept in the memory of this page only. Loading takes the versions that the policy chooses; what serves goes on until they are ready."),
    h("div", { class: "row" }, buttons.load, buttons.unload), told);
}
