"""Small models made by hand, and the service as a real process in front of them.

Each model is there for one thing: `net` is a network with a folded BatchNorm and a proof, `echo` has every datatype,
`slow` computes for as long as its input says, `pick` fails for indices out of range, `free` has a free dimension,
`single` no batch axis, `pair` two inputs and two outputs, `broken` a changed byte. `folded` is a repository that
`bnfold fold` wrote, with certificate and canary.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fold.artifact import DATATYPES, Manifest, Preprocessing, TensorSpec, new_version, write_manifest

SERVE = """
import sys
from fold.errors import BnfoldError
from service.app import serve
from service.settings import load_settings
try:
    code = serve(load_settings())
except BnfoldError as error:
    print(f"bnfold: {error}", file=sys.stderr)
    code = 2
sys.exit(code)
"""
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _model(
    nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    def info(name: str, datatype: str, *shape: int) -> onnx.ValueInfoProto:
        element = helper.np_dtype_to_tensor_dtype(DATATYPES[datatype])
        return helper.make_tensor_value_info(name, element, ["n" if s == -1 else s for s in shape])

    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", [info(*i) for i in inputs], [info(*o) for o in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _publish(
    repository: Path, name: str, model: onnx.ModelProto, inputs: list[Any], outputs: list[Any], **manifest: Any
) -> None:
    version = manifest.pop("version", 1)
    reference = manifest.pop("reference", model)
    with new_version(repository, name, version) as folder:
        onnx.save(model, folder / "model.onnx")
        onnx.save(reference, folder / "unfolded.onnx")
        verdict = {"equivalent": True, "message": "equivalent over 16 samples"}
        content: dict[str, Any] = {"source": {}, "fold": {}, "verdict": verdict, "versions": {}, **manifest}
        write_manifest(
            folder,
            Manifest(
                name=name,
                version=str(version),
                created="2025-01-01T00:00:00Z",
                reference="unfolded.onnx",
                inputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, *s in inputs),
                outputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, *s in outputs),
                **content,
            ),
        )


def _net(repository: Path, name: str = "net", *, wrong: bool = False, other: bool = False, version: int = 1) -> None:
    """Conv, BN, Relu, pooling and a classifier; `wrong` makes the folded weights those of another network, `other`
    makes the reference one that takes no such input."""
    random = np.random.default_rng(7)
    w, g = random.normal(size=(8, 1, 3, 3)), random.normal(size=(8, 10))
    gamma, beta, mean = (random.normal(size=8) for _ in range(3))
    var = random.uniform(0.5, 2, size=8)
    scale = gamma / np.sqrt(var + 1e-5)
    inputs, outputs = [("image", "FP32", -1, 1, 8, 8)], [("scores", "FP32", -1, 10)]
    tail = [
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["scores"]),
    ]
    conv = helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1])
    norm = helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], epsilon=1e-5)
    statistics = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    single = {key: value.astype(np.float32) for key, value in {"w": w, "g": g, **statistics}.items()}
    unfolded = _model([conv, norm, *tail], inputs, outputs, single)
    if other:
        given = [("image", "FP32", -1, 3, 8, 8)]
        unfolded = _model([conv, norm, *tail], given, outputs, {**single, "w": np.ones((8, 3, 3, 3), np.float32)})
    folded_conv = helper.make_node("Conv", ["image", "w", "bias"], ["b"], pads=[1, 1, 1, 1])
    folded = {"w": w * scale[:, None, None, None], "bias": beta - scale * mean + (0.01 if wrong else 0), "g": g}
    _publish(
        repository,
        name,
        _model([folded_conv, *tail], inputs, outputs, {key: v.astype(np.float32) for key, v in folded.items()}),
        inputs,
        outputs,
        reference=unfolded,
        labels=LABELS,
        preprocessing=Preprocessing(input="image", mode="L", height=8, width=8, mean=(0.5,), std=(0.25,)),
        fold={"batchnorms": 1, "folded": [{"name": "bn", "node": "b", "channels": 8, "into": ["w"]}], "kept": []},
        version=version,
    )


def _echo(repository: Path) -> None:
    inputs = [(name.lower(), name, -1, 3) for name in DATATYPES]
    outputs = [(f"{name.lower()}_out", name, -1, 3) for name in DATATYPES]
    nodes = [helper.make_node("Identity", [i[0]], [o[0]]) for i, o in zip(inputs, outputs, strict=True)]
    _publish(repository, "echo", _model(nodes, inputs, outputs), inputs, outputs)


def _slow(repository: Path, *, quick: bool = False) -> None:
    """y = x, after as many thousand steps of a loop as the largest x says; `quick` leaves the loop to the reference."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["still"]), helper.make_node("Sin", ["v"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "thousand"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "true", "one"], ["end"], body=body),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = {
        "thousand": np.float32(1000),
        "true": np.array(True),
        "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
    }
    inputs, outputs = [("x", "FP32", -1, 1)], [("y", "FP32", -1, 1)]
    slow = _model(nodes, inputs, outputs, weights)
    served = _model([helper.make_node("Identity", ["x"], ["y"])], inputs, outputs) if quick else slow
    _publish(repository, "slow", served, inputs, outputs, reference=slow)


