// Inputs that are pictures: a field to draw in, and a place to drop, paste or choose one.

import { h } from "./dom.js";

const PEN = 1 / 9;

// A square field for a bright stroke on black. `done` gets the picture as a PNG after each stroke.
export function drawing(done) {
  const canvas = h("canvas", { width: 280, height: 280, role: "img", "aria-label": "Field to draw in with a mouse, a pen or a finger" });
  const paper = canvas.getContext("2d");
  let last = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const clear = () => {
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, canvas.width, canvas.height);
  };
  const stroke = (to) => {
    paper.strokeStyle = "#fff";
    paper.lineWidth = canvas.width * PEN;
    paper.lineCap = paper.lineJoin = "round";
    paper.beginPath();
    paper.moveTo(...last);
    paper.lineTo(...to);
    paper.stroke();
    last = to;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last);
  });
  canvas.addEventListener("pointermove", (event) => last && stroke(at(event)));
  const end = () => {
    if (!last) return;
    last = null;
    canvas.toBlob((blob) => done(blob), "image/png");
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  clear();
  return h("div", {}, h("p", { class: "quiet" }, "Draw here:"), canvas,
    h("div", { class: "row" }, h("button", { type: "button", onclick: clear }, "Clear")));
}

const KINDS = ["image/png", "image/jpeg", "image/webp"];

// `done` gets each picture that is dropped, pasted or chosen. Returns the place and what to call when it goes away.
export function pictures(done, refuse) {
  const preview = h("img", { alt: "The picture that was sent", hidden: true });
  const take = (file) => {
    if (!file) return;
    if (!KINDS.includes(file.type)) {
      refuse(`${file.name || "this"} is no PNG, JPEG or WebP`);
      return;
    }
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    done(file);
  };
  const input = h("input", { type: "file", accept: KINDS.join(","), onchange: () => take(input.files[0]), "aria-label": "Choose a picture" });
  const place = h("div", { class: "drop" }, h("p", {}, "Drop or paste a picture here, or choose one: "), input, preview);
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  const paste = (event) => take([...event.clipboardData.files][0]);
  addEventListener("paste", paste);
  return [place, () => removeEventListener("paste", paste)];
}
