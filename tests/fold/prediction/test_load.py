"""`fold.load`: a model in Python, opened as the service opens it, checked against ONNX Runtime by hand."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import fold
from fold.artifact.files import model_folders
from fold.convert import Target, convert
from fold.errors import BnfoldError
from fold.serving import session as serving
from fold.sources.source import Source
from support import ROOT
from support.service import served


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for publish in (served.net, served.others, served.kinds, served.broken):
        publish(folder)
    served.net(folder, wrong=True, version=2)
    return folder


def by_hand(version: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = ort.InferenceSession(version / "model.onnx").run(None, inputs)
    return found


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """scikit-learn's digits as float32, pixels from 0 to 1."""
    digits: np.ndarray = load_digits().images[:200, None] / 16
    return digits.astype(np.float32)


@pytest.mark.parametrize("cores", [1, 3])
def test_any_number_of_rows_is_answered_as_by_onnx_runtime(
    cores: int, repository: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a session for one core each computes batches side by side."""
    monkeypatch.setattr(serving, "cores", lambda: cores)
    monkeypatch.setattr(serving, "FAST_SECONDS", 0.0)
    model = fold.load(repository / "net" / "1", device="cpu")
    assert (model.name, model.version, model.device, str(model)) == ("net", "1", "cpu", "net/1")
    assert [spec.name for spec in model.inputs] == ["image"]
    assert [spec.shape for spec in model.outputs] == [(-1, 10)]
    assert model.labels == served.LABELS
    for rows in (0, 1, 64, 65, 200):
        [expected] = by_hand(repository / "net" / "1", {"image": images[:rows]})
        for given in ({"image": images[:rows]}, [images[:rows]], images[:rows]):
            np.testing.assert_allclose(model.run(given)["scores"], expected, rtol=1e-5, atol=1e-5, strict=True)


def test_models_of_every_kind_run(repository: Path) -> None:
    pair = fold.load(repository / "pair")
    a, b = np.ones((100, 2), np.float32), np.full((100, 2), 3, np.float32)
    assert pair.run([a, b])["difference"].tolist() == [[-2, -2]] * 100
    assert pair.run({"b": b, "a": a})["sum"].tolist() == [[4, 4]] * 100
    assert fold.load(repository / "single").run(np.arange(4, dtype=np.float32))["y"].tolist() == [0, 2, 4, 6]
    text = np.array([["a", "b"]] * 70, object)
    assert fold.load(repository / "text").run(text)["y"].tolist() == [["a!", "b!"]] * 70
    upper = fold.load(repository / "upper")
    half = np.ones((2, 3)).astype(upper.run({"x": np.ones((1, 3)).astype("bfloat16")})["y"].dtype)
    assert upper.run(half)["wide"].tolist() == [[1, 1, 1]] * 2
    assert pair.labels is None


def test_the_newest_version_unless_one_is_named(repository: Path) -> None:
    assert fold.load(repository / "net").version == "2"
    assert fold.load(str(repository / "net" / "1")).version == "1"
    assert "net" in model_folders(repository).found
    with pytest.raises(BnfoldError, match="is a repository with the models"):
        fold.load(repository)


def test_the_classes_of_rows_and_of_images(repository: Path, images: np.ndarray, tmp_path: Path) -> None:
    model = fold.load(repository / "net" / "1")
    [scores] = by_hand(repository / "net" / "1", {"image": images})
    softmax = np.exp(scores - scores.max(axis=1, keepdims=True)).astype(np.float64)
    softmax /= softmax.sum(axis=1, keepdims=True)
    found = model.predict(images.astype(np.float64), top_k=3)
    assert found.index.shape == found.label.shape == found.probability.shape == (200, 3)
    np.testing.assert_array_equal(found.index[:, 0], scores.argmax(axis=1))
    np.testing.assert_allclose(found.probability, -np.sort(-softmax, axis=1)[:, :3], rtol=1e-4)
    assert found.label[7, 0] == served.LABELS[scores[7].argmax()]

    pixels = (images[:2, 0] * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    encoded = io.BytesIO()
    pictures[0].save(encoded, "PNG")
    pictures[1].save(tmp_path / "one.png")
    [scores] = by_hand(repository / "net" / "1", {"image": ((pixels[:, None] / 255 - 0.5) / 0.25).astype(np.float32)})
    for given in (pictures, [encoded.getvalue(), tmp_path / "one.png"], [pictures[0], str(tmp_path / "one.png")]):
        np.testing.assert_array_equal(model.predict(given).index[:, 0], scores.argmax(axis=1))
    assert model.predict(pictures[0]).index.tolist() == [[scores[0].argmax()]]


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("net", lambda model: model.run(np.zeros((2, 1, 8, 7), np.float32)), "shape [2, 1, 8, 7] does not fit"),
        ("net", lambda model: model.run(np.zeros((2, 1, 8, 8))), "type float64, expected FP32"),
        ("net", lambda model: model.run({"x": np.zeros(1)}), "no such input"),
        ("net", lambda model: model.predict(np.full((1, 1, 8, 8), 1e300)), "too large for FP32"),
        ("net", lambda model: model.predict([[1], [2, 3]]), "its rows differ in shape"),
        ("net", lambda model: model.predict(b"GIF"), "image 0: cannot be read as an image"),
        ("net", lambda model: model.predict("no.png"), "no.png: cannot be read as an image"),
        ("net", lambda model: model.predict(np.full((1, 1, 8, 8), np.nan)), "scores are not finite"),
        ("pick", lambda model: model.run(np.array([11])), "pick/1: the run failed: "),
        ("pick", lambda model: model.predict([1]), "is no classifier"),
        ("pair", lambda model: model.run([np.zeros((1, 2), np.float32)]), "the model takes 2"),
        ("pair", lambda model: model.run([np.zeros((n, 2), np.float32) for n in (1, 2)]), "their batches differ"),
    ],
)
def test_what_does_not_fit_gets_one_line(name: str, call: Any, words: str, repository: Path) -> None:
    model = fold.load(repository / name / "1")
    with pytest.raises(BnfoldError) as refused:
        call(model)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("broken", {}, "was changed after it was written"),
        ("nobody", {}, "no such folder; expected REPOSITORY/NAME"),
        ("net", {"device": "gpu"}, "expected auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_loaded_gets_one_line(name: str, options: dict[str, str], words: str, repository: Path) -> None:
    with pytest.raises(BnfoldError, match=words):
        fold.load(repository / name, **options)  # type: ignore[arg-type]


def test_the_canary_is_tried_and_the_certificate_is_asked_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(repository / "net" / "1" / "unfolded.onnx")
    assert convert(source, Target(tmp_path, "net", 1), provider="cpu").path is not None
    fold.load(tmp_path / "net")
    right = serving.open_session

    def wrong(*arguments: Any, **options: Any) -> Any:
        session = right(*arguments, **options)
        run = session.run
        monkeypatch.setattr(session, "run", lambda *names: [array + 1 for array in run(*names)])
        return session

    monkeypatch.setattr(serving, "open_session", wrong)
    with pytest.raises(BnfoldError, match="its certificate does not hold here"):
        fold.load(tmp_path / "net")
    monkeypatch.undo()
    inputs, outputs = [("x", "FP32", -1)], [("y", "FP32", -1)]
    same = served.graph_of([served.helper.make_node("Identity", ["x"], ["y"])], inputs, outputs)
    served.publish(tmp_path, "unproven", same, inputs, outputs, verdict={"equivalent": False, "message": "it is wrong"})
    with pytest.raises(BnfoldError, match="does not certify that the graph is equivalent: it is wrong"):
        fold.load(tmp_path / "unproven")
    shutil.rmtree(tmp_path / "net" / "1")


def test_this_session_is_verified(repository: Path, images: np.ndarray) -> None:
    assert fold.load(repository / "net" / "1").verify(images[:70])
    assert fold.load(repository / "net" / "1").verify(samples=3, seed=1).samples == 3
    assert not fold.load(repository / "net" / "2").verify()


def test_neither_the_service_nor_pytorch_is_imported(repository: Path) -> None:
    code = (
        "import sys, numpy, fold\n"
        f"model = fold.load({str(repository / 'net' / '1')!r})\n"
        "model.run(numpy.zeros((2, 1, 8, 8), 'float32')); model.predict(numpy.zeros((1, 1, 8, 8)))\n"
        "print(sorted({'service', 'fastapi', 'uvicorn', 'torch', 'onnx', 'onnx_ir', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


LEAVE = """
import sys, threading
import numpy, fold
from fold.runtime import running
def repeat(work):
    began = threading.Event()
    def forever():
        while True:
            work()
            began.set()
    threading.Thread(target=forever, daemon=True).start()
    began.wait()
model = fold.load(sys.argv[1])
repeat(lambda: model.run(numpy.ones((4, 1, 8, 8), numpy.float32)))
repeat(lambda: fold.load(sys.argv[1]))
if sys.argv[2] == "hangs":
    running.SECONDS = 0.01
    hanging = threading.Event()
    def hang():
        with running.in_flight:
            hanging.set()
            threading.Event().wait()
    threading.Thread(target=hang, daemon=True).start()
    hanging.wait()
"""


def test_a_process_may_end_while_threads_run_and_load(repository: Path) -> None:
    """Python ends daemon threads; one that came back into C++ would abort the process."""
    command = [sys.executable, "-c", LEAVE, str(repository / "net" / "1")]
    done = subprocess.run([*command, "answers"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_hangs_does_not_keep_the_process_alive(repository: Path) -> None:
    command = [sys.executable, "-c", LEAVE, str(repository / "net" / "1"), "hangs"]
    subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
