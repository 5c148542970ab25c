// The same request as a command: curl, Python, tritonclient over HTTP and gRPC.

import { h } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const python = (value) => JSON.stringify(value);
const url = (path) => new URL(path, document.baseURI).href;

function tensors(model, client) {
  return model.signature.inputs.map((each) => {
    const shape = each.shape.map((length) => (length === -1 ? 1 : length));
    const type = { FP32: "float32", FP64: "float64", FP16: "float16", BOOL: "bool", BYTES: "object_", BF16: "float32" }[each.datatype] ?? each.datatype.toLowerCase();
    return `${client}.InferInput(${python(each.name)}, ${python(shape)}, ${python(each.datatype)})`
      + `.set_data_from_numpy(numpy.zeros(${python(shape)}, numpy.${type}))`;
  });
}

function triton(model, kind) {
  const address = kind === "grpc" ? `${location.hostname}:8001` : url(".").replace(/^https?:\/\//, "").replace(/\/$/, "");
  return [
    "import numpy",
    `import tritonclient.${kind} as triton`,
    "",
    `client = triton.InferenceServerClient(${python(address)})`,
    `inputs = [${tensors(model, "triton").join(", ")}]`,
    `print(client.infer(${python(model.name)}, inputs).as_numpy(${python(model.signature.outputs[0].name)}))`,
  ].join("\n");
}

export const predictPath = ({ name, version }) => `v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}:predict`;

// `sent` is { type, text }: the body's type, and the body where it is JSON.
function texts(model, sent) {
  const address = url(predictPath(model));
  const file = { "image/png": "image.png", "image/jpeg": "image.jpg", "image/webp": "image.webp", "application/x-npy": "rows.npy" }[sent.type];
  const data = file ? `open(${python(file)}, "rb").read()` : `json.dumps(${sent.text.replaceAll("true", "True")}).encode()`;
  return {
    curl: `curl ${quoted(address)} \\\n  -H ${quoted(`Content-Type: ${sent.type}`)} \\\n  ${file ? `--data-binary @${file}` : `-d ${quoted(sent.text)}`}`,
    Python: [
      "import json, urllib.request", "",
      `request = urllib.request.Request(${python(address)}, ${data}, {"Content-Type": ${python(sent.type)}})`,
      "print(json.load(urllib.request.urlopen(request)))",
    ].join("\n"),
    tritonclient: triton(model, "http"),
    gRPC: triton(model, "grpc"),
  };
}

// A choice of commands; `update(sent)` is called with each request.
export function commands(model) {
  const code = h("pre", { tabindex: "0", role: "region", "aria-label": "Command" });
  const choose = h("select", { "aria-label": "Kind of command", onchange: () => draw() });
  const told = h("span", { class: "quiet", role: "status" });
  let known = {};
  const draw = () => { code.textContent = known[choose.value] ?? ""; };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      told.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(code);
      told.textContent = "Selected: press Ctrl+C.";
    }
  };
  const place = h("details", { hidden: true }, h("summary", {}, "Copy as a command"),
    h("div", { class: "row" }, choose, h("button", { type: "button", onclick: copy }, "Copy"), told), code);
  const update = (sent) => {
    known = texts(model, sent);
    if (!choose.options.length) choose.append(...Object.keys(known).map((name) => h("option", {}, name)));
    place.hidden = false;
    told.textContent = "";
    draw();
  };
  return [place, update];
}
