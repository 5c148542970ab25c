"""Requests by hand and refusals, for the tests of a server's wire."""

from typing import Any

import httpx
import pytest

from support.service.target import ONLY_BINARY, Arrays, Model, wire


def refused(answer: httpx.Response, *words: str, status: int = 400) -> None:
    """Status and words are checked of our own server only; others have to say that it is an error."""
    document = answer.json()
    assert isinstance(document["error"], str), document
    if not answer.extensions.get("ours", True):
        assert 400 <= answer.status_code < 600, answer.status_code
        return
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert list(document) == ["error"]
    for word in words:
        assert word in document["error"]


def binary_request(model: Model, arrays: Arrays, **changes: Any) -> tuple[dict[str, Any], list[bytes]]:
    """All inputs in binary, the first one's entry changed."""
    model.target.needs("binary_tensor_data")
    items = [model.item(name, array, binary=True) for name, array in arrays.items()]
    items[0] |= changes
    asked = {"binary_data_output": True}
    return {"inputs": items, "parameters": asked}, [wire(array) for array in arrays.values()]


def fixed(model: Model) -> str:
    """An input whose elements all have one size."""
    found = next((name for name, tensor in model.inputs.items() if tensor["datatype"] != "BYTES"), None)
    if found is None:
        pytest.skip("all inputs of this model are BYTES, which tell their sizes themselves")
    return found


def in_json(model: Model) -> tuple[str, str]:
    """An input that has a form in JSON, and its datatype."""
    for name, tensor in model.inputs.items():
        if tensor["datatype"] not in ONLY_BINARY:
            return name, tensor["datatype"]
    pytest.skip("no input of this model has a form in JSON")


def first(model: Model, arrays: Arrays, name: str) -> Arrays:
    return {name: arrays[name], **{other: array for other, array in arrays.items() if other != name}}
