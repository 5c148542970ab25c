// The same request as a command: curl, Python, tritonclient over HTTP and gRPC.

import { hasToken } from "./api.js";
import { h, UNSEEN } from "./dom.js";

const FILES = { "image/png": "image.png", "image/jpeg": "image.jpg", "image/webp": "image.webp", "application/x-npy": "rows.npy" };
const NUMPY = { FP32: "float32", FP64: "float64", FP16: "float16", BF16: "float32", BYTES: "object" };

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const escaped = (json) => json.replace(UNSEEN, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);
const python = (value) => escaped(JSON.stringify(value));
const url = (path) => new URL(path, document.baseURI).href;

// An array of numpy with what was sent for an input; zeros in place of a picture.
function array(spec, alone, { type, text }) {
  const kind = python(NUMPY[spec.datatype] ?? spec.datatype.toLowerCase());
  if (type === "application/x-npy") return `numpy.load(${python(FILES[type])}).astype(${kind})`;
  if (text === "") return `numpy.zeros(${python(spec.shape.map((length) => (length === -1 ? 1 : length)))}, ${kind})`;
  const [row] = JSON.parse(text).instances;
  const value = alone ? row : row[spec.name];
  return `numpy.array(json.loads(${python(JSON.stringify(spec.shape[0] === -1 ? [value] : value))}), ${kind})`;
}

function triton(model, sent, kind, address) {
  const options = location.protocol === "https:" ? ", ssl=True" : "";
  const token = hasToken("user") ? `, headers={"authorization": "Bearer " + os.environ["TOKEN"]}` : "";
  return [
    "import json, os",
    "",
    "import numpy",
    `import tritonclient.${kind} as triton`,
    "",
    `client = triton.InferenceServerClient(${python(address)}${options})`,
    "inputs = []",
    ...model.signature.inputs.flatMap((spec) => [
      `array = ${array(spec, model.signature.inputs.length === 1, sent)}`,
      `inputs.append(triton.InferInput(${python(spec.name)}, list(array.shape), ${python(spec.datatype)}))`,
      "inputs[-1].set_data_from_numpy(array)",
    ]),
    `answer = client.infer(${python(model.name)}, inputs, ${python(model.version)}${token})`,
    `for name in ${python(model.signature.outputs.map((each) => each.name))}:`,
    "    print(name, answer.as_numpy(name).tolist())",
  ].join("\n");
}

export const predictPath = ({ name, version }) => `v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}:predict`;

// `sent` is { type, text }: the body's type, and the body where it is JSON.
function texts(model, grpcPort, sent) {
  const address = url(predictPath(model));
  const file = FILES[sent.type];
  const known = {
    curl: [
      `curl ${quoted(address)}`,
      hasToken("user") && '-H "Authorization: Bearer $TOKEN"',
      `-H ${quoted(`Content-Type: ${sent.type}`)}`,
      file ? `--data-binary @${file}` : `-d ${quoted(escaped(sent.text))}`,
    ].filter(Boolean).join(" \\\n  "),
    Python: [
      "import json, os, pathlib, urllib.request", "",
      `body = ${file ? `pathlib.Path(${python(file)}).read_bytes()` : `${python(sent.text)}.encode()`}`,
      `headers = {"Content-Type": ${python(sent.type)}${hasToken("user") ? ', "Authorization": "Bearer " + os.environ["TOKEN"]' : ""}}`,
      `request = urllib.request.Request(${python(address)}, body, headers)`,
      "print(json.load(urllib.request.urlopen(request)))",
    ].join("\n"),
    tritonclient: triton(model, sent, "http", url(".").replace(/^https?:\/\//, "").replace(/\/$/, "")),
  };
  return grpcPort === null ? known : { ...known, gRPC: triton(model, sent, "grpc", `${location.hostname}:${grpcPort}`) };
}

// A choice of commands; `update(sent)` is called with each request. gRPC is left out if it is not served.
export function commands(model, grpcPort) {
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
  const token = hasToken("user") && h("p", { class: "quiet" }, "It reads the token from the environment variable TOKEN.");
  const place = h("details", { hidden: true }, h("summary", {}, "Copy as a command"),
    h("div", { class: "row" }, choose, h("button", { type: "button", onclick: copy }, "Copy"), told), token, code);
  const update = (sent) => {
    known = texts(model, grpcPort, sent);
    if (!choose.options.length) choose.append(...Object.keys(known).map((name) => h("option", {}, name)));
    place.hidden = false;
    told.textContent = "";
    draw();
  };
  return [place, update];
}
