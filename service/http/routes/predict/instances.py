"""Instances in JSON: from a body to the inputs of runs. Without a batch axis each instance is a run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fold.arrays import Arrays
from service.budget import Body, Budget, Estimate
from service.errors import BadRequestError, UnreadableError, UnsupportedError, shown
from service.http.images import FORMATS
from service.http.npy import CONTENT_TYPE
from service.protocol import (
    EXPECTED,
    Capacity,
    Signature,
    Steps,
    Text,
    array_of_rows,
    columns_in_pieces,
    columns_of,
    keep_strings,
    may_hold_booleans,
    parse_object,
    read_document,
    rows_in_pieces,
)
from service.settings import Settings


def parse_instances(body: Body, kind: str, settings: Settings) -> dict[str, Any]:
    """`kind` is the body's media type. Raises `BadRequestError`, and `UnsupportedError` for what is not declared as
    JSON."""
    try:
        return parse_object(body, settings.max_json_depth, EXPECTED)
    except BadRequestError as error:
        _refuse_kind(kind, error)
        raise


def inputs_of(document: dict[str, Any], signature: Signature, max_rows: int, text: Body) -> list[Arrays]:
    """The inputs of each run, of the object that `text` was parsed to."""
    columns = columns_of(document, signature, max_rows)
    if not signature.batched:
        return list(_of_each(columns, signature))
    booleans = may_hold_booleans(text)
    return [{name: array_of_rows(name, values, signature, booleans=booleans) for name, values in columns.items()}]


def inputs_in_pieces(
    body: Body, kind: str, signature: Signature, settings: Settings, budget: Budget
) -> Steps[tuple[list[Arrays], dict[str, Any]]]:
    """As `parse_instances` and `inputs_of`, for much JSON; also the JSON's object, without its large arrays."""
    estimate, most = Estimate(budget), settings.max_request_rows
    try:
        text, capacity = Text.of(body, len(body)), Capacity.of(signature, most)
        try:
            document = yield from read_document(text, capacity, estimate, EXPECTED)
        except BadRequestError as error:
            _refuse_kind(kind, error)
            raise
        columns, refused = {}, ""
        try:
            columns = yield from columns_in_pieces(document.content, signature, most, budget, estimate)
        except UnreadableError:
            raise
        except BadRequestError as error:
            refused = str(error)
        yield from document.finish(estimate, settings.max_json_depth)  # what is no JSON is told first
        if refused:
            raise BadRequestError(refused)
        if signature.batched:
            for name, values in columns.items():
                columns[name] = yield from rows_in_pieces(name, values, signature)
            inputs = [columns]
        else:
            inputs = []
            for each in _of_each(columns, signature):
                inputs.append(each)
                yield
        keep_strings(inputs[0], estimate)
        return inputs, document.content
    finally:
        estimate.close()


def _of_each(columns: dict[str, Any], signature: Signature) -> Iterator[Arrays]:
    """Of each instance its inputs, without an axis for instances."""
    for position in range(len(next(iter(columns.values())))):
        yield {name: _instance(name, values[position], signature) for name, values in columns.items()}


def _instance(name: str, value: Any, signature: Signature) -> np.ndarray:
    array: np.ndarray = value if type(value) is np.ndarray else array_of_rows(name, [value], signature)[0]
    return array


def _refuse_kind(kind: str, error: BadRequestError) -> None:
    """Raise `UnsupportedError` for a body that is neither JSON nor declared as JSON. Clients send JSON by many names,
    so the name counts only if it is none."""
    if kind not in ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded"):
        raise UnsupportedError(
            f"Content-Type {shown(kind)} is not read here; expected JSON, {EXPECTED}, or "
            f"{', '.join((CONTENT_TYPE, *FORMATS))}"
        ) from error
