"""From an eval-mode PyTorch module to the unfolded ONNX graph, with every BatchNorm still in it.

The optimiser of `torch.onnx.export` folds some BatchNorms without a report, so it is switched off. What remains
unoptimised (computed zero biases, constants behind casts and reshapes) is folded here by constant folding, which does
not touch BatchNorm.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.parameter import is_lazy

from fold.errors import BnfoldError, first_line, root_cause
from fold.graph import constant, display_name
from fold.sources.archive.ranges import computed_size
from fold.sources.functional import functional
from fold.sources.outputs import output_names, with_plain_outputs
from fold.sources.quiet import silenced

Sizes = Sequence[int | str]

BATCH = "batch"
USE_INPUT_STATS = 5
"""Position of `use_input_stats` among the arguments of `aten.instance_norm`."""
BOUNDED = (
    torch.ops.aten.clamp.default,
    torch.ops.aten.clamp_.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.hardtanh_.default,
)


def export_module(module: nn.Module, inputs: Sequence[torch.Tensor] | torch.Tensor) -> ir.Model:
    """The unfolded graph of `module` in eval mode, BatchNorm intact, with a dynamic batch as the first axis.

    `inputs` are example inputs with the batch first, of any batch size; the graph's inputs have the names of the
    arguments of `forward`. Its output is `output`; the outputs of a tuple are `output_0`, `output_1`, …, and those of a
    mapping have their keys as names. The module is not changed. Raises `BnfoldError` if it cannot be exported.
    """
    return export_graph(export_program(module, inputs))


def export_program(
    module: nn.Module,
    inputs: Sequence[torch.Tensor] | torch.Tensor,
    sizes: Sequence[Sizes] | None = None,
    *,
    batch: int | None = None,
) -> ExportedProgram:
    """The reference: `module` in eval mode as an exported program, from which the graph and the `.pt2` are made.

    `sizes` are the shapes of the inputs without the batch. A free size is a name; without `sizes` all are as in the
    examples. The batch is free, or `batch` rows and nothing else.
    """
    examples = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    # torch.export takes a size of 1 for a constant, so the examples for a free batch have 3 rows.
    rows = batch or 3
    examples = tuple(example.repeat(rows, *[1] * (example.ndim - 1))[:rows] for example in examples)
    sizes = sizes or [tuple(example.shape[1:]) for example in examples]
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise BnfoldError(
            f"{type(module).__name__}: has lazy layers without weights; run it once, or load a checkpoint"
        )
    first = {0: Dim(BATCH)} if batch is None else {}
    dynamic_shapes = tuple(
        first | {axis: Dim.DYNAMIC for axis, size in enumerate(shape, 1) if isinstance(size, str)} for shape in sizes
    )
    try:
        with silenced(), torch.no_grad():
            module = copy.deepcopy(module).eval()
            return with_plain_outputs(torch.export.export(module, examples, dynamic_shapes=dynamic_shapes))
    except Exception as error:  # torch.export raises whatever the model's own code raises
        shapes = " and ".join(",".join(map(str, shape)) for shape in sizes)
        raise BnfoldError(
            f"{type(module).__name__}: torch.export cannot trace it with an input of {shapes}: {first_line(error)}; "
            "check --input and forward()"
        ) from error


def export_graph(
    program: ExportedProgram, sizes: Sequence[Sizes] = (), *, note: Callable[[str], None] = lambda reason: None
) -> ir.Model:
    """The unfolded graph of an exported program. `sizes` are the shapes of its inputs, with the names of free sizes.

    `note` is told why the exporter had to trace the program again, if it had to.
    """
    try:
        with silenced():
            model = _translate(_prepared(program), note)
    except Exception as error:
        computed = computed_size(program)
        if computed is not None:
            raise BnfoldError(
                f"the program computes a size from others ({computed}), and PyTorch cannot trace it again, which its "
                "export to ONNX needs here; run torch.export with fixed sizes, or with free ones that do not depend on "
                "each other"
            ) from error
        raise BnfoldError(
            f"torch.onnx.export cannot express the model in ONNX: {first_line(root_cause(error))}; change the operator "
            "that it names, or export the model to .onnx yourself"
        ) from error
    _fold_constants(model, set(program.state_dict))
    _name_sizes(model, sizes)
    _name_outputs(model, output_names(program))
    for node in model.graph:  # a served file must not contain the user's source and paths
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    return model


def _translate(program: ExportedProgram, note: Callable[[str], None]) -> ir.Model:
    """By `torch.onnx.export`, from a functional program if `program` can be rewritten as one."""
    try:
        return _export(functional(program, note))
    except Exception as error:  # an operator that is not rewritten; or internals of another version of PyTorch
        note(first_line(root_cause(error)))
        return _export(program)


def _export(program: ExportedProgram) -> ir.Model:
    exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert exported is not None
    return exported.model


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write the reference as a `.pt2` without example inputs, which would be pickled."""
    program = copy.copy(program)
    program._example_inputs = None
    with silenced(), path.open("wb") as stream:
        torch.export.save(program, stream)


