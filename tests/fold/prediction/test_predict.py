"""`bnfold predict`: every row of a data set once, checked against ONNX Runtime on the same rows."""

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fold.artifact.directory import read_version
from fold.prediction import compute
from fold.prediction.data import arrays, sources
from fold.prediction.data import images as image_rows
from fold.prediction.model import LoadedModel
from support.commands import assert_one_line, bnfold
from support.service import served

ROWS = 150


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for publish in (served.net, served.others, served.kinds):
        publish(folder)
    served.net(folder, "wrong", wrong=True)
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """scikit-learn's digits, from 0 to 16."""
    digits: np.ndarray = load_digits().images[:ROWS]
    return digits


@pytest.fixture(scope="module")
def images(pixels: np.ndarray) -> np.ndarray:
    return (pixels[:, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def scores(repository: Path, images: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers for all rows, by hand."""
    [found] = ort.InferenceSession(repository / "net" / "1" / "model.onnx").run(None, {"image": images})
    assert isinstance(found, np.ndarray)
    return found


def predict(model: Path, *words: object, code: int = 0) -> dict[str, Any]:
    done = bnfold("predict", model, *words, "--device", "cpu", "--json")
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def table(folder: Path) -> pa.Table:
    """All shards, in order."""
    return pa.concat_tables([pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))])


def assert_classes(found: pa.Table, scores: np.ndarray) -> None:
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    best = scores.argmax(axis=1)
    assert found["index"].to_pylist() == best.tolist()
    assert found["label"].to_pylist() == [served.LABELS[index] for index in best]
    np.testing.assert_allclose(
        found["probability"].to_numpy(), (weights / weights.sum(axis=1, keepdims=True)).max(axis=1), rtol=1e-4
    )


def nested(images: np.ndarray) -> pa.Array:
    return pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))


COLUMNS = {
    "nested lists": nested,
    "flat lists of float64": lambda images: pa.array(images.reshape(len(images), -1).tolist()),
    "large lists": lambda images: pa.array(images.reshape(len(images), -1).tolist(), pa.large_list(pa.float32())),
    "lists of one size": lambda images: pa.FixedSizeListArray.from_arrays(images.reshape(-1), 64),
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray,
    "slices": lambda images: nested(np.concatenate([images[:3], images])).slice(3),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_table_is_answered_in_order_with_its_ids(
    kind: str, repository: Path, images: np.ndarray, scores: np.ndarray, tmp_path: Path
) -> None:
    ids = [f"digit {number}" for number in range(ROWS)]
    names = pa.array(ids).dictionary_encode()  # as pandas writes categories
    data = pa.table({"pixels": COLUMNS[kind](images), "name": names, "other": range(ROWS)})
    pq.write_table(data, tmp_path / "d.parquet", row_group_size=47)
    words = ("--column", "image=pixels", "--id", "name", "--shard-rows", 40, "--out", tmp_path / "out")
    answer = predict(repository / "net", tmp_path / "d.parquet", *words)
    assert (answer["rows"], answer["failed"], answer["shards"], answer["predicted"]) == (ROWS, 0, 4, ROWS)
    found = table(tmp_path / "out")
    assert found.column_names == ["file", "row", "id", "label", "index", "probability"]
    assert found["id"].to_pylist() == ids
    assert found["row"].to_pylist() == list(range(ROWS))
    assert set(found["file"].to_pylist()) == {str(tmp_path / "d.parquet")}
    assert_classes(found, scores)
    manifest = read_version(repository / "net" / "1").manifest
    for part in sorted((tmp_path / "out").glob("*.parquet")):
        about = pq.read_metadata(part).metadata
        assert (about[b"bnfold.model"], about[b"bnfold.version"]) == (b"net", b"1")
        assert about[b"bnfold.digest"].decode() == manifest.digest
        assert json.loads(about[b"bnfold.certificate"]) == manifest.verdict
    assert not (tmp_path / "out" / "errors.parquet").exists()


def test_every_kind_of_file_is_answered_alike(
    repository: Path, pixels: np.ndarray, images: np.ndarray, scores: np.ndarray, tmp_path: Path
) -> None:
    """Files in a folder come in the order of their names; patterns, whole folders and lists of files are the same."""
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    np.save(folder / "a.npy", images[:50])
    np.savez(folder / "b.npz", image=images[50:90], other=np.zeros(3))
    np.savez_compressed(folder / "c.npz", image=np.asfortranarray(images[90:120]))
    pq.write_table(pa.table({"image": nested(images[120:])}), folder / "deep" / "d.pq")
    (folder / ".hidden.npy").touch()
    (folder / "README.md").touch()
    for number, data in enumerate(((folder,), (folder / "*.np?", folder / "deep"), sorted(folder.rglob("[a-d].*")))):
        out = tmp_path / f"out{number}"
        assert predict(repository / "net", *data, "--shard-rows", 64, "--out", out)["rows"] == ROWS
        found = table(out)
        assert_classes(found, scores)
        assert found["row"].to_pylist() == [*range(50), *range(40), *range(30), *range(30)]
    encoded = pixels[:20].astype(np.uint8) * 15
    shown = tmp_path / "images"
    shown.mkdir()
    for number, one in enumerate(encoded):
        Image.fromarray(one).save(shown / f"{number:03d}.png")
    read = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(shown.iterdir())]
    pq.write_table(pa.table({"image": read}), tmp_path / "struct.parquet")
    pq.write_table(pa.table({"image": [one["bytes"] for one in read]}), tmp_path / "bytes.parquet")
    rows = ((encoded[:, None] / 255 - 0.5) / 0.25).astype(np.float32)
    [expected] = ort.InferenceSession(repository / "net" / "1" / "model.onnx").run(None, {"image": rows})
    for data in (shown, shown / "*.png", tmp_path / "struct.parquet", tmp_path / "bytes.parquet"):
        out = tmp_path / f"out of {Path(data).name.strip('*.')}{Path(data).suffix}"
        predict(repository / "net", data, "--out", out)
        assert_classes(table(out), np.asarray(expected))
    assert table(tmp_path / "out of images")["file"].to_pylist()[7] == str(shown / "007.png")


def test_images_are_decoded_at_the_same_time(
    repository: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits here for a second one."""
    read, both = image_rows.read_image, threading.Barrier(2, timeout=60)

    def waiting(*arguments: Any) -> np.ndarray:
        both.wait()
        return read(*arguments)

    monkeypatch.setattr(image_rows, "read_image", waiting)
    monkeypatch.setattr(sources, "cores", lambda: 2)
    (tmp_path / "shown").mkdir()
    for number in range(4):
        Image.fromarray(pixels[number].astype(np.uint8)).save(tmp_path / "shown" / f"{number}.png")
    assert predict(repository / "net", tmp_path / "shown", "--out", tmp_path / "out")["failed"] == 0


def test_the_best_classes_and_whole_outputs(
    repository: Path, images: np.ndarray, scores: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "d.npy", images)
    predict(repository / "net", tmp_path / "d.npy", "--top-k", 3, "--outputs", "--out", tmp_path / "both")
    found = table(tmp_path / "both")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    assert found["index"].to_pylist() == order.tolist()
    assert found["label"].to_pylist() == [[served.LABELS[index] for index in row] for row in order]
    np.testing.assert_allclose(np.array(found["scores"].to_pylist()), scores, rtol=1e-5, atol=1e-5)
    assert found.schema.field("scores").metadata == {b"shape": b"10"}
    predict(repository / "net", tmp_path / "d.npy", "--outputs", "--out", tmp_path / "whole")
    assert table(tmp_path / "whole").column_names == ["file", "row", "scores"]

    a, b = np.arange(14, dtype=np.int64).reshape(7, 2), np.ones((7, 2), np.float32)
    np.savez(tmp_path / "pair.npz", first=a, b=b, key=np.arange(7) * 10)
    words = ("--column", "a=first", "--id", "key", "--out", tmp_path / "pair")
    predict(repository / "pair", tmp_path / "pair.npz", *words)
    found = table(tmp_path / "pair")
    assert found.column_names == ["file", "row", "id", "sum", "difference"]
    assert found["difference"].to_pylist() == (a - 1).tolist()
    assert found["id"].to_pylist() == [0, 10, 20, 30, 40, 50, 60]

    pq.write_table(pa.table({"x": [["a", "b"], ["c", "d"]]}), tmp_path / "text.parquet")
    predict(repository / "text", tmp_path / "text.parquet", "--out", tmp_path / "text")
    assert table(tmp_path / "text")["y"].to_pylist() == [["a!", "b!"], ["c!", "d!"]]
    np.save(tmp_path / "upper.npy", np.array([[1, 2, 3.0]]))
    predict(repository / "upper", tmp_path / "upper.npy", "--out", tmp_path / "upper")
    assert table(tmp_path / "upper")["y"].to_pylist() == [[1, 2, 3]]


def test_rows_that_fail_are_listed_and_do_not_stop_the_rest(repository: Path, tmp_path: Path) -> None:
    """They are missing in the shards, so that each row is in one file only."""
    data = pa.table({"index": pa.array([1, None, 99, 3, 4, -1, 55]), "key": list("abcdefg")})
    pq.write_table(data, tmp_path / "d.parquet")
    words = (tmp_path / "d.parquet", "--id", "key", "--shard-rows", 3)
    done = bnfold("predict", repository / "pick", *words, "--out", tmp_path / "out", "--json")
    assert done.returncode == 1
    assert "3 rows failed, see errors.parquet" in done.stderr
    assert json.loads(done.stdout)["failed"] == 3
    found, errors = table(tmp_path / "out"), pq.read_table(tmp_path / "out" / "errors.parquet")
    assert dict(zip(found["id"].to_pylist(), found["value"].to_pylist(), strict=True)) == {
        "a": 0.25, "d": 0.75, "e": 1.0, "f": 2.25,
    }  # fmt: skip
    reasons = dict(zip(errors["id"].to_pylist(), errors["error"].to_pylist(), strict=True))
    assert reasons.keys() == {"b", "c", "g"}
    assert reasons["b"] == "has a null"
    assert "the run failed" in reasons["c"]
    assert errors["row"].to_pylist() == [1, 2, 6]
    assert sorted(pq.read_table(tmp_path / "out")["id"].to_pylist()) == list("abcdefg"), "the folder has each row once"
    strict = bnfold("predict", repository / "pick", *words, "--out", tmp_path / "strict", "--strict")
    assert strict.returncode == 1
    assert strict.stderr.strip() == f"bnfold: {tmp_path / 'd.parquet'}: row 1: has a null"
    assert list((tmp_path / "strict").iterdir()) == []


def test_images_and_lists_that_cannot_be_read(repository: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(pixels[number].astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "2.png").write_text("no image")
    answer = predict(repository / "net", tmp_path, "--out", tmp_path.with_name("images out"), code=1)
    assert answer["failed"] == 2
    errors = pq.read_table(tmp_path.with_name("images out") / "errors.parquet")
    assert errors["file"].to_pylist() == [str(tmp_path / f"{number}.png") for number in (1, 2)]
    assert "cannot be read as an image" in errors["error"][1].as_py()

    good = [1.0] * 64
    rows = [good, [*good, 2.0], None, [*good[:-1], None], good, [float("nan")] * 64, [1e300] * 64]
    pq.write_table(pa.table({"image": rows}), tmp_path / "d.parquet")
    out = tmp_path.with_name("lists out")
    predict(repository / "net", tmp_path / "d.parquet", "--out", out, code=1)
    assert table(out)["row"].to_pylist() == [0, 4]
    errors = pq.read_table(out / "errors.parquet")
    assert dict(zip(errors["row"].to_pylist(), errors["error"].to_pylist(), strict=True)) == {
        1: "has 65 values, expected 64, shape [1, 8, 8]",
        2: "has a null",
        3: "has a null",
        5: "the scores are not finite",
        6: "input 'image': has values that are too large for FP32",
    }
    assert errors["label"].null_count == 5


def test_a_run_that_stopped_goes_on_and_others_are_refused(
    repository: Path, images: np.ndarray, scores: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "d.npy", images)
    out, words = tmp_path / "out", (tmp_path / "d.npy", "--shard-rows", 20)
    run, left = LoadedModel.run, [3]

    def stopping(model: LoadedModel, arrays: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(model, arrays)

    monkeypatch.setattr(LoadedModel, "run", stopping)
    assert bnfold("predict", repository / "net", *words, "--out", out).returncode == 130
    monkeypatch.undo()
    before = {part.name: part.stat().st_mtime_ns for part in out.iterdir()}
    assert sorted(before) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    (out / ".partial-part-00003.parquet").write_text("what a run left that was killed")
    answer = predict(repository / "net", *words, "--out", out)
    assert (answer["rows"], answer["skipped_shards"], answer["predicted"]) == (ROWS, 3, 90)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert sorted(path.name for path in out.iterdir()) == [f"part-{number:05d}.parquet" for number in range(8)]
    assert_classes(table(out), scores)
    assert predict(repository / "net", *words, "--out", out)["predicted"] == 0

    assert_one_line(bnfold("predict", repository / "wrong", *words, "--out", out), "net/1 of another digest")
    for other in (("--shard-rows", 30), ("--top-k", 2), ("--outputs",)):
        refused = bnfold("predict", repository / "net", *words, *other, "--out", out)
        assert_one_line(refused, "from other data or with other options; choose another --out")
    os.utime(tmp_path / "d.npy", ns=(1, 1))
    assert_one_line(bnfold("predict", repository / "net", *words, "--out", out), "from other data")
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert_one_line(bnfold("predict", repository / "net", *words, "--out", out), "another bnfold predict writes there")
    os.close(descriptor)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-00000.parquet")
    assert_one_line(bnfold("predict", repository / "net", *words, "--out", tmp_path), "another program/? of another")


def test_a_share_is_held_against_the_reference(repository: Path, images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", images)
    words = (tmp_path / "d.npy", "--shard-rows", 60, "--verify")
    for name, code in (("net", 0), ("wrong", 1)):
        done = bnfold("predict", repository / name, *words, 0.3, "--out", tmp_path / name, "--json")
        assert done.returncode == code
        found = json.loads(done.stdout)["verification"]
        assert 20 < found["rows"] < 70
        assert (found["errors"] == 0) == (name == "net")
        assert (found["error_ratio"] <= 1) == (name == "net")
        assert ("they agree" in done.stderr) == (name == "net")
    again = predict(repository / "wrong", *words, 0.3, "--out", tmp_path / "wrong", code=1)
    assert again["predicted"] == 0
    assert again["verification"] == found, "what other starts found counts as well"
    assert predict(repository / "net", *words, 1, "--out", tmp_path / "all")["verification"]["rows"] == ROWS


def test_no_more_rows_are_read_than_a_batch_takes(
    repository: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a data set may be larger than memory, whatever the size of a shard."""
    np.save(tmp_path / "d.npy", images)
    np.savez_compressed(tmp_path / "d.npz", image=images)
    pq.write_table(pa.table({"image": nested(images)}), tmp_path / "d.parquet")
    seen: list[int] = []
    run = LoadedModel.run

    def noted(model: LoadedModel, given: Any) -> Any:
        seen.append(len(given["image"]))
        return run(model, given)

    monkeypatch.setattr(LoadedModel, "run", noted)
    monkeypatch.setattr(compute, "CHUNK_BYTES", 1)
    predict(repository / "net", *sorted(tmp_path.glob("d.*")), "--threads", 1, "--out", tmp_path / "out")
    assert sum(seen) == 3 * ROWS
    assert max(seen) == 64
    monkeypatch.setattr(arrays.np, "load", None)  # of an .npz, too, the rest stays packed
    predict(repository / "net", tmp_path / "d.npz", "--out", tmp_path / "npz")


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("net", ("no.npy",), "no.npy: no such file or folder"),
        ("net", ("nobody*.npy",), "nobody*.npy: matches no file"),
        ("net", ("empty",), "empty: holds no inputs"),
        ("net", ("none.npy",), "none.npy: holds no rows"),
        ("net", ("d.txt",), "d.txt: is no data; expected .npy, .npz, .parquet"),
        ("net", ("good.npy", "./good.npy"), "good.npy: is given twice"),
        ("net", ("shape.npy",), "has rows of shape [64], input 'image' takes [1, 8, 8]"),
        ("net", ("text.npy",), "type <U1, expected FP32"),
        ("net", ("objects.npy",), "objects.npy: is not an .npy of numbers"),
        ("net", ("scalar.npy",), "scalar.npy: holds a single number"),
        ("net", ("d.npz",), "d.npz: holds no array 'image', only a, b; name it by --column"),
        ("pair", ("d.npz",), "d.npz: its arrays differ in their number of rows (a 1, b 2)"),
        ("net", ("torn.npz",), "torn.npz: is not an .npz of plain arrays"),
        ("net", ("torn.parquet",), "torn.parquet: is no Parquet file"),
        ("net", ("d.parquet",), "d.parquet: has no column 'image'; it has text, flag"),
        ("net", ("d.parquet", "--column", "image=text"), "column 'text': input 'image': type"),
        ("net", ("d.parquet", "--column", "y=text"), "--column y=text: the model has no input 'y'; it takes image"),
        ("net", ("d.parquet", "--column", "image"), "--column image: expected INPUT=COLUMN"),
        ("net", ("d.parquet", "--column", "image=text", "--id", "key"), "has no column 'key'"),
        ("net", ("good.npy", "--id", "key"), "good.npy: has no column 'key' for --id"),
        ("pair", ("good.npy",), "holds an array without a name, and the model takes a, b"),
        ("pick", ("image.png",), "image.png: the model declares no preprocessing"),
        ("free", ("d.parquet", "--column", "x=text"), "input 'x' has free sizes"),
        ("single", ("good.npy",), "single/1: has no batch axis"),
        ("pick", ("d.npz", "--top-k", "2", "--column", "index=a"), "pick/1: is no classifier"),
        ("net", ("good.npy", "--out", "good.npy"), "good.npy: cannot be created"),
        ("net", ("empty", "--out", "empty/out"), "empty/out: lies in the data"),
        ("nobody", ("good.npy",), "no such folder; expected REPOSITORY/NAME"),
    ],
)
def test_bad_input_gets_one_line(
    model: str, words: tuple[str, ...], said: str, repository: Path, images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.txt").touch()
    np.save(tmp_path / "good.npy", images)
    np.save(tmp_path / "none.npy", images[:0])
    np.save(tmp_path / "shape.npy", images.reshape(ROWS, 64))
    np.save(tmp_path / "text.npy", np.full((2, 1, 8, 8), "a"))
    np.save(tmp_path / "objects.npy", np.full((2, 1, 8, 8), None), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.float32(1))
    a, b = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    np.savez(tmp_path / "d.npz", a=a if model == "pair" else np.arange(3), b=b)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:100])
    pq.write_table(pa.table({"text": ["a"], "flag": [True]}), tmp_path / "d.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:-9])
    (tmp_path / "image.png").touch()
    out = () if "--out" in words else ("--out", "out")
    assert_one_line(bnfold("predict", repository / model, *words, *out, cwd=tmp_path), said)
    assert not (tmp_path / "out").exists()
