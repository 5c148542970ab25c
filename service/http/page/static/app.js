// The page: the list of models, and the tabs of one of them. The URL's fragment says which: #/NAME/VERSION/TAB.

import { ApiError, get, hasToken, modelPath, post, setToken, whenLocked } from "./api.js";
import { sparkline } from "./charts.js";
import { field, h, redraw, tag } from "./dom.js";

const TABS = { try: "Try", proof: "Proof", batchnorms: "BatchNorms", traffic: "Traffic", versions: "Versions", endpoints: "API" };
const PAGES = { report: "Report", inspection: "Inspection" }; // of a version, beside its tabs
const POLL = 10_000;

const list = h("ul", { "aria-label": "Models" });
const search = h("input", { type: "search", "aria-label": "Search models", placeholder: "Search models", oninput: () => drawList() });
const note = h("p", { class: "error", role: "status" });
const content = h("main", { class: "content", id: "content", tabindex: "-1" });
const side = h("nav", { class: "side", "aria-label": "Models of this service" },
  h("div", { class: "head" }, h("h1", {}, "bnfold")),
  h("p", { class: "quiet" }, h("a", { href: "docs" }, "API"), " · ", h("a", { href: "metrics" }, "metrics")),
  search, list, note);

let entries = [];
let requests = new Map();
let usage = null;
let shown = null;
let timer = 0;

function start() {
  whenLocked(askToken);
  document.body.replaceChildren(h("a", { class: "skip", href: "#content", onclick: toContent }, "To the model"), h("div", { class: "app" }, side, content));
  addEventListener("hashchange", open);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && poll());
  if (document.querySelector("meta[name=locked]")) askToken();
  else poll();
}

function toContent(event) {
  event.preventDefault();
  content.focus();
}

// Asks only while somebody can see the page.
async function poll() {
  clearTimeout(timer);
  if (document.visibilityState !== "visible") return;
  try {
    const [index, traffic] = await Promise.all([post("v2/repository/index", "{}"), get("v2/traffic")]);
    note.textContent = "";
    const own = (all) => JSON.stringify(all.filter((each) => each.name === shown?.name));
    const changed = own(index) !== own(entries); // what happens to others leaves the tab as it is
    entries = index;
    usage = traffic.process;
    requests = new Map(traffic.models.map((each) => [`${each.name}/${each.version}`, each]));
    drawList();
    if (changed || !shown) open();
  } catch (error) {
    if (error.status === 401) return;
    note.textContent = error.message;
  }
  timer = setTimeout(poll, POLL);
}

// The entry of each model that stands for it: the latest that serves, or else the latest.
function models() {
  const found = new Map();
  for (const entry of entries) {
    const known = found.get(entry.name);
    if (!known || entry.state === "READY" || known.state !== "READY") found.set(entry.name, entry);
  }
  return [...found.values()];
}

function drawList() {
  const wanted = search.value.toLowerCase();
  const items = models().filter((each) => each.name.toLowerCase().includes(wanted)).map((each) => {
    const traffic = requests.get(`${each.name}/${each.version}`);
    const total = traffic ? traffic.requests.reduce((sum, value) => sum + value, 0) : 0;
    const label = `${total} requests in the last quarter of an hour`;
    const target = { name: each.name, version: each.version, tab: shown?.tab ?? "try" };
    return h("li", {}, h("a", { href: fragment(target), "aria-current": shown?.name === each.name ? "page" : null },
      h("span", { class: "name" }, each.name),
      h("span", {}, tag(each.state === "READY" ? `v${each.version}` : each.state.toLowerCase(), each.state === "READY" ? "good" : "bad"),
        traffic && h("span", { class: "quiet" }, ` ${traffic.device}`)),
      traffic && sparkline(traffic.requests.map((count, index) => count / Math.max(traffic.seconds[index], 0.1)), label)));
  });
  const nothing = entries.length ? "No model has this name." : "No model is here.";
  redraw(list, ...(items.length ? items : [h("li", { class: "quiet" }, nothing)]));
}

const fragment = ({ name, version, tab }) => `#/${[name, version, tab].map(encodeURIComponent).join("/")}`;

function asked() {
  const [, name, version, tab] = location.hash.split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return "";
    }
  });
  const entry = entries.find((each) => each.name === name && each.version === version)
    ?? models().find((each) => each.name === name) ?? models().find((each) => each.state === "READY") ?? models()[0];
  return entry && { entry, name: entry.name, version: entry.version, tab: tab in TABS || tab in PAGES ? tab : "try" };
}

