// What a button starts: meanwhile, and if the service refuses, `told` says so.

import { ApiError } from "./api.js";
import { h } from "./dom.js";

// `job` may return a text for `told`.
export async function runJob(button, told, meanwhile, job) {
  button.disabled = true;
  told.textContent = meanwhile;
  try {
    told.textContent = (await job()) ?? "";
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    told.replaceChildren(h("span", { class: "error" }, error.message));
  } finally {
    button.disabled = false;
  }
}
