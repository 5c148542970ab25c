// The service's public API. A token is kept in this module's memory and nowhere else.

const tokens = { user: "", admin: "" };
let onLocked = () => {};

export function setToken(kind, token) {
  tokens[kind] = token.trim();
}

export const hasToken = (kind) => tokens[kind] !== "";

export function whenLocked(action) {
  onLocked = action;
}

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// NaN and Infinity come as bare tokens, which JSON does not have.
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return JSON.parse(text.replace(/("(?:[^"\\]|\\.)*")|-?Infinity|NaN/g, (all, string) => string ?? "null"));
  }
}

export async function send(method, path, { body, headers = {}, signal, admin = false } = {}) {
  const token = (admin && tokens.admin) || tokens.user;
  const all = token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
  let response;
  try {
    response = await fetch(path, { method, headers: all, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the service does not answer");
  }
  if (response.status === 401 && !admin) onLocked();
  return response;
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let told = text;
  try {
    told = parse(text).error ?? text;
  } catch { /* it is no JSON, so the text itself is shown */ }
  throw new ApiError(response.status, told);
}

export async function getText(path, options) {
  return (await checked(await send("GET", path, options))).text();
}

export const get = async (path, options) => parse(await getText(path, options));

export async function post(path, body, headers = { "Content-Type": "application/json" }, options = {}) {
  const text = await (await checked(await send("POST", path, { body, headers, ...options }))).text();
  return text ? parse(text) : null;
}

// Calls `on(name, data)` for each server-sent event.
export async function stream(path, body, headers, signal, on) {
  const response = await checked(await send("POST", path, { body, signal, headers: { ...headers, Accept: "text/event-stream" } }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = ["event: ", "data: "].map((key) => block.split("\n").find((line) => line.startsWith(key))?.slice(key.length));
      if (name) on(name, parse(data));
    }
  }
}

export const modelPath = (name, version) => `v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;

// Of one version since it was loaded: requests, and the nanoseconds that they waited and that their batches took.
export async function statistics(path) {
  const { model_stats: [found] } = await get(`${path}/stats`);
  const { success, queue, compute_input: merge, compute_infer: run, compute_output: split } = found.inference_stats;
  return { count: success.count, queue: queue.ns, compute: merge.ns + run.ns + split.ns };
}