def _others(repository: Path) -> None:
    inputs, outputs = [("index", "INT64", -1)], [("value", "FP32", -1)]
    gather = [helper.make_node("Gather", ["table", "index"], ["value"])]
    table = {"table": np.arange(10, dtype=np.float32) / 4}
    _publish(repository, "pick", _model(gather, inputs, outputs, table), inputs, outputs)

    inputs, outputs = [("x", "FP32", -1, -1)], [("total", "FP32", -1)]
    total = [helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0)]
    _publish(repository, "free", _model(total, inputs, outputs, {"axis": np.array([1])}), inputs, outputs)

    inputs, outputs = [("x", "FP32", 4)], [("y", "FP32", 4)]
    twice = [helper.make_node("Add", ["x", "x"], ["y"])]
    _publish(repository, "single", _model(twice, inputs, outputs), inputs, outputs)

    inputs, outputs = (
        [("a", "FP32", -1, 2), ("b", "FP32", -1, 2)],
        [("sum", "FP32", -1, 2), ("difference", "FP32", -1, 2)],
    )
    both = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    _publish(repository, "pair", _model(both, inputs, outputs), inputs, outputs)


def _break(repository: Path) -> None:
    _net(repository, "broken")
    file = repository / "broken" / "1" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="session")
def make_net() -> Callable[..., None]:
    """Publishes a network into a repository: `make_net(folder, name, wrong=…, other=…, version=…)`."""
    return _net


@pytest.fixture(scope="session")
def make_slow() -> Callable[..., None]:
    """Publishes `slow` into a repository: `make_slow(folder, quick=…)`."""
    return _slow


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the models above."""
    folder = tmp_path_factory.mktemp("repository")
    for publish in (_net, _echo, _slow, _others, _break):
        publish(folder)
    return folder


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `net`, versions 1 and 2, folded from an `.onnx`: copy it before changing anything."""
    from fold.convert import Source, Target, convert  # noqa: PLC0415  # what it imports few tests need

    folder = tmp_path_factory.mktemp("folded")
    _net(folder / "source")
    for version in (1, 2):
        source = Source(folder / "source" / "net" / "1" / "unfolded.onnx")
        assert convert(source, Target(folder / "repository", "net", version), provider="cpu").path is not None
    return folder / "repository"


@dataclass
class Service:
    """A running service. `lines` is what it has said on stderr."""

    process: "subprocess.Popen[str]"
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30, **options)

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; `name` with its labels."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise LookupError(name)


Start = Callable[..., "contextlib.AbstractContextManager[Service]"]


@contextlib.contextmanager
def _start(repository: Path, *, code: str = SERVE, ready: bool = True, **settings: Any) -> Iterator[Service]:
    chosen = {"repository": repository, "port": 0, "provider": "cpu", "threads": 1, "grace_seconds": 0.2, **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BNFOLD_")}
    environment |= {f"BNFOLD_{name.upper()}": str(value) for name, value in chosen.items()}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    service = Service(process)
    assert process.stderr is not None
    try:
        while ready and "bnfold: serving" not in (service.lines or [""])[-1]:
            line = process.stderr.readline()
            assert line, f"the service ended: {service.lines}"
            service.lines.append(line.rstrip())
        if ready:
            service.url = service.lines[-1].split(" on ")[1].split(" ")[0]
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        service.lines += process.stderr.read().splitlines()
        process.stderr.close()


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts the service as a process of its own: `with start(repository, queue_rows=4) as service`."""
    return _start


@pytest.fixture(scope="session")
def service(repository: Path) -> Iterator[Service]:
    """One service in front of all models, for the tests that leave it as it was."""
    with _start(repository) as running:
        yield running
