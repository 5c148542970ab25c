"""Verified before ready: a version serves only if its certificate holds on this device, in this very session."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fold.artifact.directory import read_version, write_manifest
from fold.artifact.manifest import Manifest
from support.commands import bnfold
from support.service.reloading import rewrite
from support.service.serving import PATIENCE

IMAGE = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}


def change_weight(folder: Path, by: float) -> None:
    """Move one weight by a part of the largest, and make every digest right again."""
    model = onnx.load(folder / "model.onnx")
    initializer = next(i for i in model.graph.initializer if len(i.dims) == 4)
    weight = numpy_helper.to_array(initializer).copy()
    weight.flat[3] += np.float32(by) * np.abs(weight).max()
    initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, read_manifest(folder))


def read_manifest(folder: Path) -> Manifest:
    """The manifest as it stands, whatever its digests say."""
    return Manifest.model_validate_json((folder / "manifest.json").read_text())


@pytest.fixture
def copied(folded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folded, tmp_path / "repository"))


def index(service: Any) -> dict[tuple[str, str], tuple[str, str]]:
    return {(e["name"], e["version"]): (e["state"], e["reason"]) for e in service.post("/v2/repository/index").json()}


def test_the_latest_version_serves_where_its_certificate_holds(copied: Path, start: Callable[..., Any]) -> None:
    with start(copied) as service:
        assert index(service) == {("net", "2"): ("READY", "")}
        assert service.post("/v2/models/net/infer", json=IMAGE).json()["model_version"] == "2"
        page = service.get("/").text
        assert "and tried here before it served" in page
        report = service.get("/models/net/versions/2/report")
        assert 'href="models/net/versions/2/report"' in page
        assert report.headers["content-type"] == "text/html; charset=utf-8"
        script = '<script type="module" src="../../../../static/sorted.js"></script>'
        added = re.search(f"\n<nav>.*</nav>\n{script}", report.text)
        assert added is not None
        assert report.text.replace(added[0], "") == (copied / "net" / "2" / "report.html").read_text()
        assert "script-src 'self';" in report.headers["content-security-policy"]
        inspection = service.get("/models/net/versions/2/inspection")
        assert added[0] in inspection.text
        assert "1 BatchNorm: 1 would be folded, 0 kept." in inspection.text
        missing = service.get("/models/net/versions/9/report")
        assert (missing.status_code, list(missing.json())) == (404, ["error"])


def test_changed_weights_with_right_digests_are_refused_and_the_old_version_serves(
    copied: Path, start: Callable[..., Any]
) -> None:
    change_weight(copied / "net" / "2", by=1e-3)
    read_version(copied / "net" / "2")  # its digests are right
    with start(copied) as service:
        states = index(service)
        assert states["net", "1"] == ("READY", "")
        state, reason = states["net", "2"]
        assert state == "UNAVAILABLE"
        assert "its certificate does not hold here, on cpu: output 'scores' is " in reason
        assert "and the proven limit is" in reason
        assert "\n" not in reason
        assert f"bnfold: not serving net/2: {reason}" in service.lines

        assert service.get("/v2/health/ready").json() == {"ready": True}
        assert service.get("/v2/models/net").json()["versions"] == ["1"]
        assert service.post("/v2/models/net/infer", json=IMAGE).json()["model_version"] == "1"
        assert service.get("/v2/models/net/ready").status_code == 200
        refused = service.get("/v2/models/net/versions/2/ready")
        assert (refused.status_code, reason in refused.json()["error"]) == (503, True)
        assert service.metric('bnfold_model_ready{model="net",version="1"}') == 1
        assert service.metric('bnfold_model_ready{model="net",version="2"}') == 0
        assert service.metric('bnfold_model_broken{cause="certificate",model="net",version="2"}') == 1


def test_a_manifest_that_does_not_certify_is_refused(copied: Path, start_process: Callable[..., Any]) -> None:
    for version, verdict in (("1", {}), ("2", {"equivalent": False, "message": "NOT equivalent over 16 samples"})):
        folder = copied / "net" / version
        write_manifest(folder, read_manifest(folder).model_copy(update={"verdict": verdict}))
    with start_process(copied, ready=False) as service:
        assert service.process.wait(PATIENCE) == 2
    (line,) = service.lines
    assert "net/1: " in line
    assert "does not certify that the graph is equivalent: it has no verdict" in line
    assert "is equivalent: NOT equivalent over 16 samples; fold the model again" in line


def test_a_version_that_cannot_be_read_leaves_the_older_one_serving(copied: Path, start: Callable[..., Any]) -> None:
    (copied / "net" / "2" / "manifest.json").unlink()
    with start(copied) as service:
        assert index(service)["net", "1"] == ("READY", "")
        assert "manifest.json: cannot be read" in index(service)["net", "2"][1]
        assert service.metric('bnfold_model_broken{cause="load",model="net",version="2"}') == 1


def test_a_graph_that_fails_on_its_canary_is_refused_in_one_line(copied: Path, start: Callable[..., Any]) -> None:
    folder = copied / "net" / "2"
    with np.load(folder / "canary.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["input/image"] = arrays["input/image"][:, :, :3]  # not what the graph takes
    np.savez(folder / "canary.npz", **arrays)
    write_manifest(folder, read_manifest(folder))
    with start(copied) as service:
        state, reason = index(service)["net", "2"]
        assert (state, index(service)["net", "1"]) == ("UNAVAILABLE", ("READY", ""))
        assert "a run before serving fails: " in reason
        assert "\n" not in reason
    assert not any("Traceback" in line for line in service.lines)


def as_of_2026_11_21(verdict: dict[str, Any]) -> dict[str, Any]:
    """A certificate as it was written then: one limit for all families of part A, in part B a bound for the worst
    rounding, and nothing of draws, of drawn shapes and of how many values were compared."""
    added = ("compared", "drawn", "draws", "family", "unfolded_limit")

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(each) for key, each in value.items() if key not in added}
        return [without(each) for each in value] if isinstance(value, list) else value

    old: dict[str, Any] = without(verdict)
    for family in old["algebra"]["families"]:
        del family["limit"]
    for output in old["rounding"]["outputs"]:
        output["bound"] = 3.96e61
    return old


def test_a_certificate_of_an_older_release_is_shown_and_made_anew(copied: Path, start: Callable[..., Any]) -> None:
    folder = copied / "net" / "2"
    verdict = as_of_2026_11_21(read_manifest(folder).verdict)
    rewrite(folder, verdict=verdict)
    with start(copied) as service:
        assert index(service)["net", "2"] == ("READY", "")
        assert service.get("/v2/models/net/equivalence").json()["published"]["verdict"] == verdict
        page = service.get("/").text
        assert ("algebra holds" in page, "rounding holds" in page) == (True, True)
        parts = service.post("/v2/models/net/equivalence", json={"parts": ["algebra", "rounding"]}).json()
        assert (parts["equivalent"], parts["rounding"]["draws"]) == (True, 3)
    done = bnfold("verify", folder, "--json")
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["rounding"]["outputs"]
    assert output["difference"] <= output["bound"] < 1e-3
