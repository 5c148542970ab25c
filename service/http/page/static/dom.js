// Elements. Every text becomes a text node, so a name from a model or an answer is never read as HTML.

// Control characters, and those that turn the direction of the text around them.
export const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (element instanceof HTMLElement && name in element && typeof value !== "string") element[name] = value;
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  const kept = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...kept.map((child) => (child instanceof Node ? child : String(child).replace(UNSEEN, "\ufffd"))));
  return element;
}

export function table(caption, heads, rows) {
  const cell = (value) => (value instanceof Element && value.tagName === "TD" ? value : h("td", {}, value ?? "–"));
  const head = heads.map((name) => (name instanceof Element ? name : h("th", { scope: "col" }, name)));
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell))))));
}

export const number = (value) => h("td", { class: "number" }, value);

export function size(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const power = value < 1 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(value) / 3));
  return `${+(value / 1000 ** power).toPrecision(3)} ${UNITS[power]}`;
}

export function field(label, input) {
  input.id ||= `field-${field.count = (field.count ?? 0) + 1}`;
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input);
}

const NAMED = "a, button, input, select, textarea, summary, [tabindex]";
const nameOf = (element) => element.getAttribute("aria-label") ?? element.getAttribute("href") ?? element.textContent;

// Puts `children` in the place of what stands there. What had the focus has it again, if something has its name still.
export function redraw(place, ...children) {
  const focused = document.activeElement;
  const name = focused !== place && place.contains(focused) ? nameOf(focused) : "";
  place.replaceChildren(...children);
  if (name) [...place.querySelectorAll(NAMED)].find((each) => nameOf(each) === name)?.focus({ preventScroll: true });
}

export const tag = (text, kind = "") => h("span", { class: `tag ${kind}` }, text);

export const when = (time) => new Date(typeof time === "number" ? time * 1000 : time).toLocaleString();

export function download(name, content) {
  const link = h("a", { href: URL.createObjectURL(new Blob([content], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
