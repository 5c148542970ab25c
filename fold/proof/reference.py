"""The reference: the unfolded model that a folded graph is compared with, as a PyTorch module or an ONNX graph.

PyTorch is imported only when a PyTorch reference is loaded.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fold.arrays import Arrays, Run, widened
from fold.artifact import ModelVersion, check_file
from fold.errors import BnfoldError
from fold.proof.run_time import judge
from fold.runtime import open_graph

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    from fold.proof.unfolded import Reduced
    from fold.runtime import Provider

ROOM_FOR_WEIGHTS, ROOM_BESIDE = 4, 2 << 30
"""Free memory that a reference needs on a GPU: a multiple of its weights, and bytes for activations and libraries. A
GPU that serves has to keep room for the batches."""
REDUCED = frozenset({"FLOAT16", "BFLOAT16"})
"""Types that are coarser than float32."""


class Reference(Protocol):
    """The unfolded model in two precisions. Inputs and outputs are arrays by name, the batch first.

    `mixed` is true if the model itself stores tensors in types coarser than float32.
    """

    @property
    def mixed(self) -> bool: ...

    def exact(self, inputs: Arrays) -> Arrays:
        """R: computed in float64."""

    def unfolded(self, inputs: Arrays) -> Arrays:
        """U: computed in float32, or in the reduced precision of the folded graph."""

    def noisy(self, inputs: Arrays, seed: int, roundings: float | None) -> Arrays:
        """R with noise of so many roundings of each tensor; None: of its type's amplitude (fold.evaluate.noise)."""


class ModuleReference:
    """A PyTorch module in eval mode and a copy of it in float64; arguments are passed in the order of `input_names`."""

    def __init__(self, module: "nn.Module", input_names: Sequence[str], output_names: Sequence[str]) -> None:
        from fold.sources import silenced  # noqa: PLC0415

        self._single = module
        self._stored = _coarsest(tensor.dtype for tensor in (*module.parameters(), *module.buffers()))
        self.mixed = _is_reduced(self._stored)
        with silenced():
            self._double = copy.deepcopy(module).double()
        self._input_names = input_names
        self._output_names = output_names

    def exact(self, inputs: Arrays) -> Arrays:
        return _run(self._double, widened(inputs), self._input_names, self._output_names)

    def unfolded(self, inputs: Arrays) -> Arrays:
        return _run(self._single, inputs, self._input_names, self._output_names)

    def noisy(self, inputs: Arrays, seed: int, roundings: float | None) -> Arrays:
        from fold.evaluate import TorchNoise  # noqa: PLC0415

        with TorchNoise(self._stored, seed, roundings):
            return self.exact(inputs)


class ProgramReference:
    """A program of `torch.export`. Each weight is widened while a node reads it, so float64 needs no second copy.

    In float64, a cast to float32 in the program (`x.float()`) is ignored. `device` is PyTorch's name of the device; on
    a GPU, factors are not rounded to TF32.
    """

    def __init__(
        self, program: "ExportedProgram", input_names: Sequence[str], output_names: Sequence[str], device: str = "cpu"
    ) -> None:
        if device != "cpu":
            import torch  # noqa: PLC0415
            from torch.export.passes import move_to_device_pass  # noqa: PLC0415

            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            program = move_to_device_pass(program, device)
        values = (node.meta.get("val") for node in program.graph.nodes)
        self._stored = _coarsest(value.dtype for value in values if hasattr(value, "dtype"))
        self.mixed = _is_reduced(self._stored)
        self._module = program.module(check_guards=False)  # the guards accept only the sizes of the example
        self._input_names = input_names
        self._output_names = output_names
        self._device = device

    def exact(self, inputs: Arrays) -> Arrays:
        from fold.evaluate import InFloat64  # noqa: PLC0415

        return _run(InFloat64(self._module).run, widened(inputs), self._input_names, self._output_names, self._device)

    def unfolded(self, inputs: Arrays) -> Arrays:
        return _run(self._module, inputs, self._input_names, self._output_names, self._device)

    def noisy(self, inputs: Arrays, seed: int, roundings: float | None) -> Arrays:
        from fold.evaluate import TorchNoise  # noqa: PLC0415

        with TorchNoise(self._stored, seed, roundings):
            return self.exact(inputs)


