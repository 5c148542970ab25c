// A report or an inspection in the page of a service that wants tokens: a link would bring none.

import { getText } from "./api.js";
import { h } from "./dom.js";
import { sortTables } from "./sort.js";

export const needsServing = true;

// What a file says stands in a frame that runs no script, its own or another's (service/http/page/static.py).
export async function show(panel, model) {
  const text = await getText(model.page(model.tab));
  const frame = h("iframe", { class: "report", title: `The ${model.tab} of ${model.name}, version ${model.version}`, sandbox: "allow-same-origin", src: "static/frame.html" });
  frame.addEventListener("load", () => {
    const report = frame.contentDocument;
    report.documentElement.innerHTML = text;
    report.querySelector("nav")?.remove(); // it leads out of a report that is a page of its own
    sortTables(report);
  }, { once: true });
  panel.append(frame);
}
