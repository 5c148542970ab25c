"""Equivalence: two models, the same inputs, and a verdict that says how far they are apart.

R is the unfolded model in float64, U the unfolded model in float32, F the folded graph as served. The folded graph is
equivalent if it is no further from the truth than float32 rounding already put the unfolded one:
`max|F-R| <= 4*max|U-R| + 8*eps*max|R|`, for each output (docs/design.md, "Equivalence").

PyTorch is imported only where a PyTorch reference is loaded.
"""

import copy
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fold.artifact import DATATYPES, ModelVersion, TensorSpec
from fold.errors import BnfoldError

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort
    import torch
    from torch import nn

    from fold.runtime import Provider

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
FACTOR = 4
"""How many times the unfolded model's own rounding error the folded graph may have."""
FLOOR = 8 * float(np.finfo(np.float32).eps)
"""What rounding may cost a graph whose unfolded form happens to be exact, relative to the largest output."""
FREE_SIZE = 8
"""Extent given to a free dimension that is not the batch, where inputs are drawn."""
RUNTIME_OPSET = 7
"""The oldest that ONNX Runtime runs; older graphs are held against onnx's reference implementation."""


@dataclass(frozen=True)
class OutputVerdict:
    """How far one output is from the truth R. Errors are maxima over all elements and samples, in the output's unit.

    `limit` is what `folded_error` must not exceed. `relative_error` is `folded_error/max|R|`, `ulp` is `folded_error`
    in steps of float32 at `max|R|`, `cosine` is between F and R, `worst_sample` holds `folded_error`.
    """

    name: str
    equivalent: bool
    unfolded_error: float
    folded_error: float
    limit: float
    relative_error: float
    ulp: float
    cosine: float
    worst_sample: int


@dataclass(frozen=True)
class Verdict:
    """True if every output is equivalent. `seed` is None where the caller gave the inputs."""

    outputs: tuple[OutputVerdict, ...]
    samples: int
    seed: int | None
    provider: str
    precision: str
    seconds: float

    def __bool__(self) -> bool:
        return all(output.equivalent for output in self.outputs)

    @property
    def message(self) -> str:
        """The verdict in one sentence."""
        worst = max(self.outputs, key=lambda output: output.folded_error / output.limit if output.limit else 0.0)
        numbers = (
            f"output {worst.name!r} is at most {worst.folded_error:.3g} from float64, "
            f"the unfolded model {worst.unfolded_error:.3g}, the limit is {worst.limit:.3g}"
        )
        where = f"over {self.samples} samples on {self.provider} in {self.precision}"
        return f"{'equivalent' if self else 'NOT equivalent'} {where}: {numbers}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "equivalent": bool(self),
            "message": self.message,
            "samples": self.samples,
            "seed": self.seed,
            "provider": self.provider,
            "precision": self.precision,
            "seconds": round(self.seconds, 4),
            "outputs": [asdict(output) for output in self.outputs],
        }


class Reference(Protocol):
    """The unfolded model in two precisions. Inputs and outputs are arrays by name, the batch first."""

    def exact(self, inputs: Arrays) -> Arrays:
        """R: computed in float64."""

    def unfolded(self, inputs: Arrays) -> Arrays:
        """U: computed in float32."""


class ModuleReference:
    """A PyTorch module in eval mode and a copy of it in float64; arguments are passed in the order of `input_names`."""

    def __init__(self, module: "nn.Module", input_names: Sequence[str], output_names: Sequence[str]) -> None:
        from fold.export import quiet  # noqa: PLC0415

        self._single = module
        with quiet():
            self._double = copy.deepcopy(module).double()
        self._input_names = input_names
        self._output_names = output_names

    def exact(self, inputs: Arrays) -> Arrays:
        wide = {name: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for name, a in inputs.items()}
        return self._run(self._double, wide)

    def unfolded(self, inputs: Arrays) -> Arrays:
        return self._run(self._single, inputs)

    def _run(self, module: "nn.Module", inputs: Arrays) -> Arrays:
        import torch  # noqa: PLC0415
        from torch.utils import _pytree as pytree  # noqa: PLC0415

        with torch.no_grad():
            # a copy: torch warns of arrays that it may not write to
            result = module(*(torch.from_numpy(np.array(inputs[name])) for name in self._input_names))
        outputs = [tensor.numpy() for tensor in pytree.tree_leaves(result)]
        return dict(zip(self._output_names, outputs, strict=True))


