"""The certificate: right folds get it, and every planted fault is caught by the part it belongs to, and located."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from fold.artifact.directory import ModelVersion, read_version, write_manifest
from fold.convert import Conversion, Target, convert
from fold.engine import affine
from fold.engine.affine import Gauge, Reading
from fold.engine.gauge import Gauges
from fold.engine.laws import batchnorm as normalisation
from fold.errors import BnfoldError
from fold.graph import reading as graph
from fold.graph.file import save_graph
from fold.proof import certifier
from fold.proof.certificate import Certificate
from fold.proof.certifier import certify
from fold.sources.source import Source
from support import ROOT
from support.folding import architecture, randomise, unfolded
from support.service.reloading import tampered

SCHEMA = json.loads((ROOT / "docs" / "certificate.schema.json").read_text())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("published")

    @functools.cache
    def of(name: str) -> Path:
        conversion = publish(unfolded(name), folder, name)
        assert conversion.path is not None, conversion.certificate.message
        return conversion.path

    return of


def publish(model: ir.Model, folder: Path, name: str, **options: Any) -> Conversion:
    source = folder / f"{name}.onnx"
    save_graph(model, source)
    return convert(Source(source), Target(folder / "repository", name), provider="cpu", samples=4, **options)


def check(version: ModelVersion) -> Certificate:
    made = certify(version, samples=4, provider="cpu")
    jsonschema.validate(json.loads(json.dumps(made.to_dict(), allow_nan=False)), SCHEMA)
    return made


def convolutions(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name, array in arrays.items() if array.ndim == 4 and array.shape[0] > 1]


@pytest.mark.parametrize(
    ("name", "opened"),
    [
        *((name, False) for name in ("mobilenet", "repvgg", "mlp", "dcgan", "frozen_resnet")),
        *((name, True) for name in ("preact_resnet", "levit")),
    ],
)
def test_a_right_fold_is_certified_and_published(name, opened, tmp_path) -> None:
    conversion = publish(unfolded(name), tmp_path, name, open_activations=opened)
    made = conversion.certificate
    assert made, made.message
    assert made.located is None
    assert {family.name for family in made.algebra.families} == {"normal", "single", "offset", "sparse"}
    assert all(output.ratio is None or 0 < output.ratio <= 1 for output in made.rounding.outputs if output.difference)
    assert conversion.path is not None
    stored = read_version(conversion.path).manifest.verdict
    assert stored == json.loads(json.dumps(made.to_dict()))
    jsonschema.validate({"model": name, "version": "1", **stored}, SCHEMA)
    with np.load(conversion.path / "canary.npz") as canary:
        limits = {key.removeprefix("limit/"): float(canary[key]) for key in canary if key.startswith("limit/")}
    assert limits == {output.name: output.limit for output in made.verdict.outputs}
    again = check(read_version(conversion.path))
    assert again.subject == made.subject
    assert again.algebra == made.algebra
    assert again.rounding == made.rounding


def test_a_certificate_is_made_again_from_the_directory_of_a_checkpoint(tmp_path) -> None:
    """The unfolded graph is exported anew from reference.pt2, and every weight is the one that it gives."""
    torch.save({"state_dict": randomise(architecture("resnet"), 3).state_dict()}, tmp_path / "net.pt")
    source = Source(tmp_path / "net.pt", arch="models.resnet:resnet", inputs=("1,8,8",))
    conversion = convert(source, Target(tmp_path / "repository"), provider="cpu", samples=4)
    assert conversion.path is not None, conversion.certificate.message
    again = check(read_version(conversion.path))
    assert again, again.message
    assert again.rounding == conversion.certificate.rounding


# --- Faults in the stored graph


def one_weight(arrays: dict[str, np.ndarray]) -> str:
    name = convolutions(arrays)[1]
    arrays[name].reshape(-1)[7] *= np.float32(1 + 1e-5)
    return name


def two_channels(arrays: dict[str, np.ndarray]) -> str:
    name = convolutions(arrays)[1]
    arrays[name][[0, 1]] = arrays[name][[1, 0]]
    return name


def a_lost_bias(arrays: dict[str, np.ndarray]) -> str:
    name = next(name for name, array in arrays.items() if array.ndim == 1 and array.dtype == np.float32 and array.any())
    arrays[name][:] = 0
    return name


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        *(("cnn", plant) for plant in (one_weight, two_channels, a_lost_bias)),
        ("preact_resnet", a_lost_bias),
        ("mobilenet", two_channels),
        ("repvgg", one_weight),
    ],
)
def test_a_fault_in_the_stored_graph_is_caught_and_located(name, plant, published, tmp_path) -> None:
    planted: list[str] = []
    version = tampered(published(name), tmp_path, lambda arrays: planted.append(plant(arrays)))
    made = check(version)
    assert not made
    assert made.algebra
    assert [fault.name for fault in made.rounding.faults] == planted
    assert made.located is not None
    assert made.located.layer
    assert made.message.startswith(
        "NOT equivalent: rounding does not hold; 1 weight or node is not what folding gives; "
    )
    assert planted[0] in made.message
    assert plant is one_weight or any(output.ratio > 1 for output in made.rounding.outputs)  # and it matters
    into = [folded["name"] for folded in version.manifest.fold["folded"] if planted[0] in folded["into"]]
    assert made.located.batchnorm in (into or [None])


def test_a_node_that_folding_does_not_give_is_caught(published, tmp_path) -> None:
    version = read_version(published("cnn"))
    for file in version.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(tmp_path / "model.onnx")
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Abs"
    onnx.save(model, tmp_path / "model.onnx")
    write_manifest(tmp_path, version.manifest)
    made = check(read_version(tmp_path))
    assert not made
    assert "is not the Relu that folding gives" in made.message


# --- Faults in the folding itself: both the stored and the exact graph are wrong, and only the algebra can tell


def skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    right, seen = normalisation.scale_and_shift, list[ir.Node]()

    def wrong(node: ir.Node) -> Any:
        found = right(node)
        if node.name not in seen:
            seen.append(node.name)
        second = len(seen) > 1 and node.name == seen[1]
        return (np.ones_like(found[0]), np.zeros_like(found[1])) if second and not isinstance(found, str) else found

    monkeypatch.setattr(normalisation, "scale_and_shift", wrong)


def wrong_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "_epsilon", lambda node: 1e-3)


def lost_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = affine.conv

    def wrong(W: Any, B: Any, groups: int, reading: Reading, gauge: Gauge) -> Any:
        weights, bias = right(W, B, groups, reading, gauge)
        return weights, np.zeros_like(bias)

    monkeypatch.setattr(affine, "conv", wrong)


def mean_of_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = affine.batchnorm
    monkeypatch.setattr(affine, "batchnorm", lambda g, b, m, v, e: right(g, b, np.roll(m, 1), v, e))


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        *(("cnn", plant) for plant in (skipped, wrong_epsilon, lost_bias, mean_of_another_layer)),
        ("mobilenet", skipped),
        ("resnet", lost_bias),
    ],
)
def test_a_fault_of_folding_is_caught_and_located_and_nothing_is_published(name, plant, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        plant(patched)
        conversion = publish(unfolded(name), tmp_path, name)
    made = conversion.certificate
    assert not made
    assert conversion.path is None
    assert not list((tmp_path / "repository" / name).glob("[0-9]*"))
    assert not made.algebra
    assert made.algebra.worst.difference > 1e-7
    assert made.message.startswith("NOT equivalent: algebra does not hold; in float64 output ")
    assert made.located is not None
    names = [folded.name for folded in conversion.report.folded]
    assert made.located.batchnorm == names[1 if plant is skipped else 0]
    assert made.located.layer
    jsonschema.validate(json.loads(json.dumps(made.to_dict(), allow_nan=False)), SCHEMA)


def test_a_wrong_axis_is_caught_though_the_sizes_coincide(tmp_path, monkeypatch) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]>
    g (float[batch, 6, 6] x) => (float[batch, 6, 6] y)
    <float[6, 6] w, float[6] s = {1, 2, -3, 4, 5, 0.5}, float[6] b = {1, 0, 2, 0, 3, 4},
     float[6] m = {0, 1, 0, 2, 0, 3}, float[6] v = {1, 2, 3, 4, 5, 6}>
    { h = MatMul(x, w)  y = BatchNormalization(h, s, b, m, v) }"""
    proto = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(weights, "w")])
    model = ir.from_proto(proto)
    right = publish(model, tmp_path, "right")
    assert right.path is not None
    assert len(right.report.kept) == 1  # it normalises the rows, and the weights hold the columns
    read, write = Gauges.along, Gauges.fresh_along
    # guesses the axis from its size, as others do: of two that fit, the last
    monkeypatch.setattr(Gauges, "along", lambda self, value, axis, *others: read(self, value, -1, *others))
    monkeypatch.setattr(Gauges, "fresh_along", lambda self, value, axis, *others: write(self, value, -1, *others))
    conversion = publish(model, tmp_path, "wrong")
    assert len(conversion.report.folded) == 1
    assert conversion.path is None
    assert not conversion.certificate.algebra