async function open() {
  const target = asked();
  if (!target) {
    shown = null;
    content.replaceChildren(h("p", {}, "This service has no model."));
    return;
  }
  shown?.leave?.();
  const mine = (shown = { ...target, leave: null });
  drawList();
  document.title = `${target.name}: bnfold`;
  const panel = h("section", { role: "tabpanel", id: "panel", tabindex: "0", "aria-labelledby": target.tab in TABS ? `tab-${target.tab}` : target.tab });
  redraw(content, ...header(target), tabs(target), panel);
  try {
    const [module, model] = await Promise.all([import(`./${target.tab in PAGES ? "report" : target.tab}.js`), describe(target)]);
    if (shown !== mine) return;
    document.getElementById("device").textContent = model.info.device ?? "";
    document.getElementById("report").hidden = !model.signature || !model.info.files?.["report.html"];
    document.getElementById("inspection").hidden = !model.signature;
    if (module.needsServing && !model.signature) {
      panel.append(h("p", { class: "error" }, `This version does not serve: ${target.entry.reason}`));
      return;
    }
    const leave = await module.show(panel, model);
    if (shown === mine) mine.leave = leave;
    else leave?.();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (shown === mine) panel.append(h("p", { class: "error", role: "alert" }, error.message));
  }
}

async function describe({ entry, name, version, tab }) {
  const { versions } = await get(`v2/repository/models/${encodeURIComponent(name)}/versions`);
  const path = modelPath(name, version);
  const signature = entry.state === "READY" ? await get(path) : null;
  const info = versions.find((each) => each.version === version) ?? {};
  const page = (each) => pagePath({ name, version }, each);
  return { name, version, tab, entry, versions, path, page, signature, info, refresh: poll, usage: () => usage };
}

const pagePath = ({ name, version }, page) => `models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/${page}`;

function header({ entry, name, version, tab }) {
  const own = entries.filter((each) => each.name === name);
  const choose = h("select", { "aria-label": "Version", onchange: () => { location.hash = fragment({ name, version: choose.value, tab }); } },
    own.map((each) => h("option", { value: each.version, selected: each.version === version }, `version ${each.version || "?"}`)));
  const link = (page) => h("a", { id: page, hidden: true, "aria-current": page === tab ? "page" : null,
    href: hasToken("user") ? fragment({ name, version, tab: page }) : pagePath({ name, version }, page) }, PAGES[page]);
  return [
    h("div", { class: "head" }, h("h2", {}, name), choose, tag(entry.state, entry.state === "READY" ? "good" : "bad"), h("span", { id: "device", class: "quiet" }), Object.keys(PAGES).map(link)),
    entry.reason && h("p", { class: entry.state === "READY" ? "quiet" : "error" }, entry.reason),
  ].filter(Boolean);
}

function tabs(target) {
  const names = Object.keys(TABS);
  const at = Math.max(0, names.indexOf(target.tab));
  const go = (tab) => { location.hash = fragment({ ...target, tab }); };
  const move = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = by ? names[(at + by + names.length) % names.length] : { Home: names[0], End: names.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    addEventListener("hashchange", () => document.getElementById(`tab-${next}`)?.focus(), { once: true });
    go(next);
  };
  return h("div", { class: "tabs", role: "tablist", "aria-label": "What to see of this model", onkeydown: move },
    names.map((tab) => h("button", {
      type: "button", role: "tab", id: `tab-${tab}`, "aria-selected": String(tab === target.tab), "aria-controls": "panel",
      tabindex: tab === names[at] ? "0" : "-1", onclick: () => go(tab),
    }, TABS[tab])));
}

function askToken() {
  clearTimeout(timer);
  shown = null;
  const token = h("input", { type: "password", autocomplete: "off", required: true });
  const wrong = hasToken("user") && h("p", { class: "error", role: "alert" }, "The service does not know this token.");
  const use = (event) => {
    event.preventDefault();
    setToken("user", token.value);
    poll();
  };
  content.replaceChildren(h("form", { class: "card", onsubmit: use },
    h("h2", {}, "This service needs a token"), wrong, field("Token", token),
    h("p", { class: "quiet" }, "It is kept in the memory of this page, and is gone when the page is closed or loaded again."),
    h("button", { class: "main" }, "Use")));
  token.focus();
}

start();
