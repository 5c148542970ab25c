"""The v1 convention's bodies: rows in, without datatypes and shapes. Instances become one array for each input.

An instance is one row of the input, or an object by input name. A row may be flat where its shape is fixed.
"""

from math import prod
from typing import Any

import numpy as np

from fold.artifact import TensorSpec
from service.budget import Budget, Estimate
from service.errors import BadRequestError, shown
from service.protocol.pieces import ANY, Bulk, Steps, array_of, count_of, flatten_list, nesting, packed_list
from service.protocol.pieces import row_shape as measured_shape
from service.protocol.signature import Signature
from service.protocol.tensors import flatten, numbers

EXPECTED = '{"instances": [...]}'


def columns_of(document: dict[str, Any], signature: Signature, max_rows: int) -> dict[str, list[Any]]:
    """Each input's values over the instances."""
    instances = document.get("instances")
    if type(instances) is not list or not instances:
        raise BadRequestError(f'"instances" is missing or no list with elements; expected {EXPECTED}')
    _check_count(len(instances), max_rows)
    if len(signature.inputs) == 1 and type(instances[0]) is not dict:
        return {next(iter(signature.inputs)): instances}
    for position, instance in enumerate(instances):
        if type(instance) is not dict or instance.keys() != signature.inputs.keys():
            names = ", ".join(repr(name) for name in signature.inputs)
            raise BadRequestError(f"instance {position} is {shown(instance)}; expected an object with {names}")
    return {name: [instance[name] for instance in instances] for name in signature.inputs}


def array_of_rows(name: str, values: list[Any], signature: Signature, *, booleans: bool = True) -> np.ndarray:
    """The values as one array with a first axis for the instances. `booleans`: see `numbers`."""
    spec = signature.inputs[name]
    shape, row = _shapes(values, _row(spec, signature))
    flat = flatten(name, values, shape)
    return numbers(f"input {name!r}", spec.datatype, flat, booleans=booleans).reshape(len(values), *row)


def columns_in_pieces(
    document: dict[str, Any], signature: Signature, max_rows: int, budget: Budget, estimate: Estimate
) -> Steps[dict[str, Any]]:
    """As `columns_of`, for a document with bulks. A column is an array with a first axis for the instances, or a list
    of rows, each of which is an array or a list."""
    instances = document.get("instances")
    if type(instances) is Bulk and len(signature.inputs) > 1:  # it holds no objects
        yield from _check_bulk(instances, max_rows)
        document["instances"] = [instances.first()]
    elif type(instances) is Bulk:
        spec = next(iter(signature.inputs.values()))
        row = _row(spec, signature)
        form = yield from _form(instances, row, ANY)
        counting = _check_bulk(instances, max_rows)
        if nesting(instances) == 1 and row:  # numbers where rows are expected
            yield from counting
        read = yield from array_of(spec.name, instances, spec.datatype, form, budget, estimate, counting)
        if type(read) is np.ndarray:
            _check_count(len(read), max_rows)
            return {spec.name: read.reshape(len(read), *row) if _is_flat(form[1:], row) else read}
        document["instances"] = read
    columns = columns_of(document, signature, max_rows)
    for name, values in columns.items():
        spec = signature.inputs[name]
        row = _row(spec, signature)
        for position, value in enumerate(values):
            if type(value) is Bulk:
                form = (yield from _form(value, row, -1))[1:]
                read = yield from array_of(name, value, spec.datatype, form, budget, estimate)
                flat = type(read) is np.ndarray and _is_flat(form, row)
                values[position] = read.reshape(row) if flat and type(read) is np.ndarray else read
    return dict(columns)


def rows_in_pieces(name: str, values: Any, signature: Signature) -> Steps[np.ndarray]:
    """As `array_of_rows`, for a column of `columns_in_pieces`."""
    if type(values) is np.ndarray:
        return values
    if all(type(value) is np.ndarray and value.shape == values[0].shape for value in values):
        return np.stack(values)
    values = [value.tolist() if type(value) is np.ndarray else value for value in values]
    spec = signature.inputs[name]
    shape, row = _shapes(values, _row(spec, signature))
    flat = yield from flatten_list(name, values, shape)
    packed = yield from packed_list(f"input {name!r}", spec.datatype, flat)
    return packed.reshape(len(values), *row)


def _form(bulk: Bulk, row: tuple[int, ...], first: int) -> Steps[tuple[int, ...]]:
    """The shape of an array of rows, or of a row in place of the first one where `first` is -1. Sizes that are free are
    taken from the text."""
    axes = nesting(bulk) - (first == ANY)
    if _is_flat((prod(row),) if axes == 1 else (), row):
        return first, prod(row)
    if axes == len(row) and -1 not in row:
        return first, *row
    measured = yield from measured_shape(bulk, axes)
    return first, *measured


def _is_flat(form: tuple[int, ...], row: tuple[int, ...]) -> bool:
    """Whether a row in this form is a flat one of a shape with several axes."""
    return len(form) == 1 and len(row) > 1 and -1 not in row and form[0] == prod(row)


def _shapes(values: list[Any], row: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape as which the values are nested, and that of a row, both as the first row tells."""
    measured = _nesting(values[0])
    if _is_flat(measured, row):
        return (len(values), prod(row)), row
    return (len(values), *measured), measured


def _row(spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
    return spec.shape[1:] if signature.batched else spec.shape


def _check_count(count: int, max_rows: int) -> None:
    if count > max_rows:
        raise BadRequestError(f"{count} instances came, at most {max_rows} are taken")


def _check_bulk(instances: Bulk, max_rows: int) -> Steps[None]:
    _check_count((yield from count_of(instances)), max_rows)


def _nesting(value: Any) -> tuple[int, ...]:
    shape = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)
