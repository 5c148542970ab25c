// Small drawings in SVG. Each has a text for those who do not see it.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 100;

function points(values, most) {
  const step = WIDTH / Math.max(values.length - 1, 1);
  return values.map((value, index) => `${(index * step).toFixed(1)},${(HEIGHT - 2 - ((value ?? 0) / most) * (HEIGHT - 4)).toFixed(1)}`).join(" ");
}

export function sparkline(values, label) {
  const most = Math.max(...values, 1e-9);
  return svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("polyline", { points: points(values.length > 1 ? values : [0, 0], most) }));
}

// `lines` are arrays of numbers; null is drawn as 0.
export function chart(lines, label) {
  const most = Math.max(...lines.flat().map((value) => value ?? 0), 1e-9);
  const grid = [2, 50, 98].map((y) => svg("line", { x1: "0", x2: WIDTH, y1: y, y2: y }));
  const drawn = lines.map((values, index) => svg("polyline", { class: ["first", "second", "third"][index], points: points(values, most) }));
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, grid, drawn);
}

// Positive numbers of each of `series` as dots over powers of ten; what is null or 0 is left out. Returns the drawing, and
// the exponents of its lowest and highest line.
export function logarithmic(series, label) {
  const logs = series.flat().filter((value) => value > 0).map(Math.log10);
  const low = logs.length ? Math.floor(Math.min(...logs)) : 0;
  const high = Math.max(logs.length ? Math.ceil(Math.max(...logs)) : 0, low + 1);
  const y = (exponent) => (HEIGHT - 2 - ((exponent - low) / (high - low)) * (HEIGHT - 4)).toFixed(1);
  const step = WIDTH / Math.max(series[0].length, 1);
  const grid = Array.from({ length: high - low + 1 }, (_, index) => svg("line", { x1: "0", x2: WIDTH, y1: y(low + index), y2: y(low + index) }));
  const dots = series.map((values, index) => svg("path", { class: `dots ${["first", "second"][index]}`,
    d: values.map((value, at) => (value > 0 ? `M${((at + 0.5) * step).toFixed(1)} ${y(Math.log10(value))}h0` : "")).join("") }));
  return [svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, grid, dots), low, high];
}

export function bar(share, kind, label) {
  const width = Math.max(0, Math.min(100, 100 * share));
  return svg("svg", { class: `bar ${kind}`, viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { class: "back", width: "100", height: "10" }), svg("rect", { width: width.toFixed(2), height: "10" }));
}

// The span of some numbers within `least` and `most`, with a line at 0.
export function range(span, least, most, label) {
  const at = (value) => (100 * (value - least)) / Math.max(most - least, 1e-12);
  const zero = least <= 0 && most >= 0 ? svg("line", { x1: at(0), x2: at(0), y1: "0", y2: "10" }) : null;
  return svg("svg", { class: "range", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { class: "back", width: "100", height: "10" }),
    svg("rect", { class: "span", x: at(span.min).toFixed(2), width: Math.max(1, at(span.max) - at(span.min)).toFixed(2), height: "10" }), zero);
}

const captioned = (drawing, text) => h("div", {}, drawing, h("p", { class: "quiet" }, text));
const stretched = (kind, label, ...children) => svg("svg", { class: kind, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, children);

// How many numbers lie in each of the equal intervals from `min` to `max`.
export function histogram({ counts }, label) {
  const most = Math.max(...counts);
  const step = WIDTH / counts.length;
  const bars = counts.map((count, index) => svg("rect", { x: (index * step).toFixed(2), width: (step * 0.9).toFixed(2), y: (HEIGHT * (1 - count / most)).toFixed(2), height: ((HEIGHT * count) / most).toFixed(2) }));
  return captioned(stretched("histogram", label, bars), `${label}; at most ${most} in one interval`);
}

// A line from 0 for each channel.
export function byChannel(values, label) {
  const [least, most] = [Math.min(0, ...values), Math.max(0, ...values)];
  const y = (value) => ((HEIGHT * (most - value)) / Math.max(most - least, 1e-12)).toFixed(2);
  const step = WIDTH / values.length;
  const lines = values.map((value, index) => `M${((index + 0.5) * step).toFixed(2)} ${y(0)}V${y(value)}`).join("");
  return captioned(stretched("chart channels", label, svg("line", { x1: "0", x2: WIDTH, y1: y(0), y2: y(0) }), svg("path", { d: lines })), label);
}