def _prepared(program: ExportedProgram) -> ExportedProgram:
    """The program with two operators rewritten, which the exporter would write badly or refuse.

    `instance_norm` that reads running statistics is in eval mode the same as `batch_norm`, and would be written as a
    BatchNorm over every channel of every sample, between two reshapes. Bounds of a clip that are a float and a whole
    number, `clamp(0.1, 6)`, find no operator of that name; for a float tensor both may be floats.
    """
    if not any(_has_statistics(node) or _has_mixed_bounds(node) for node in program.graph.nodes):
        return program
    program = copy.copy(program)
    program._graph_module = copy.deepcopy(program.graph_module)
    for node in program.graph.nodes:
        if _has_statistics(node):
            node.target = torch.ops.aten.batch_norm.default  # takes the same arguments
        elif _has_mixed_bounds(node):
            node.args = (node.args[0], *(float(bound) if isinstance(bound, int) else bound for bound in node.args[1:]))
    return program


def _has_mixed_bounds(node: torch.fx.Node) -> bool:
    if node.target not in BOUNDED or not isinstance(node.args[0], torch.fx.Node):
        return False
    return node.args[0].meta["val"].is_floating_point() and {type(bound) for bound in node.args[1:]} >= {int, float}


def _has_statistics(node: torch.fx.Node) -> bool:
    return node.target is torch.ops.aten.instance_norm.default and node.args[USE_INPUT_STATS] is False


def _fold_constants(model: ir.Model, named: set[str]) -> None:
    """Evaluate constant expressions, keep every BatchNorm, and drop the zero biases that the exporter added."""
    optimizer.fold_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        if node.op_type == "MatMul":
            _name_transposed(node, named)
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3:
            bias = node.inputs[2]
            tensor = constant(bias)
            if bias is not None and bias.name not in named and tensor is not None and not tensor.numpy().any():
                node.resize_inputs(2)
    _fix_reshapes(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    common.ShapeInferencePass()(model)


def _name_transposed(node: ir.Node, named: set[str]) -> None:
    """Name the transposed weight of a Linear on three axes `NAME.weight.T` instead of the generated name."""
    weight, name = node.inputs[1], f"{display_name(node)}.weight"
    if weight is not None and weight.is_initializer() and weight.name not in named and name in named:
        graph = weight.graph
        if graph is not None and f"{name}.T" not in graph.initializers:
            weight.name = f"{name}.T"


def _fix_reshapes(model: ir.Model) -> None:
    """Replace the target of a Reshape by a constant where the batch is the only free size."""
    for node in list(model.graph):
        result = node.outputs[0]
        if node.op_type != "Reshape" or result.shape is None:
            continue
        given = constant(node.inputs[1])
        if given is not None:
            if 0 not in given.numpy():
                node.attributes.pop("allowzero", None)  # it says what a zero means
            continue
        sizes = [size if isinstance(size, int) else -1 for size in result.shape]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        target = ir.Value(
            name=f"{result.name}_shape",
            shape=ir.Shape([len(sizes)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(sizes, dtype=ir.DataType.INT64),
        )
        model.graph.register_initializer(target)
        node.replace_input_with(1, target)
        node.attributes.pop("allowzero", None)


def _name_sizes(model: ir.Model, sizes: Sequence[Sizes]) -> None:
    """Restore the names of the batch and the free sizes, which the exporter replaces by its own symbols."""
    graph = model.graph
    names: dict[str, str] = {}
    for position, value in enumerate(graph.inputs):
        given = (BATCH, *(sizes[position] if position < len(sizes) else ()))
        for dim, name in zip(value.shape or (), given, strict=False):
            if isinstance(dim, int) or dim.value is None or isinstance(name, int):
                continue
            first = names.setdefault(str(dim.value), name)
            if first != name:
                raise BnfoldError(
                    f"--input: {first} and {name} must be equal for this network; use the same letter for both"
                )
    if names:
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: Any, names: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    symbols = "|".join(re.escape(symbol) for symbol in names)
    return None if dim.value is None else re.sub(rf"\b({symbols})\b", lambda m: names[m[1]], str(dim.value))


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Name the outputs. A name that an input already has gets an underscore; an inner value with it is renamed."""
    taken = {value.name for value in model.graph.inputs}
    others = {value.name: value for node in model.graph for value in node.outputs if not value.is_graph_output()}
    for value, name in zip(model.graph.outputs, names, strict=True):
        chosen = f"{name}_" if name in taken else name
        taken.add(chosen)
        if chosen in others:
            others[chosen].name = f"{chosen}.inner"
        value.name = chosen