class GraphReference:
    """An unfolded ONNX graph: float64 by onnx's reference implementation, float32 by ONNX Runtime on the CPU.

    An old graph is lifted for float64, since the reference implementation is wrong for old operators, while float32
    runs the file as it is given. So on every input it is checked first that the two are the same model: the file may
    be as far from the lifted graph in float64 as the lifted graph in float32 is.
    """

    def __init__(self, path: Path) -> None:
        from fold.evaluate import Evaluator  # noqa: PLC0415
        from fold.lift import lift  # noqa: PLC0415
        from fold.onnxfile import read_graph  # noqa: PLC0415
        from fold.runtime import open_session, run  # noqa: PLC0415

        given = read_graph(path).model
        lifted = lift(given)
        self._opset = lifted.opset
        self._exact: Run = Evaluator(lifted.model)
        self._lifted: Run | None = None if lifted.model is given else partial(run, open_graph(lifted.model))
        self._given: Run
        self._unfolded: Run
        if self._lifted is not None and lifted.opset < RUNTIME_OPSET:
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

    def _check_lifting(self, exact: Arrays, lifted: Arrays, given: Arrays) -> None:
        for name, truth in exact.items():
            if given[name].shape != truth.shape or not _judge(name, truth, lifted[name], given[name]).equivalent:
                raise BnfoldError(
                    f"the graph of opset {self._opset} cannot be lifted: its output {name!r} becomes another; "
                    "export the model again with a recent opset"
                )


def open_graph(model: "ir.Model") -> "ort.InferenceSession":
    """A graph in memory, opened on the CPU by way of a file: as bytes it might not fit into protobuf."""
    from fold.onnxfile import save_graph  # noqa: PLC0415
    from fold.runtime import open_session  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_graph(model, path)
        return open_session(path, provider="cpu")


def load_reference(version: ModelVersion) -> Reference:
    """The reference that a model directory was published with. Imports PyTorch for a `.pt2`."""
    if version.manifest.reference == "unfolded.onnx":
        return GraphReference(version.reference_file)
    from fold.checkpoint import load_program  # noqa: PLC0415

    program = load_program(version.reference_file)
    inputs, outputs = ([spec.name for spec in specs] for specs in (version.manifest.inputs, version.manifest.outputs))
    return ModuleReference(program.module(), inputs, outputs)


def verify_model(
    module: "nn.Module",
    model: "ir.Model",
    inputs: "Mapping[str, Any] | Sequence[Any] | np.ndarray | torch.Tensor | None" = None,
    *,
    samples: int = 16,
    seed: int = 0,
) -> Verdict:
    """Whether `model`, folded, computes in ONNX Runtime on the CPU what `module` computes in eval mode.

    `inputs` are arrays or tensors, batch first: by the graph's input names, in their order, or just the one there is.
    Without them `samples` inputs are drawn from `seed`. No argument is touched. Raises `BnfoldError` for inputs that do
    not fit.
    """
    from fold.graph import tensor_specs  # noqa: PLC0415
    from fold.runtime import run  # noqa: PLC0415

    session = open_graph(model)
    specs, output_specs = tensor_specs(model.graph.inputs), tensor_specs(model.graph.outputs)
    reference = ModuleReference(
        copy.deepcopy(module).eval(), [spec.name for spec in specs], [spec.name for spec in output_specs]
    )
    given = draw_inputs(specs, samples, seed) if inputs is None else check_inputs(specs, _by_name(specs, inputs))
    return compare(reference, lambda arrays: run(session, arrays), given, seed=seed if inputs is None else None)


def _by_name(specs: Sequence[TensorSpec], inputs: Any) -> Arrays:
    if not isinstance(inputs, Mapping):
        listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(listed) != len(specs):
            raise BnfoldError(f"{len(listed)} inputs were given; the model takes {len(specs)}")
        inputs = {spec.name: array for spec, array in zip(specs, listed, strict=True)}
    return {name: np.asarray(array) for name, array in inputs.items()}


def draw_inputs(specs: Sequence[TensorSpec], samples: int, seed: int) -> Arrays:
    """Inputs with `samples` rows: floats from N(0, 1), integers 0 or 1. The same for the same seed, on any machine."""
    generator = np.random.default_rng(seed)
    inputs: Arrays = {}
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise BnfoldError(f"input {spec.name!r}: no values of type {spec.datatype} can be drawn; give inputs")
        shape = [FREE_SIZE if size < 0 else size for size in spec.shape]
        if spec.shape and spec.shape[0] < 0:
            shape[0] = samples
        dtype = DATATYPES[spec.datatype]
        if np.issubdtype(dtype, np.floating):
            inputs[spec.name] = generator.standard_normal(shape).astype(dtype)
        else:
            inputs[spec.name] = generator.integers(0, 2, shape).astype(dtype)
    return inputs


