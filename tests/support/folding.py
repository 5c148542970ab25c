"""Building graphs, drawing statistics, and the one numeric check that carries every test of folding."""

import functools
import getpass
import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

import fold
from fold.engine.report import FoldReport
from fold.evaluate.float64 import as_float64, evaluate
from fold.graph.file import read_graph, save_graph
from fold.sources.export import export_graph, export_program
from fold.sources.functional import UnfamiliarError
from models.frozen_resnet import FrozenBatchNorm2d

from . import ROOT

ARCHITECTURES = {
    "mlp": (1, 8, 8),
    "cnn": (1, 8, 8),
    "vgg_after": (1, 8, 8),
    "resnet": (1, 8, 8),
    "preact_resnet": (1, 8, 8),
    "mobilenet": (1, 8, 8),
    "densenet": (1, 8, 8),
    "unet": (1, 8, 8),
    "repvgg": (1, 8, 8),
    "conv1d_tcn": (1, 8, 8),
    "mobileone": (1, 17, 18),
    "fastvit": (1, 20, 18),
    "repvit": (1, 14, 18),
    "dpn": (1, 10, 7),
    "resnetv2": (1, 10, 7),
    "pyramidnet": (1, 10, 7),
    "convmixer": (1, 14, 12),
    "levit": (1, 14, 18),
    "efficientvit": (1, 9, 11),
    "nasnet": (1, 10, 7),
    "mixnet": (1, 10, 7),
    "senet": (1, 10, 7),
    "ecanet": (1, 10, 7),
    "shufflenet": (1, 10, 7),
    "frozen_resnet": (1, 10, 7),
    "r3d": (1, 5, 6, 7),
    "dcgan": (7,),
}


def architecture(name: str, **arguments: object) -> nn.Module:
    return getattr(importlib.import_module(f"models.{name}"), name)(**arguments).eval()


