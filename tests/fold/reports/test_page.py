"""The page for people: what its pictures show is so, what it says in words agrees, and it loads and runs nothing."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fold.artifact.manifest import Manifest
from fold.engine.fold import Folding, fold_graph
from fold.engine.reasons import Code, Reason
from fold.engine.report import Folded, FoldReport, Kept
from fold.evaluate.float64 import Evaluator, evaluate
from fold.inspection import layers
from fold.inspection.layers import evenly
from fold.reports import observe
from fold.reports.observations import QUANTILES, Observations
from fold.reports.observe import observe_layers
from fold.reports.page import parts, write_html
from fold.reports.pictures import FOLDED, UNFOLDED, draw
from fold.runtime.session import open_graph, run

NETWORK = """
    c1 = Conv <pads = [1, 1, 1, 1]> (x, W1, B1)
    b1 = BatchNormalization(c1, gamma1, beta1, mean1, variance1)
    r1 = Relu(b1)
    c2 = Conv(r1, W2)
    b2 = BatchNormalization(c2, gamma2, beta2, mean2, variance2)
    t2 = Tanh(b2)
    b3 = BatchNormalization(t2, gamma3, beta3, mean3, variance3)
    y = Sigmoid(b3)
"""
"""The first two fold into their convolutions, the third stays between two functions that nothing passes."""
SHAPES = {
    "x": (3, 7, 6),
    "W1": (4, 3, 3, 3),
    "B1": (4,),
    "W2": (5, 4, 2, 2),
    **{f"{name}1": (4,) for name in ("gamma", "beta", "mean", "variance")},
    **{f"{name}{n}": (5,) for name in ("gamma", "beta", "mean", "variance") for n in (2, 3)},
}


def network(nodes: str = NETWORK, x: str = "n, 3, 7, 6", **given: np.ndarray) -> ir.Model:
    """A float32 graph of x with random parameters for what it reads of `SHAPES`, but those that are given."""
    imports = 'ir_version: 10, opset_import: ["": 20, "com.microsoft": 1, "unknown": 1]'
    proto = onnx.parser.parse_model(f"<{imports}> g (float[{x}] x) => (float[n, a, b, c] y) {{ {nodes} }}")
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        if name == "x" or not re.search(rf"\b{name}\b", nodes):
            continue
        array = random.standard_normal(shape)
        array = np.abs(array) + 0.1 if name.startswith("variance") else given.get(name, array)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def rows(count: int, *shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, *(shape or SHAPES["x"]))).astype(np.float32)}


def observed(model: ir.Model, inputs: dict[str, np.ndarray]) -> tuple[Folding, Observations]:
    folding = fold_graph(model)
    return folding, observe_layers(model, folding.model, folding.carried, folding.report, inputs)


@pytest.fixture(scope="module")
def seen() -> tuple[ir.Model, Folding, Observations]:
    model = network()
    return model, *observed(model, rows(11))


def certificate(**changed: object) -> dict[str, object]:
    output = {"name": "y", "equivalent": True, "unfolded_error": 2e-7, "folded_error": 1e-7, "limit": 9e-7}
    return {
        "equivalent": True,
        "message": "equivalent over 16 samples on cpu in fp32",
        "outputs": [{**output, "relative_error": 1e-7, "ulp": 1.0, "cosine": 1.0, "worst_sample": 0}],
        "decisions": [{"name": "y", "decisions": 16, "flips": 2, "excused": 2}],
        "algebra": {"holds": True, "limit": 2e-12, "families": [{"difference": 3e-16}, {"difference": 4e-16}]},
        "rounding": {
            "holds": True,
            "weights": 7,
            "wrong": 0,
            "outputs": [{"name": "y", "difference": 1e-8, "bound": 5e-6}],
        },
        "search": None,
        **changed,
    }


def written(folder: Path, report: FoldReport, seen: Observations, verdict: dict[str, object] | None = None) -> str:
    manifest = Manifest(
        name="digits",
        version="1",
        created="2026-01-01T00:00:00+00:00",
        source={"file": "digits.pt"},
        reference="reference.pt2",
        inputs=(),
        outputs=(),
        preprocessing=None,
        labels=None,
        fold={},
        verdict=verdict or certificate(),
        versions={},
    )
    write_html(folder / "report.html", manifest, report, seen)
    return (folder / "report.html").read_text()


class Page(HTMLParser):
    """Elements of a page, the text of each, and that what was opened was closed."""

    VOID = frozenset({"meta", "link"})
    BY_ITSELF = frozenset({"p", "td", "th", "tr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for name in {name for pair in self._open[-1:] for name in pair if name}:
            self.text[name] = self.text.get(name, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_each_picture_has_a_title_and_a_description(tmp_path, seen) -> None:
    _, folding, observations = seen
    page = Page(written(tmp_path, folding.report, observations))
    pictures = page.all("svg")
    assert len(pictures) == 5
    for attributes in pictures:
        assert attributes["role"] == "img"
        title, description = (attributes["aria-labelledby"] or "").split()
        assert len(page.text[title]) > 10
        assert re.search(r"\d", page.text[description])


def test_ids_are_unique_and_what_refers_to_one_finds_it(tmp_path, seen) -> None:
    _, folding, observations = seen
    text = written(tmp_path, folding.report, observations)
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    assert referred
    assert set(referred) <= set(ids)


def test_the_page_loads_and_runs_nothing(tmp_path, seen) -> None:
    _, folding, observations = seen
    text = written(tmp_path, folding.report, observations)
    assert "://" not in text
    assert "@import" not in text
    page = Page(text)
    assert {tag for tag, _ in page.elements} & {"script", "img", "image", "iframe", "object", "embed"} == set()
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))


def test_pictures_take_the_pages_colour_and_have_no_ground(seen) -> None:
    for picture in draw(seen[2]):
        assert picture.svg is not None
        assert "currentColor" in picture.svg
        assert not re.search(r"#(?!picture)(010203|000000|ffffff)", picture.svg)
        assert "<text" in picture.svg
        assert "metadata" not in picture.svg


@pytest.mark.parametrize("ground", ["#ffffff", "#121212"])
@pytest.mark.parametrize("colour", [UNFOLDED, FOLDED])
def test_both_colours_stand_out_on_light_and_on_dark(colour, ground) -> None:
    def luminance(code: str) -> float:
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(colour), luminance(ground)))
    assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG asks of graphics


def test_the_same_is_drawn_twice_whatever_the_user_has_configured(seen) -> None:
    first = draw(seen[2])
    with mpl.rc_context({"font.size": 40, "svg.fonttype": "path", "axes.labelpad": 30, "xtick.major.size": 9}):
        assert draw(seen[2]) == first


def test_errors_are_the_distances_of_both_graphs_from_float64(seen) -> None:
    model, folding, observations = seen
    inputs = {"x": rows(11)["x"][:8]}
    assert observations.rows == 8
    truth = evaluate(model, inputs)["y"]
    for graph, found in ((model, observations.errors.unfolded), (folding.model, observations.errors.folded)):
        answer = run(open_graph(graph), inputs)["y"].astype(np.float64)
        np.testing.assert_array_equal(found, np.abs(answer - truth).reshape(-1))
    text = next(picture.text for picture in draw(observations) if picture.name == "errors")
    for found in (observations.errors.unfolded, observations.errors.folded):
        assert f"{np.median(found):.3g} from float64 at the median, {found.max():.3g} at most" in text
        assert f"and {(found == 0).sum()} are exact" in text


def test_the_layers_of_a_right_fold_are_as_near_to_float64_as_before(seen) -> None:
    observations = seen[2]
    assert [layer.name for layer in observations.layers] == ["c1", "b1", "r1", "c2", "b2", "t2", "b3", "y"]
    assert [layer.folded is None for layer in observations.layers] == [
        False,
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert all(0 < layer.unfolded < 1e-5 for layer in observations.layers)
    assert all(0 < layer.folded < 1e-5 for layer in observations.layers if layer.folded is not None)
    worst = max(observations.layers, key=lambda layer: layer.unfolded)
    text = next(picture.text for picture in draw(observations) if picture.name == "layers")
    assert f"the unfolded graph is furthest from float64 in {worst.name}, by {worst.unfolded:.3g} of" in text


def test_a_wrong_weight_shows_in_its_layer_and_behind(seen) -> None:
    model, folding, _ = seen
    wrong = folding.model.clone()
    weights = next(node for node in wrong.graph if node.outputs[0].name == "c2").inputs[1]
    weights.const_value = ir.tensor(weights.const_value.numpy() * np.float32(1.01), name=weights.name)
    found = {
        layer.name: layer.folded
        for layer in observe_layers(model, wrong, folding.carried, folding.report, rows(2)).layers
    }
    assert found["c1"] < 1e-5
    assert found["r1"] < 1e-5
    assert found["c2"] > 1e-3


def test_activations_are_those_of_the_batchnorm_and_of_what_replaces_it(seen) -> None:
    model, _, observations = seen
    tensors: dict[str, np.ndarray] = {}
    Evaluator(model)({"x": rows(11)["x"][:8]}, on_tensor=tensors.__setitem__)
    assert [one.number for one in observations.activations] == [1, 2, 3]
    for one, (before, after) in zip(observations.activations, [("c1", "b1"), ("c2", "b2"), ("t2", "b3")], strict=True):
        np.testing.assert_allclose(one.before, np.quantile(tensors[before], QUANTILES), atol=1e-5)
        np.testing.assert_allclose(one.after, np.quantile(tensors[after], QUANTILES), atol=1e-5)
        np.testing.assert_allclose(one.folded, one.after, atol=1e-4)
    description = next(picture.svg for picture in draw(observations) if picture.name == "activations")
    for one in observations.activations:
        assert f"#{one.number} {one.before.median:.3g}, {one.after.median:.3g}, {one.folded.median:.3g}" in description


def test_stretches_are_the_scales_of_the_folded_batchnorms(seen) -> None:
    model, _, observations = seen
    weights = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    assert [stretch.number for stretch in observations.stretches] == [1, 2]
    for stretch in observations.stretches:
        gamma, variance = (weights[f"{name}{stretch.number}"] for name in ("gamma", "variance"))
        scales = np.abs(gamma / np.sqrt(variance + np.float32(1e-5)))
        np.testing.assert_allclose(stretch.before, (scales.min(), np.median(scales), scales.max()), rtol=1e-12)
        assert stretch.behind == (1, 1, 1)
    least = min(stretch.before.least for stretch in observations.stretches)
    most = max(stretch.before.most for stretch in observations.stretches)
    text = next(picture.text for picture in draw(observations) if picture.name == "stretches")
    assert f"the weights before a BatchNorm by {least:.3g} to {most:.3g}" in text


def test_a_dead_channel_has_no_factor() -> None:
    model = network(gamma1=np.array([0, 2, -3, 0.5]))
    _, observations = observed(model, rows(2))
    assert observations.stretches[0].before.least > 0
    assert all(picture.svg for picture in draw(observations))


def test_costs_before_and_after(seen) -> None:
    _, folding, observations = seen
    assert (observations.unfolded.operators, observations.folded.operators) == (8, 6)
    sizes = [4 * math.prod(shape) for name, shape in SHAPES.items() if name != "x"]
    assert observations.unfolded.weight_bytes == sum(sizes)
    stored = sum(value.const_value.nbytes for value in folding.model.graph.initializers.values())
    assert observations.folded.weight_bytes == stored
    assert observations.timed_rows == 1
    assert observations.rounds >= 3
    text = next(picture.text for picture in draw(observations) if picture.name == "costs")
    assert "operators 8 before, 6 after" in text
    assert f"latency {observations.unfolded.latency_ms:.3g} before, {observations.folded.latency_ms:.3g} after" in text
    assert "on the CPU of this machine while folding" in text


def test_what_cannot_be_evaluated_in_float64_is_left_out_and_said(tmp_path) -> None:
    model = network(NETWORK.replace("y = Sigmoid(b3)", "y = com.microsoft.QuickGelu(b3)"))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    folding, observations = observed(model, rows(2))
    assert set(observations.missing) == {"errors", "layers"}
    page = Page(written(tmp_path, folding.report, observations))
    assert len(page.all("svg")) == 3
    assert "Not shown: the unfolded graph" in page.text["figcaption"]


def test_what_cannot_be_run_leaves_what_can_be_read(tmp_path) -> None:
    model = network(NETWORK.replace("y = Sigmoid(b3)", "y = unknown.Mystery(b3)"))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    folding, observations = observed(model, rows(2))
    assert set(observations.missing) == {"errors", "layers", "activations", "latency"}
    assert observations.unfolded.latency_ms is None
    page = Page(written(tmp_path, folding.report, observations))
    assert len(page.all("svg")) == 2
    assert "latency was not measured" in page.text["figcaption"]
    assert "model.onnx" not in page.text["figcaption"]  # where the graph lay for a moment


def test_of_many_batchnorms_and_layers_a_few_are_taken_evenly(monkeypatch) -> None:
    monkeypatch.setattr(observe, "BATCHNORMS", 4)
    monkeypatch.setattr(layers, "LAYERS", 5)
    links = [
        f"v{n} = BatchNormalization(t{n}, gamma1, beta1, mean1, variance1) t{n + 1} = Tanh(v{n})" for n in range(9)
    ]
    model = network(f"t0 = Tanh(x) {' '.join(links)} y = Identity(t9)", "n, 4, 2, 3")
    folding, observations = observed(model, rows(2, 4, 2, 3))
    assert len(folding.report.kept) == 9
    assert [one.number for one in observations.activations] == [1, 4, 6, 9]
    assert observations.tensors == 20
    assert 5 <= len(observations.layers) <= 5 + 8
    texts = {picture.name: picture.text for picture in draw(observations)}
    assert texts["activations"].startswith("4 BatchNorms of 9, chosen at even distances")
    assert f"In {len(observations.layers)} layers, of 20 chosen at even distances" in texts["layers"]
    assert texts["stretches"].startswith("Not shown: no BatchNorm")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 17, 300])
def test_evenly(count) -> None:
    chosen = evenly(range(count), 5)
    assert len(chosen) == min(count, 5) == len(set(chosen))
    assert chosen == sorted(chosen)
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert max(np.diff(chosen), default=0) - min(np.diff(chosen), default=0) <= 1


def test_large_activations_are_seen_on_fewer_rows_and_by_a_sample(monkeypatch) -> None:
    monkeypatch.setattr(layers, "ROWS_BYTES", 4 * 4000)
    monkeypatch.setattr(layers, "SAMPLE", 50)
    _, observations = observed(network(), rows(8))
    assert observations.rows == 3  # of three tensors with 168 numbers and five with 150
    assert observations.errors.unfolded.size == 50
    assert all(0 < layer.folded < 1e-5 for layer in observations.layers if layer.folded is not None)


def test_a_fixed_batch_is_not_cut() -> None:
    _, observations = observed(network(x="3, 3, 7, 6"), rows(3))
    assert (observations.rows, observations.timed_rows, observations.missing) == (3, 3, {})


def test_the_graphs_are_not_touched() -> None:
    model = network()
    for value in [value for node in model.graph for value in node.outputs if not value.is_graph_output()]:
        value.type = value.shape = None  # as in a file without shapes
    before = ir.to_proto(model).SerializeToString()
    folding, _ = observed(model, rows(2))
    stored = ir.to_proto(folding.model).SerializeToString()
    assert len(observe_layers(model, folding.model, folding.carried, folding.report, rows(2)).layers) == 8
    assert ir.to_proto(model).SerializeToString() == before
    assert ir.to_proto(folding.model).SerializeToString() == stored


HOSTILE = "</title><script>alert(1)</script>&\"'$x^2$"


def test_hostile_names_are_text(tmp_path) -> None:
    model = network()
    for node in model.graph:
        node.name = f"{HOSTILE}{node.outputs[0].name}"
    folding, observations = observed(model, rows(2))
    report = FoldReport(
        (*folding.report.folded, Folded(HOSTILE, HOSTILE, 3, (HOSTILE,), HOSTILE)),
        (*folding.report.kept, Kept(HOSTILE, HOSTILE + "2", 3, Reason(Code.SHARED_INPUT, HOSTILE))),
    )
    observations.numbers[HOSTILE, HOSTILE] = 5
    output = {**certificate()["outputs"][0], "name": HOSTILE}
    text = written(tmp_path, report, observations, certificate(message=HOSTILE, outputs=[output]))
    page = Page(text)
    assert page.all("script") == []
    assert HOSTILE in page.text["picture-layers-desc"]
    assert f"{HOSTILE}." in page.text["p"]
    assert HOSTILE in page.text["code"]


def test_the_tables_number_batchnorms_as_the_pictures_do(tmp_path, seen) -> None:
    _, folding, observations = seen
    assert [entry.name for entry in folding.report.kept] == ["b3"]
    text = written(tmp_path, folding.report, observations)
    table = re.findall(r'data-label="#">(\d+)</td>\s*<td class="words"><code>(\w+)</code>', text)
    assert table == [("3", "b3"), ("1", "b1"), ("2", "b2")]


def test_the_parts_of_the_certificate() -> None:
    held = parts(certificate())
    assert [(part.letter, part.holds) for part in held] == [
        ("A", True),
        ("B", True),
        ("C", True),
        ("D", True),
        ("E", None),
    ]
    assert held[0].found == "they differ by 4e-16 of the largest value, the limit is 2e-12"
    effect = "0 of 7 weights are wrong; this changes y by 1e-08, "
    assert held[1].found == f"{effect}the worst rounding of them by less than 5e-06"  # until 2026-11-30
    drawn = parts(certificate(rounding={**certificate()["rounding"], "draws": 3}))
    assert drawn[1].found == f"{effect}random roundings of them by at most 5e-06"
    assert held[2].found == "y: |F − R| is at most 1e-07, |U − R| 2e-07, the limit is 9e-07"
    assert held[3].found == "y: the same on 14 of 16; rounding explains 2"
    assert held[4].found is None


def test_each_part_can_fail() -> None:
    whole = certificate()
    output, decision = whole["outputs"][0], whole["decisions"][0]
    failing = certificate(
        algebra={**whole["algebra"], "holds": False, "families": [{"difference": None}]},
        rounding={
            "holds": False,
            "weights": 7,
            "wrong": 3,
            "outputs": [{"name": "y", "difference": 1.0, "bound": None}],
        },
        outputs=[output, {**output, "equivalent": False, "folded_error": None}],
        decisions=[{**decision, "excused": 1}],
        search={"outputs": {"y": {"found": 2e-6, "start": 1e-7}}},
    )
    found = parts(failing)
    assert [part.holds for part in found] == [False, False, False, False, None]
    assert found[0].found is not None
    assert "differ by not finite" in found[0].found
    assert found[1].found == "3 of 7 weights are wrong; no bound is known for y"
    assert found[4].found == "y: 2e-06 of the largest value at most, 1e-07 before the search"


def test_a_part_that_does_not_hold_is_seen(tmp_path, seen) -> None:
    _, folding, observations = seen
    good = written(tmp_path, folding.report, observations)
    failing = certificate(equivalent=False, algebra={**certificate()["algebra"], "holds": False})
    bad = written(tmp_path, folding.report, observations, failing)
    assert ("does not hold" in good, "does not hold" in bad) == (False, True)
    assert ("NOT equivalent</span>" in good, "NOT equivalent</span>" in bad) == (False, True)


def test_matplotlib_is_loaded_by_nothing_but_a_report() -> None:
    code = "import sys, fold.cli, fold.convert, fold.reports.page, service.app; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
