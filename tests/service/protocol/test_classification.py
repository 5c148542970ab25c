"""The classification extension: which values, in which order, and how they are written."""

from typing import Any

import numpy as np
import pytest

from fold.artifact.manifest import DTYPES
from service.protocol.classification import classify
from support.service.served import LABELS


def test_the_largest_come_first_as_triton_writes_them() -> None:
    scores = np.array([[0.25, -3.0, 12.5], [1e-9, 1e6, 0.1]], np.float32)
    found = classify(scores, 2, ("a", "b", "c"), batched=True)
    assert found.tolist() == [["12.500000:2:c", "0.250000:0:a"], ["1000000.000000:1:b", "0.100000:2:c"]]
    assert found.dtype == np.object_
    assert classify(np.array([[3, 200]], np.uint8), 9, None, batched=True).tolist() == [["200:1", "3:0"]]


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name not in ("BOOL", "BYTES")])
def test_every_datatype_is_ranked_by_its_own_order(datatype: str) -> None:
    dtype = DTYPES[datatype]
    values = np.array([[0, 5, 3]], dtype)
    if dtype.kind in "iu":
        values = np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max, 3]], dtype)
    found = [int(text.split(":")[1]) for text in classify(values, 3, None, batched=True)[0]]
    assert found == [1, 2, 0]


def test_equal_values_keep_their_order_and_nan_is_last() -> None:
    row = np.array([[np.nan, 1, np.inf, 1, -np.inf, np.nan]])
    texts = classify(row, 6, None, batched=True)[0].tolist()
    assert texts == ["inf:2", "1.000000:1", "1.000000:3", "nan:0", "-inf:4", "nan:5"]


def test_shapes() -> None:
    assert classify(np.zeros((2, 3, 4)), 5, None, batched=True).shape == (2, 5)
    assert classify(np.zeros((2, 3, 4)), 50, None, batched=True).shape == (2, 12)
    assert classify(np.zeros((2, 3)), 5, None, batched=False).shape == (5,)
    assert classify(np.zeros((0, 3)), 2, None, batched=True).shape == (0, 2)
    assert classify(np.zeros((2, 0)), 2, None, batched=True).shape == (2, 0)
    assert classify(np.zeros(3), 2, None, batched=True).tolist() == [["0.000000:0"]] * 3


def test_labels_of_another_output_are_not_used() -> None:
    assert classify(np.array([[1, 2]]), 1, ("a", "b", "c"), batched=True).tolist() == [["2:1"]]


def ask(service: Any, model: str, output: dict[str, Any]) -> Any:
    row = {"image": [1, 1, 8, 8], "x": [1, 2], "bool": [1, 3]}
    name = {"net": "image", "text": "x"}.get(model, "bool")
    datatype = {"net": "FP32", "text": "BYTES"}.get(model, "BOOL")
    value = {"FP32": 0.5, "BYTES": "a", "BOOL": True}[datatype]
    data = [value] * int(np.prod(row[name]))
    tensor = {"name": name, "shape": row[name], "datatype": datatype, "data": data}
    return service.post(f"/v2/models/{model}/infer", json={"inputs": [tensor], "outputs": [output]})


def test_labels_come_from_the_manifest(service: Any) -> None:
    answer = ask(service, "net", {"name": "scores", "parameters": {"classification": 3}})
    [output] = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 3])
    for text in output["data"]:
        _, index, label = text.split(":")
        assert label == LABELS[int(index)]
    plain = ask(service, "net", {"name": "scores", "parameters": {"classification": 0}}).json()["outputs"][0]
    assert (plain["datatype"], plain["shape"]) == ("FP32", [1, 10]), "0 asks for the tensor"
    assert f"{max(plain['data']):f}:{np.argmax(plain['data'])}" in output["data"][0]


@pytest.mark.parametrize(("model", "output"), [("text", "y"), ("echo", "bool_out")])
def test_what_has_no_order_is_refused(service: Any, model: str, output: str) -> None:
    answer = ask(service, model, {"name": output, "parameters": {"classification": 1}})
    assert answer.status_code == 400
    assert f"output {output!r}: classification needs numbers" in answer.json()["error"]
