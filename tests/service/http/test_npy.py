"""`.npy` bodies and answers of the v1 convention, and files made to deceive a reader."""

import pickle
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fold.artifact.manifest import DATATYPES
from service.errors import BadRequestError, NotAcceptableError
from service.http.npy import is_npy, read_npy, wants_npy, write_npy

NPY = "application/x-npy"
RANDOM = np.random.default_rng(2)


def saved(array: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy that consists of this header and nothing else."""
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


def of(descr: str, shape: str, fortran: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"


def predict(service: Any, model: str, content: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.post(f"/v1/models/{model}:predict", content=content, headers=named)  # type: ignore[no-any-return]


@given(npst.arrays(st.sampled_from(list(DATATYPES.values())), npst.array_shapes(min_dims=0, min_side=0)), st.data())
def test_arrays_round_trip(array: np.ndarray, data: st.DataObject) -> None:
    """Either byte order, either order of the axes, every datatype and shape."""
    sent = array.astype(array.dtype.newbyteorder(data.draw(st.sampled_from("<>"))))
    sent = np.asfortranarray(sent).reshape(array.shape) if data.draw(st.booleans()) else sent
    found = read_npy("x", saved(sent))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(np.load(BytesIO(write_npy(found))), array)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(content: bytes, behind_a_header: bool) -> None:
    whole = saved(np.zeros((2, 3), np.float32))
    with pytest.raises(BadRequestError):
        read_npy("x", whole[:10] + content if behind_a_header else content)


class Touch:
    """Would leave a file behind, if it were unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_nothing_is_unpickled(tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    content = saved(np.array([Touch(str(mark))], object), allow_pickle=True)
    assert b"mark" in content
    with pytest.raises(BadRequestError, match=r"the .npy is of \|O, which is not read here"):
        read_npy("x", content)
    with pytest.raises(BadRequestError, match=r"is no \.npy"):
        read_npy("x", pickle.dumps(Touch(str(mark))))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(of("'<f4'", "(2, 3)")), "0 bytes behind its header, shape [2, 3] of FP32 is 24 bytes"),
        (header(of("'<f4'", "(1,)")) + bytes(5), "5 bytes behind its header, shape [1] of FP32 is 4 bytes"),
        (header(of("'<f4'", f"({1 << 40},)")), "0 bytes behind its header, shape [1099511627776]"),
        (header(of("'<f4'", f"({1 << 62}, {1 << 62})")), "more than any request can hold"),
        (header(of("'<f4'", f"(0, {1 << 62})")), "more than any request can hold"),
        (header(of("'<f4'", "(-1,)")), "expected whole numbers from 0"),
        (header(of("'<f4'", "(True,)")) + bytes(4), "expected whole numbers from 0"),
        (header(of("'<f4'", "(1,) * 40")), "the header of the .npy cannot be read"),
        (header(of("'<f4'", str((1,) * 40))) + bytes(4), "at most 32"),
        (header(of("'<c8'", "(1,)")) + bytes(8), "the .npy is of <c8, which is not read here"),
        (header(of("'<U3'", "(1,)")) + bytes(12), "the .npy is of <U3"),
        (header(of("'<M8[s]'", "(1,)")) + bytes(8), "the .npy is of <M8[s]"),
        (header(of("[('a', '<f4')]", "(1,)")) + bytes(4), "the .npy is of |V4"),
        (header(of("'(2,)<f4'", "(1,)")) + bytes(8), "which is not read here"),
        (header(of("'V99999999999'", "(1,)")), "cannot be read"),
        (header(of("'|b1'", "(2,)")) + b"\1\7", "a BOOL is one byte, 0 or 1; 7 came"),
        (header("(" * 9000), "the header of the .npy cannot be read"),
        (header("{" + "'a': 1, " * 2000 + "}", (2, 0)), "the header of the .npy cannot be read"),
        (header("3"), "the header of the .npy cannot be read"),
        (header("")[:9], "the header of the .npy cannot be read"),
        (b"\x93NUMPY\1\0\xff\xff{}", "the header of the .npy cannot be read"),
        (header(of("'<f4'", "(1,)"), (3, 0)), "version 3.0; expected 1.0 or 2.0"),
        (b"PK\3\4", "the body is no .npy"),
        (b"", "the body is no .npy"),
    ],
)
def test_headers_that_lie(content: bytes, message: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        read_npy("x", content)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_counts_as_one() -> None:
    content = saved(np.zeros(1))
    assert is_npy(NPY, b"")
    assert is_npy("application/octet-stream", content)
    assert is_npy("", content)
    assert not is_npy("", b'{"instances": []}')
    assert not is_npy("application/json", content)


def test_what_is_accepted() -> None:
    assert wants_npy(f"text/html, {NPY};q=0.5", 1)
    assert not wants_npy("*/*", 1)
    assert not wants_npy("", 2)
    assert not wants_npy(f"{NPY}, application/json", 2)
    with pytest.raises(NotAcceptableError, match=r"has 2 outputs and a \.npy holds one"):
        wants_npy(NPY, 2)


def test_rows_in_and_rows_out(service: Any) -> None:
    images = RANDOM.normal(size=(70, 1, 8, 8)).astype(np.float32)
    given = predict(service, "net", saved(images), Content_Type=NPY)
    assert given.headers["content-type"] == "application/json"
    asked = predict(service, "net", saved(np.asfortranarray(images)), Accept=NPY)
    assert asked.headers["content-type"] == NPY
    found = np.load(BytesIO(asked.content))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, given.json()["predictions"], rtol=1e-5, atol=1e-6)
    rows = service.post("/v1/models/pick:predict", json={"instances": [3, 5]}, headers={"Accept": NPY})
    np.testing.assert_array_equal(np.load(BytesIO(rows.content)), np.array([0.75, 1.25], np.float32))


