"""A graph without BatchNorm, as PyTorch's exporters write it in eval mode: told first, proven shortly, and served."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from support.commands import bnfold, refused
from support.service.reloading import tampered
from support.service.serving import start


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("plain")
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        g (float[n, 2, 5, 5] x) => (float[n, 3] y) <float[3, 2, 3, 3] W>
        { u = Conv(x, W) v = Relu(u) w = GlobalAveragePool(v) y = Flatten(w) }""")
    W = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    onnx.save(model, folder / "net.onnx")
    return folder, bnfold("fold", folder / "net.onnx", "--out", folder / "r")


def test_it_is_told_first_in_one_line(published) -> None:
    folder, done = published
    assert done.returncode == 0, done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"{folder / 'net.onnx'}: has no BatchNorm to fold; exporters fold it in eval mode.")
    assert "give the checkpoint with --arch, or export with torch.onnx.export(…, dynamo=True, optimize=False)" in first
    assert rest[-1] == f"published {folder / 'r/net/1'}"
    before, after = (onnx.load(path).graph for path in (folder / "net.onnx", folder / "r/net/1/model.onnx"))
    assert [(node.op_type, *node.input) for node in after.node] == [(node.op_type, *node.input) for node in before.node]


def test_it_is_served(published) -> None:
    folder, _ = published
    x = np.random.default_rng(1).standard_normal((3, 2, 5, 5)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(folder / "net.onnx").run(None, {"x": x})
    with start(folder / "r") as service:
        answer = service.post("/v1/models/net:predict", json={"instances": x.tolist()}).json()
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5, atol=1e-6)


def test_an_error_is_one_line_alone(published, tmp_path, monkeypatch) -> None:
    folder, _ = published
    monkeypatch.setenv("BNFOLD_MAX_EVALUATION_SECONDS", "0")
    assert "takes more than 0 s" in refused("fold", folder / "net.onnx", "--out", tmp_path)


def test_the_proof_of_what_did_not_change_is_short_and_verified_again(published) -> None:
    folder, _ = published
    verdict = json.loads((folder / "r/net/1/manifest.json").read_text())["verdict"]
    assert verdict["samples"] == 2
    assert [family["name"] for family in verdict["algebra"]["families"]] == ["normal"]
    assert [(one["difference"], one["bound"]) for one in verdict["rounding"]["outputs"]] == [(0.0, 0.0)]
    assert all(verdict[part]["compared"] > 0 for part in ("algebra", "rounding"))
    done = bnfold("verify", folder / "r/net", "--samples", 3, "--json")
    assert (done.returncode, json.loads(done.stdout)["samples"]) == (0, 3)


def test_a_weight_that_is_not_the_sources_is_found(published, tmp_path) -> None:
    folder, _ = published

    def change(weights: dict[str, np.ndarray]) -> None:
        W = next(iter(weights.values()))
        W.flat[0] = np.nextafter(W.flat[0], np.float32(9))

    (tmp_path / "net/1").mkdir(parents=True)
    version = tampered(folder / "r/net/1", tmp_path / "net/1", change)
    done = bnfold("verify", version.path)
    assert done.returncode == 1
    assert "not what folding gives" in done.stderr
