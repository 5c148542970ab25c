// numpy's file format, as far as the page sends it: one array in C order, little-endian.

const TYPES = { "|b1": "BOOL", "|u1": "UINT8", "|i1": "INT8", "<u2": "UINT16", "<i2": "INT16", "<u4": "UINT32", "<i4": "INT32", "<u8": "UINT64", "<i8": "INT64", "<f2": "FP16", "<f4": "FP32", "<f8": "FP64" };

// { shape, datatype, bytes } of a .npy; throws an Error with what was expected.
export function readNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  if (bytes[0] !== 0x93 || magic !== "NUMPY") throw new Error("the file is no .npy");
  const view = new DataView(buffer);
  const long = bytes[6] > 1;
  const start = long ? 12 : 10;
  const end = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(start, end));
  const type = TYPES[/'descr':\s*'([^']+)'/.exec(header)?.[1]];
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1].split(",").map((each) => each.trim()).filter(Boolean).map(Number);
  if (!type || !shape) throw new Error("the .npy holds no numbers that this page sends");
  if (/'fortran_order':\s*True/.test(header)) throw new Error("the .npy is in Fortran order; save numpy.ascontiguousarray of it");
  return { shape, datatype: type, bytes: bytes.subarray(end) };
}

// Body and headers of infer or equivalence for one binary tensor, with `more` members in the JSON.
export function binaryBody(name, { shape, datatype, bytes }, more = {}) {
  const tensor = { name, shape, datatype, parameters: { binary_data_size: bytes.length } };
  const head = new TextEncoder().encode(JSON.stringify({ inputs: [tensor], ...more }));
  const headers = { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) };
  return { body: new Blob([head, bytes]), headers };
}