def randomise(module: nn.Module, seed: int, *, hostile: bool = True) -> nn.Module:
    """Draw every statistic at random. Hostile γ has both signs, a zero and a tiny one in each BatchNorm.

    Layer scales, which start equal in all channels, are drawn with both signs too.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("layer_scale"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for batchnorm in module.modules():
            if not isinstance(batchnorm, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d):
                continue
            n = batchnorm.num_features
            batchnorm.running_mean.copy_(torch.randn(n, generator=generator))
            batchnorm.running_var.copy_(torch.rand(n, generator=generator) * 2 + 0.1)
            gamma = torch.rand(n, generator=generator) + 0.2
            if hostile:
                gamma = torch.where(torch.rand(n, generator=generator) < 0.3, -gamma, gamma)
                gamma[0], gamma[-1] = 0, 1e-7
            beta = torch.randn(n, generator=generator)
            if batchnorm.weight is not None:
                batchnorm.weight.copy_(gamma)
                batchnorm.bias.copy_(beta)
    return module


EXPORTERS = ("torch", "onnx", "onnxscript", "onnx_ir", "numpy")
"""The libraries that take part in an export."""


def export_digest(root: Path, versions: Mapping[str, str]) -> str:
    """Of all that an export depends on: this file, the networks, all of `fold`, for its parts import each other, and
    the libraries. It costs less to read than to keep a list of files that is never too short."""
    folders = (root / "models", root / "fold")
    sources = [root / "tests" / "support" / "folding.py", *(file for each in folders for file in each.rglob("*.py"))]
    digest = hashlib.sha256(repr(sorted(versions.items())).encode())
    for source in sorted(sources):
        digest.update(f"\0{source.relative_to(root)}\0".encode() + source.read_bytes())
    return digest.hexdigest()


@functools.cache
def program(name: str) -> ExportedProgram:
    """An architecture, with the parameters that it begins with, as `torch.export` traces it."""
    torch.manual_seed(7)
    return export_program(architecture(name), torch.randn(2, *ARCHITECTURES[name]))


@functools.cache
def export(name: str) -> ir.Model:
    """The unfolded graph of an architecture, with the parameters that it begins with."""
    return _kept(name, lambda: export_graph(program(name)))


def export_retraced(name: str) -> ir.Model:
    """The same graph as `torch.onnx.export` makes it by itself."""
    with mock.patch("fold.sources.export.functional", side_effect=UnfamiliarError("a test")):
        return _kept(f"{name}-retraced", lambda: export_graph(program(name)))


def _kept(name: str, make: Callable[[], ir.Model]) -> ir.Model:
    """What `make` exports. Exporting takes most of the time of what is tested on all architectures, so it is done once
    for every process that tests; the graph is kept on disk, under a digest of what it depends on."""
    digest = export_digest(ROOT, {library: version(library) for library in EXPORTERS})
    file = Path(tempfile.gettempdir()) / f"bnfold-tests-{getpass.getuser()}" / f"{name}-{digest[:16]}.onnx"
    if not file.exists():
        model = make()
        file.parent.mkdir(exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        save_graph(model, written)
        written.rename(file)  # whole or not at all
    return read_graph(file).model


def unfolded_graph(name: str, module: nn.Module) -> ir.Model:
    """The unfolded graph of `module`, which is an architecture of that name."""
    if name == "frozen_resnet":  # what its buffers amount to is computed at export
        return fold.export_module(module, torch.randn(2, *ARCHITECTURES[name]))
    return with_parameters(export(name), module)


@functools.cache
def unfolded(name: str) -> ir.Model:
    """The unfolded graph of an architecture with random statistics and γ > 0."""
    torch.manual_seed(0)
    return unfolded_graph(name, randomise(architecture(name), 1, hostile=False))


def with_parameters(model: ir.Model, module: nn.Module) -> ir.Model:
    """A copy of the graph that was exported from a network like `module`, with the parameters of `module`.

    Raises `KeyError` for a parameter that the graph does not hold, since the exporter computed with it.
    """
    model = model.clone()
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        stored, array = model.graph.initializers.get(name), tensor.numpy().copy()
        if stored is None:  # a Linear on three axes multiplies by its weight transposed
            stored, array = model.graph.initializers[f"{name}.T"], array.T
        stored.const_value = ir.tensor(array, name=stored.name)
    return model


class GraphBuilder:
    """Builds a float64 graph node by node; shapes of values are inferred when it is finished."""

    def __init__(self, *input_shape: int | str, seed: int = 0, opset: int = 20) -> None:
        self.random = np.random.default_rng(seed)
        self.x = self.input("x", *input_shape)
        self._opset = opset

    inputs: list[ir.Value]

    def input(self, name: str, *shape: int | str) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.DOUBLE))
        self.inputs = [*getattr(self, "inputs", []), value]
        self.nodes: list[ir.Node] = getattr(self, "nodes", [])
        self.initializers: list[ir.Value] = getattr(self, "initializers", [])
        return value

    def constant(self, array: np.ndarray | list[float] | list[int], name: str | None = None) -> ir.Value:
        tensor = ir.tensor(np.asarray(array))
        value = ir.Value(
            name=name or f"c{len(self.initializers)}",
            shape=ir.Shape(np.asarray(array).shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.initializers.append(value)
        return value

    def normal(self, *shape: int) -> ir.Value:
        return self.constant(self.random.standard_normal(shape))

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"{op_type}_{len(self.nodes)}")
        for position, value in enumerate(node.outputs):
            value.name = f"{node.name}_{position}"
        self.nodes.append(node)
        return node.outputs[0]

    def batchnorm(
        self, x: ir.Value, channels: int, *, hostile: bool = False, positive: bool = False, **attributes: object
    ) -> ir.Value:
        gamma = self.random.uniform(0.2, 2, channels)
        if not positive:
            gamma *= self.random.choice([-1, 1], channels)
        if hostile:
            gamma[0], gamma[-1] = 0, 1e-7
        return self.op(
            "BatchNormalization",
            x,
            self.constant(gamma),
            self.normal(channels),
            self.normal(channels),
            self.constant(self.random.uniform(0.1, 3, channels)),
            **attributes,
        )

    def finish(self, *outputs: ir.Value) -> ir.Model:
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.DOUBLE)
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": self._opset},
            name="g",
        )
        model = ir.Model(graph, ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True))


def batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


def interface(model: ir.Model) -> list[tuple[object, ...]]:
    return [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]


def check_fold(
    model: ir.Model, *, kept: int | None = None, seed: int = 0, open_activations: bool = False
) -> tuple[ir.Model, FoldReport]:
    """Fold in float64 and compare on several families of inputs: equal to 1e-12 of the largest output.

    Also holds what is true of every fold: the argument is untouched, inputs and outputs keep names, types and shapes,
    every BatchNorm is accounted for, and `kept` of them, if given, are left.
    """
    model = as_float64(model)
    before = ir.to_proto(model).SerializeToString()
    folded, report = fold.fold_model(model, open_activations=open_activations)
    assert ir.to_proto(model).SerializeToString() == before
    assert interface(folded) == interface(model)
    written_out = any(node.op_type in ("Mul", "Div") for node in model.graph)  # these may be BatchNorms as well
    assert report.batchnorms == batchnorms(model) or (written_out and report.batchnorms > batchnorms(model))
    assert len(report.kept) == batchnorms(folded) or (written_out and len(report.kept) > batchnorms(folded))
    if kept is not None:
        assert len(report.kept) == kept, [entry.reason for entry in report.kept]
    generator = np.random.default_rng(seed)
    for rows, offset, spread in ((1, 0, 1), (3, 50, 1), (3, -3, 10)):
        inputs = {
            value.name: offset
            + spread * generator.standard_normal([d if isinstance(d, int) else rows for d in value.shape])
            for value in model.graph.inputs
        }
        expected, actual = evaluate(model, inputs), evaluate(folded, inputs)
        for name, truth in expected.items():
            np.testing.assert_allclose(actual[name], truth, rtol=0, atol=1e-12 * max(np.abs(truth).max(), 1e-300))
    return folded, report