class GraphReference:
    """An unfolded ONNX graph: float64 by onnx's reference implementation, float32 by ONNX Runtime on the CPU.

    An old graph is lifted for float64, because the reference implementation computes old operators wrongly; float32
    runs the file as it was given. So each call of `exact` first checks that both are the same model: the file must be
    as close to the lifted graph in float64 as the lifted graph in float32 is. `lifted` is that graph, if the caller has
    it already. For a recent graph, float64 reads the file itself, so that no step of bnfold stands between the two.
    """

    def __init__(self, path: Path, lifted: "ir.Model | None" = None) -> None:
        from fold.evaluate import Evaluator  # noqa: PLC0415
        from fold.graph import RUNTIME_OPSET, infer_shapes, lift, needs_lifting, read_graph  # noqa: PLC0415
        from fold.runtime import open_session, run  # noqa: PLC0415

        given = read_graph(path).model
        self._opset = given.opset_imports.get("", 1)
        self._lifted: Run | None = None
        if needs_lifting(given):
            model = lift(given).model if lifted is None else lifted
            self._lifted = partial(run, open_graph(model))
        else:
            model = given
        self._exact: Run = Evaluator(model)
        if any(value.dtype is None for node in model.graph for value in node.outputs):
            model = model.clone()
            infer_shapes(model)  # noise depends on the type of each tensor
        self._model = model
        self.mixed = any(
            value.dtype is not None and value.dtype.name in REDUCED for node in model.graph for value in node.outputs
        )
        self._given: Run
        self._unfolded: Run
        if self._lifted is not None and self._opset < RUNTIME_OPSET:
            self._given, self._unfolded = Evaluator(given), self._lifted
        else:
            self._given = self._unfolded = partial(run, open_session(path, provider="cpu"))

    def exact(self, inputs: Arrays) -> Arrays:
        exact = self._exact(inputs)
        if self._lifted is not None:
            self._check_lifting(exact, self._lifted(inputs), self._given(inputs))
        return exact

    def unfolded(self, inputs: Arrays) -> Arrays:
        return self._unfolded(inputs)

    def noisy(self, inputs: Arrays, seed: int, roundings: float | None) -> Arrays:
        from fold.evaluate import NoisyEvaluator  # noqa: PLC0415

        return NoisyEvaluator(self._model)(inputs, seed, roundings)

    def _check_lifting(self, exact: Arrays, lifted: Arrays, given: Arrays) -> None:
        for name, truth in exact.items():
            # `compare` checks whether R is right; here both may be far from it in the same way
            same = given[name].shape == truth.shape
            if not same or not judge(name, truth, lifted[name], given[name], noise=np.inf).equivalent:
                raise BnfoldError(
                    f"the graph of opset {self._opset} cannot be lifted: its output {name!r} changes; "
                    "export the model again with a recent opset"
                )


def _coarsest(types: "Iterable[torch.dtype]") -> "torch.dtype":
    """The float type with the largest rounding error, at least float32's."""
    import torch  # noqa: PLC0415

    floats = [kind for kind in types if kind.is_floating_point]
    return max((torch.float32, *floats), key=lambda kind: torch.finfo(kind).eps)


def _is_reduced(kind: "torch.dtype") -> bool:
    import torch  # noqa: PLC0415

    return kind != torch.float32


def _run(
    module: Callable[..., Any], inputs: Arrays, takes: Sequence[str], gives: Sequence[str], device: str = "cpu"
) -> Arrays:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree as pytree  # noqa: PLC0415

    with torch.no_grad():
        # a copy, because PyTorch warns of arrays that it may not write to
        result = module(*(torch.from_numpy(np.array(inputs[name])).to(device) for name in takes))
    tensors = (leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))  # None is no output
    return dict(zip(gives, (tensor.cpu().numpy() for tensor in tensors), strict=True))


@dataclass(frozen=True)
class ReducedReference:
    """The unfolded model in float64, and in the reduced precision in which the folded graph is served."""

    exact: Run
    unfolded: Run
    noisy: Callable[[Arrays, int, float | None], Arrays]
    mixed: bool = False


def load_reference(
    version: ModelVersion,
    *,
    provider: "Provider" = "cpu",
    unfolded: "ir.Model | None" = None,
    reduced: "Reduced | None" = None,
    beside: bool = False,
) -> Reference:
    """The reference that a model directory was published with. Imports PyTorch for a `.pt2`.

    If the graph is served in a reduced precision, U is computed in it as well, on `provider`. `unfolded` is the
    unfolded graph and `reduced` runs it in that precision (`run_unfolded`), if the caller has them already. A PyTorch
    reference computes on the CPU; with `beside` it computes on the GPU of the served graph, if PyTorch can use that GPU
    and there is room.
    """
    reference = _load_float32(version, provider if beside else "cpu", unfolded)
    from fold.runtime import resolve_provider  # noqa: PLC0415

    if version.manifest.precision_on(resolve_provider(provider)) == "fp32":
        return reference
    if reduced is None:
        from fold.proof.unfolded import load_unfolded, run_unfolded  # noqa: PLC0415

        reduced = run_unfolded(version, provider, load_unfolded(version) if unfolded is None else unfolded)
    return ReducedReference(reference.exact, reduced.unfolded, reduced.noisy)


def _load_float32(version: ModelVersion, provider: "Provider", unfolded: "ir.Model | None") -> Reference:
    check_file(version.path, version.manifest.reference)
    if version.manifest.reference == "unfolded.onnx":
        return GraphReference(version.reference_file, unfolded)
    from fold.sources import load_program  # noqa: PLC0415

    program = load_program(version.reference_file)
    inputs, outputs = ([spec.name for spec in specs] for specs in (version.manifest.inputs, version.manifest.outputs))
    return ProgramReference(program, inputs, outputs, _torch_device(program, provider))


def _torch_device(program: "ExportedProgram", provider: "Provider") -> str:
    """PyTorch's name of the device to compute on: the CPU if PyTorch cannot use the GPU or it has too little room."""
    from fold.runtime import device_number, resolve_provider  # noqa: PLC0415

    if resolve_provider(provider) == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return "cpu"
    number = device_number(provider)
    free, _ = torch.cuda.mem_get_info(number)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    return f"cuda:{number}" if free > ROOM_FOR_WEIGHTS * weights + ROOM_BESIDE else "cpu"