def verify_version(
    version: ModelVersion,
    inputs: Arrays | None = None,
    *,
    samples: int = 16,
    seed: int = 0,
    provider: "Provider" = "auto",
) -> Verdict:
    """Prove a model directory anew: its folded graph, as this machine would serve it, against its own reference."""
    from fold.runtime import open_session, provider_of, run  # noqa: PLC0415

    specs = version.manifest.inputs
    given = draw_inputs(specs, samples, seed) if inputs is None else check_inputs(specs, inputs)
    session = open_session(version.model_file, provider=provider)
    reference = load_reference(version)
    noted = seed if inputs is None else None
    return compare(reference, lambda arrays: run(session, arrays), given, seed=noted, provider=provider_of(session))


def read_inputs(path: Path) -> Arrays:
    """Arrays by input name from an `.npz`; one that would be unpickled is refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise BnfoldError(f"{path}: is no .npz of plain arrays ({error}); write one with numpy.savez") from error


def check_inputs(specs: Sequence[TensorSpec], inputs: Arrays) -> Arrays:
    """The inputs that `specs` ask for. Raises `BnfoldError` that names what is missing, unknown or misshapen."""
    names = [spec.name for spec in specs]
    for name in inputs:
        if name not in names:
            raise BnfoldError(f"input {name!r}: the model has no such input; it takes {', '.join(names)}")
    for spec in specs:
        if spec.name not in inputs:
            raise BnfoldError(f"input {spec.name!r}: missing; the model takes {', '.join(names)}")
        array = inputs[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise BnfoldError(f"input {spec.name!r}: shape {list(array.shape)} does not fit {list(spec.shape)}")
        if array.dtype != DATATYPES.get(spec.datatype):
            raise BnfoldError(f"input {spec.name!r}: type {array.dtype}, expected {spec.datatype}")
    if len({inputs[spec.name].shape[0] for spec in specs if spec.shape and spec.shape[0] == -1}) > 1:
        raise BnfoldError(f"inputs {', '.join(names)}: their batches differ; expected the same number of rows")
    return inputs


def compare(
    reference: Reference,
    run: Run,
    inputs: Arrays,
    *,
    seed: int | None = None,
    provider: str = "cpu",
    precision: str = "fp32",
) -> Verdict:
    """Run reference and folded graph (`run`) on the same inputs. `seed` is only noted in the verdict."""
    started = time.perf_counter()
    samples = next(iter(inputs.values())).shape[0] if inputs and next(iter(inputs.values())).ndim else 1
    if samples == 0:
        raise BnfoldError("equivalence: no samples were given; expected at least one row")
    exact, unfolded, folded = reference.exact(inputs), reference.unfolded(inputs), run(inputs)
    outputs = []
    for name, truth in exact.items():
        if name not in folded or folded[name].shape != truth.shape:
            shape = folded[name].shape if name in folded else "nothing"
            raise BnfoldError(f"output {name!r}: the folded graph gives {shape}, the reference {truth.shape}")
        outputs.append(_judge(name, truth, unfolded[name], folded[name]))
    return Verdict(tuple(outputs), samples, seed, provider, precision, time.perf_counter() - started)


def _judge(name: str, exact: np.ndarray, unfolded: np.ndarray, folded: np.ndarray) -> OutputVerdict:
    R, U, F = (array.astype(np.float64) for array in (exact, unfolded, folded))
    # Where the unfolded model itself overflows, only the same infinity or NaN is right.
    finite = np.isfinite(R) & np.isfinite(U)
    same = np.array_equal(F[~finite], U[~finite], equal_nan=True)
    size = float(np.abs(R[finite]).max(initial=0))
    errors = np.zeros_like(R)
    errors[finite] = np.abs(F[finite] - R[finite])
    unfolded_error = float(np.abs(U[finite] - R[finite]).max(initial=0))
    folded_error = float(errors.max(initial=0))
    limit = FACTOR * unfolded_error + FLOOR * size
    rows = errors.reshape(errors.shape[0], -1).max(axis=1, initial=0) if errors.ndim else errors.reshape(1)
    norms = float(np.linalg.norm(R[finite]) * np.linalg.norm(F[finite]))
    return OutputVerdict(
        name=name,
        equivalent=same and folded_error <= limit,  # false for NaN, too
        unfolded_error=unfolded_error,
        folded_error=folded_error,
        limit=limit,
        relative_error=folded_error / size if size else 0.0,
        ulp=folded_error / float(np.spacing(np.float32(size))),
        cosine=float(np.dot(R[finite], F[finite])) / norms if norms else 1.0,
        worst_sample=int(np.argmax(rows)) if rows.size else 0,
    )