# --- Faults of the run time


@pytest.mark.parametrize("name", ["cnn", "mobilenet"])
def test_arithmetic_that_is_coarser_than_float32_is_caught_and_located(name, published, monkeypatch) -> None:
    """As TF32 does: weights with 10 bits of mantissa."""

    def coarse(model: ir.Model) -> ir.Model:
        model = model.clone()
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                bits = tensor.numpy().copy().view(np.uint32)
                value.const_value = ir.tensor(((bits + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32))
        return model

    folder = published(name)
    right, opened = certifier.open_graph, certifier.open_session

    def open_graph(model: ir.Model, *, provider: Any = "cpu", optimised: bool = True, cuda: Any = None) -> Any:
        return right(coarse(model) if optimised else model, provider=provider, optimised=optimised)

    def open_session(file: Path, *, provider: Any = "cpu", cuda: Any = None) -> Any:
        return open_graph(ir.load(file), provider=provider)

    assert opened is not open_session
    monkeypatch.setattr(certifier, "open_graph", open_graph)
    monkeypatch.setattr(certifier, "open_session", open_session)
    made = check(read_version(folder))
    assert not made
    assert made.algebra
    assert made.rounding
    assert not made.verdict
    assert made.located is not None
    first = next(node for node in ir.load(folder / "model.onnx").graph if node.op_type == "Conv")
    assert made.located.layer == graph.display_name(first)


def test_a_changed_byte_anywhere_is_refused(published, tmp_path) -> None:
    for file in published("cnn").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        file.write_bytes(changed)
        with pytest.raises(BnfoldError, match=file.name):
            read_version(tmp_path)
        file.write_bytes(content)
    assert read_version(tmp_path)


def test_a_verdict_is_true_only_if_all_parts_hold(published) -> None:
    made = check(read_version(published("cnn")))
    assert made
    family = dataclasses.replace(made.algebra.families[0], difference=np.nan)
    assert not dataclasses.replace(made, algebra=dataclasses.replace(made.algebra, families=(family,)))
