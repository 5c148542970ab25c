"""A server of the Open Inference Protocol, known by its URL alone, and a model of it, by what the server says of it."""

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx
import ml_dtypes
import numpy as np
import pytest

from support.service.serving import PATIENCE

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
ONLY_BINARY = ("FP16", "BF16")
FREE_SIZE = 3
"""Taken for every free dimension beside the batch."""

Arrays = dict[str, np.ndarray]


@dataclass
class Target:
    url: str
    grpc: str = ""
    """Host and port of the same server over gRPC; empty where it has none."""

    @property
    def address(self) -> str:
        """As tritonclient wants it."""
        return self.url.split("://", 1)[1]

    @cached_property
    def described(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v2").json()
        return found

    @property
    def extensions(self) -> list[str]:
        found: list[str] = self.described.get("extensions", [])
        return found

    @property
    def ours(self) -> bool:
        """Whether this is our own server. The protocol leaves status codes and texts of errors open: they are checked
        for ours only."""
        return self.described.get("name") == "bnfold"

    def needs(self, extension: str) -> None:
        """Skip the test if the server does not say that it has this extension of the protocol."""
        if extension not in self.extensions:
            pytest.skip(f"this server has no extension {extension}")

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **options)

    def raw(self, method: str, path: str, body: bytes = b"", **headers: Any) -> httpx.Response:
        """One request with these headers and no others, over a socket; `_` in their names is `-`."""
        parts = urlsplit(self.url)
        named = {"Host": parts.netloc, "Content-Length": len(body), **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items() if value is not None]
        head = "\r\n".join([f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1", *lines, "", ""]).encode()
        return self.send(head + body)

    def send(self, *parts: bytes) -> httpx.Response:
        """Bytes as they are, and the answer to them."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return self.read(connection)

    def read(self, connection: socket.socket) -> httpx.Response:
        """The next answer on a connection."""
        answer = read_answer(connection)
        answer.extensions["ours"] = self.ours
        return answer

    def connect(self) -> socket.socket:
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE)


def read_answer(connection: socket.socket) -> httpx.Response:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, body = received.split(b"\r\n\r\n", 1)
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    known = {name.lower(): value for name, value in headers}
    if known.get("transfer-encoding", "").lower() == "chunked":
        body = _of_chunks(body, connection)
        headers = [(name, value) for name, value in headers if name.lower() != "transfer-encoding"]
    elif "content-length" in known:
        while len(body) < int(known["content-length"]):
            body += _more(connection)
    else:  # it ends with the connection
        while part := connection.recv(65536):
            body += part
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]  # httpx takes ASCII alone
    return httpx.Response(int(status.split(" ")[1]), headers=encoded, content=body)


def _of_chunks(received: bytes, connection: socket.socket) -> bytes:
    body, size = b"", -1
    while size:
        while b"\r\n" not in received:
            received += _more(connection)
        line, received = received.split(b"\r\n", 1)
        size = int(line.split(b";")[0], 16)
        while len(received) < size + 2:
            received += _more(connection)
        body, received = body + received[:size], received[size + 2 :]
    return body


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    assert part, "the server closed the connection before its answer was complete"
    return part


@dataclass
class Model:
    """What is served under a name, as the server itself describes it."""

    target: Target
    name: str
    drawn: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        answer = self.target.get(self.path)
        assert answer.status_code == 200, answer.text
        described: dict[str, Any] = answer.json()
        return described

    @property
    def path(self) -> str:
        return f"/v2/models/{self.name}"

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        return {tensor["name"]: tensor for tensor in self.metadata["inputs"]}

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        return {tensor["name"]: tensor for tensor in self.metadata["outputs"]}

    @property
    def versions(self) -> list[str]:
        """Those that serve, ascending; empty where the server does not say."""
        return sorted(self.metadata.get("versions") or [], key=lambda name: (len(name), name))

    @property
    def version(self) -> str:
        """The latest; empty where the server does not say."""
        return self.versions[-1] if self.versions else ""

    @cached_property
    def batched(self) -> bool:
        """Whether the first axis is the batch. The configuration says it: a free first dimension alone may be anything
        else."""
        if "model_configuration" not in self.target.extensions:
            return False
        return int(self.target.get(f"{self.path}/config").json()["max_batch_size"]) > 0

    def names_all_outputs(self, names: Iterable[str]) -> bool:
        """Whether these are the outputs, each once; of our own server in the order of the metadata, too."""
        given, wanted = list(names), list(self.outputs)
        return given == wanted if self.target.ours else sorted(given) == sorted(wanted)

    @property
    def json_outputs(self) -> list[str]:
        """Outputs that have a form in JSON."""
        return [name for name, tensor in self.outputs.items() if tensor["datatype"] not in ONLY_BINARY]

    def draw(self, rows: int = 1) -> Arrays:
        """Inputs that the model should take: floats from N(0, 1), integers 0 or 1, short strings."""
        return {name: self._drawn(tensor, rows) for name, tensor in self.inputs.items()}

    def _drawn(self, tensor: dict[str, Any], rows: int) -> np.ndarray:
        shape = [FREE_SIZE if size == -1 else size for size in tensor["shape"]]
        if self.batched:
            shape[0] = rows
        dtype = DTYPES[tensor["datatype"]]
        if dtype.kind == "O":
            return self.drawn.choice(np.array(["", "a", "zwölf", "x y"], object), shape)
        values = self.drawn.normal(size=shape) if dtype.kind in "fV" else self.drawn.integers(0, 2, shape)
        return np.asarray(values).astype(dtype)

    def item(self, name: str, array: np.ndarray, *, binary: bool = False, **changes: Any) -> dict[str, Any]:
        """One input of an infer request; what is changed to None is left out."""
        item = {"name": name, "shape": list(array.shape), "datatype": self.inputs[name]["datatype"]}
        binary = binary or item["datatype"] in ONLY_BINARY
        item |= {"parameters": {"binary_data_size": len(wire(array))}} if binary else {"data": array.ravel().tolist()}
        return {key: value for key, value in (item | changes).items() if value is not None}

    def infer(self, document: Any, *tensors: bytes, length: int | str | None = None, **headers: Any) -> httpx.Response:
        """An infer request, its JSON followed by tensors; `length` is what the header says if not the truth."""
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        if length is not None or tensors:
            self.target.needs("binary_tensor_data")
            headers["Inference-Header-Content-Length"] = len(text) if length is None else length
        return self.target.raw("POST", f"{self.path}/infer", text + b"".join(tensors), **headers)

    def request(self, arrays: Arrays, **document: Any) -> tuple[dict[str, Any], list[bytes]]:
        """A right request, in JSON where the datatypes have a form there, and the tensors that follow it."""
        items = [self.item(name, array) for name, array in arrays.items()]
        tensors = [wire(array) for item, array in zip(items, arrays.values(), strict=True) if "data" not in item]
        asked = [{"name": name} for name in self.json_outputs] or [
            {"name": name, "parameters": {"binary_data": True}} for name in self.outputs
        ]
        return {"inputs": items, "outputs": asked, **document}, tensors


def wire(array: np.ndarray) -> bytes:
    """A tensor as it travels in binary."""
    if array.dtype.kind != "O":
        return array.tobytes()
    texts = [text.encode() for text in array.ravel().tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def arrays_of(answer: httpx.Response) -> Arrays:
    """The outputs of an answer, JSON and binary ones, read with the standard library and numpy."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    split = len(answer.content) if length is None else int(length)
    arrays = {}
    for output in json.loads(answer.content[:split])["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            arrays[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
            continue
        size = output["parameters"]["binary_data_size"]
        content = answer.content[split : split + size]
        assert len(content) == size
        split += size
        flat = np.array(_strings(content), object) if dtype.kind == "O" else np.frombuffer(content, dtype)
        arrays[output["name"]] = flat.reshape(output["shape"])
    assert split == len(answer.content)
    return arrays


def _strings(content: bytes) -> list[str]:
    found, offset = [], 0
    while offset < len(content):
        length = int.from_bytes(content[offset : offset + 4], "little")
        found.append(content[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return found


def extremes(array: np.ndarray) -> np.ndarray:
    """Of its type and shape, the largest and the smallest there is, and all that is not finite."""
    if array.dtype.kind == "b":
        edge: list[Any] = [True, False]
    elif array.dtype.kind in "iu":
        edge = [np.iinfo(array.dtype).max, np.iinfo(array.dtype).min, 1]
    elif array.dtype.kind == "O":
        edge = ["", "\0", "\U0001f600", '"\\']
    else:
        edge = [np.nan, np.inf, -np.inf, -0.0, 1e-7, 65504]
    return np.resize(np.array(edge, array.dtype), array.shape)