def test_without_a_batch_axis(service: Any) -> None:
    x = np.arange(4, dtype=np.float32)
    assert predict(service, "single", saved(x)).json() == {"predictions": [[0, 2, 4, 6]]}
    np.testing.assert_array_equal(np.load(BytesIO(predict(service, "single", saved(x), Accept=NPY).content)), 2 * x)
    many = service.post("/v1/models/single:predict", json={"instances": [[1] * 4] * 2}, headers={"Accept": NPY})
    assert many.status_code == 406
    assert "send one instance" in many.json()["error"]


@pytest.mark.parametrize(
    ("model", "array", "accept", "status", "message"),
    [
        ("net", np.zeros((1, 1, 8, 8)), "*/*", 400, "datatype FP64 came, FP32 is expected"),
        ("net", np.zeros((1, 8, 8), np.float32), "*/*", 400, "shape [1, 8, 8] came, [-1, 1, 8, 8] is expected"),
        ("net", np.zeros((1025, 1, 8, 8), np.float32), "*/*", 400, "1025 rows came, at most 1024 are taken"),
        ("pair", np.zeros((1, 2), np.float32), "*/*", 400, "a .npy is one array, but there are 'a', 'b'"),
        ("text", np.zeros((1, 2), np.float32), NPY, 400, "datatype FP32 came, BYTES is expected"),
        ("pair", np.zeros((1, 2), np.float32), NPY, 406, "has 2 outputs and a .npy holds one"),
    ],
)
def test_refusals(service: Any, model: str, array: np.ndarray, accept: str, status: int, message: str) -> None:
    answer = predict(service, model, saved(array), Content_Type=NPY, Accept=accept)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_strings_have_no_form_there(service: Any) -> None:
    body = {"instances": [["a", "b"]]}
    answer = service.post("/v1/models/text:predict", json=body, headers={"Accept": NPY})
    assert (answer.status_code, "BYTES has no form in .npy" in answer.json()["error"]) == (406, True)
    assert service.post("/v1/models/text:predict", json=body).json() == {"predictions": [["a!", "b!"]]}
