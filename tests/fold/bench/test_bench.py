"""Latency side by side: turns, answers before times, what is told of it, and the picture. No test asserts a time."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fold
import fold.sources.export
from fold.artifact.directory import ModelVersion, read_version, write_manifest
from fold.artifact.manifest import Manifest
from fold.bench import measure as bench
from fold.bench.measure import AnswersDifferError, bench_version, interleaved, parse_batches, summarise
from fold.convert import Target, convert
from fold.errors import BnfoldError
from fold.reports.bench import bench_table, write_picture
from fold.runtime.machine import Machine, this_machine
from fold.runtime.session import CudaOptions, open_session
from fold.sources.source import Source
from support.folding import architecture, randomise

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """`trained`, from a checkpoint; `foreign`, from an .onnx; `fixed`, from an .onnx with a batch of 3."""
    folder = tmp_path_factory.mktemp("bench")
    module = randomise(architecture("cnn"), seed=3, hostile=False)
    torch.save(module.state_dict(), folder / "trained.pt")
    graph = fold.export_module(module, torch.randn(2, 1, 8, 8))
    ir.save(graph, folder / "foreign.onnx")
    for value in (*graph.graph.inputs, *(out for node in graph.graph for out in node.outputs)):
        value.shape = ir.Shape([3, *value.shape[1:]])
    ir.save(graph, folder / "fixed.onnx")
    target = folder / "repository"
    convert(Source(folder / "trained.pt", "models.cnn:cnn", (), ["1,8,8"]), Target(target, "trained"))
    for name in ("foreign", "fixed"):
        convert(Source(folder / f"{name}.onnx"), Target(target, name))
    return target


def published(repository: Path, name: str) -> ModelVersion:
    return read_version(repository / name / "1")


# --- taking turns


def test_the_graphs_take_turns_and_warming_up_is_not_counted() -> None:
    now, turns = 0.0, []

    def call(name: str, seconds: float) -> None:
        nonlocal now
        turns.append(name)
        now += seconds * (100 if len(turns) <= 2 * bench.WARMUP_ROUNDS else 1)

    calls = {"unfolded": lambda: call("unfolded", 3.0), "folded": lambda: call("folded", 2.0)}
    taken = interleaved(calls, 5, clock=lambda: now)
    assert taken == {"unfolded": [3.0] * 5, "folded": [2.0] * 5}
    rounds = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    assert len(rounds) == bench.WARMUP_ROUNDS + 5
    assert all(first == ["unfolded", "folded"][:: -1 if i % 2 else 1] for i, first in enumerate(rounds))


def test_a_timing_is_the_median_and_the_quartiles() -> None:
    timing = summarise([0.004, 0.001, 0.002, 0.1, 0.003], 8, 1e-7)
    assert (timing.first_quartile_ms, timing.median_ms, timing.third_quartile_ms) == pytest.approx((2, 3, 4))
    assert timing.rows_per_second == pytest.approx(8 / 0.003)


# --- what is measured


@pytest.mark.parametrize(("name", "reference"), [("trained", "reference.pt2"), ("foreign", "unfolded.onnx")])
def test_both_graphs_are_measured_at_every_batch(repository, name, reference) -> None:
    steps: list[str] = []
    found = bench_version(
        published(repository, name), batches=(5, 1), rounds=2, provider="cpu", threads=1, seed=7, announce=steps.append
    )
    assert [(one.provider, one.batch) for one in found.measurements] == [("cpu", 5), ("cpu", 1)]
    assert (found.unfolded.file, found.folded.file) == (reference, "model.onnx")
    assert (found.unfolded.batchnorms, found.unfolded.batchnorms_optimised) == (4, 0)
    manifest = published(repository, name).manifest
    assert found.folded.batchnorms == len(manifest.fold["kept"])
    assert found.unfolded.operators - found.folded.operators >= len(manifest.fold["folded"])
    assert any("exporting" in step for step in steps) is (reference == "reference.pt2")

    answer = json.loads(json.dumps(found.to_dict()))
    assert (answer["model"], answer["version"], answer["rounds"]) == (name, "1", 2)
    assert (answer["threads"], answer["seed"]) == (1, 7)
    assert set(answer["graphs"]) == {"unfolded", "folded"}
    assert ". ONNX Runtime folds all 4 BatchNorms itself when it opens the unfolded graph" in answer["conclusion"]
    assert set(answer["machine"]) == {"cpu", "cores", "gpu", "system"}
    assert {"python", "bnfold", "numpy"} <= set(answer["versions"])
    for one in answer["measurements"]:
        for graph in ("unfolded", "folded"):
            timing = one[graph]
            assert 0 < timing["first_quartile_ms"] <= timing["median_ms"] <= timing["third_quartile_ms"]
            assert timing["rows_per_second"] == pytest.approx(1000 * one["batch"] / timing["median_ms"])
            assert 0 <= timing["relative_error"] < 1e-5
        assert one["ratio"] == pytest.approx(one["unfolded"]["median_ms"] / one["folded"]["median_ms"])


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("tf32", True), ("fp16", True), ("bf16", True)])
def test_a_gpu_has_tf32_on_as_the_service_does(precision, on) -> None:
    manifest = Manifest.model_construct(fold={"precision": {"type": precision}})
    assert bench._options(manifest, "folded").tf32 is on
    assert not bench._options(manifest, "unfolded").tf32


def test_every_provider_that_is_present_is_measured_with_the_same_options(repository, monkeypatch) -> None:
    opened = []

    def on_cpu(file: Path, *, provider: str, threads: int, cuda: CudaOptions) -> object:
        assert not cuda.tf32
        opened.append((file.name, provider, threads))
        return open_session(file, provider="cpu")

    monkeypatch.setattr(bench, "open_session", on_cpu)
    monkeypatch.setattr(bench, "resolve_provider", lambda provider: "cuda")
    found = bench_version(published(repository, "foreign"), batches=(1, 2), rounds=1, threads=2)
    assert [(one.provider, one.batch) for one in found.measurements] == [
        ("cpu", 1), ("cpu", 2), ("cuda", 1), ("cuda", 2),
    ]  # fmt: skip
    assert opened == [(file, p, 2) for p in ("cpu", "cuda") for file in ("unfolded.onnx", "model.onnx")]


def test_answers_are_compared_in_runs_of_the_size_that_is_timed(repository, monkeypatch) -> None:
    sizes = []

    def note(session, inputs):
        sizes.append(len(inputs["x"]))
        return run(session, inputs)

    run = bench.run
    monkeypatch.setattr(bench, "run", note)
    bench_version(published(repository, "foreign"), batches=(1, 6), rounds=1, provider="cpu")
    assert sizes == [1] * 32 + [6] * 6  # both graphs, at least 16 rows each


def test_a_model_from_onnx_is_measured_without_torch(repository) -> None:
    code = f"""
import sys
from pathlib import Path
from fold.artifact.directory import read_version
from fold.bench.measure import bench_version
bench_version(read_version(Path({str(repository / "foreign" / "1")!r})), batches=(1,), rounds=1, provider="cpu")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- answers before times


def spoil(model: ir.Model) -> ir.Model:
    """The same graph with one bias or weight that is off by one part in a hundred."""
    value = next(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    return model


def test_a_wrong_folded_graph_is_never_timed(repository, tmp_path, monkeypatch) -> None:
    for file in (repository / "foreign" / "1").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ir.save(spoil(ir.load(tmp_path / "model.onnx")), tmp_path / "model.onnx")
    write_manifest(tmp_path, published(repository, "foreign").manifest)
    monkeypatch.setattr(bench, "interleaved", lambda *_: pytest.fail("a time was taken"))
    with pytest.raises(AnswersDifferError, match="the folded graph at batch 1 on cpu: NOT equivalent"):
        bench_version(read_version(tmp_path), provider="cpu")


def test_a_wrong_unfolded_graph_is_never_timed(repository, monkeypatch) -> None:
    right = fold.sources.export.export_graph
    monkeypatch.setattr(fold.sources.export, "export_graph", lambda program: spoil(right(program)))
    monkeypatch.setattr(bench, "interleaved", lambda *_: pytest.fail("a time was taken"))
    with pytest.raises(AnswersDifferError, match="the unfolded graph at batch 2 on cpu: NOT equivalent"):
        bench_version(published(repository, "trained"), batches=(2,), provider="cpu")


# --- bad input


def test_a_fixed_batch_is_the_default_and_no_other_is_measured(repository) -> None:
    version = published(repository, "fixed")
    found = bench_version(version, rounds=1, provider="cpu")
    assert [one.batch for one in found.measurements] == [3]
    with pytest.raises(BnfoldError, match="batch 4: the batch of fixed is fixed; use --batch 3"):
        bench_version(version, batches=(3, 4), rounds=1)


def test_what_cannot_be_computed_is_told_in_one_line(repository, monkeypatch) -> None:
    def fail(session, inputs):
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr(bench, "run", fail)
    with pytest.raises(BnfoldError) as error:
        bench_version(published(repository, "foreign"), batches=(2,), provider="cpu")
    assert str(error.value) == "the unfolded graph at batch 2 on cpu: no room"


def test_batches_are_read() -> None:
    assert parse_batches("1, 32,8,8") == (1, 32, 8)


@pytest.mark.parametrize("text", ["", "0", "-1", "1,,2", "a", "1.5", "1e3", "100000", "1;2", "９"])
def test_what_is_no_batch_is_refused(text) -> None:
    with pytest.raises(BnfoldError, match="expected whole numbers from 1"):
        parse_batches(text)


# --- table and picture


@pytest.fixture
def found() -> bench.Benchmark:
    """Two providers, three batches, and names that are no XML."""

    def timing(milliseconds: float, batch: int) -> bench.Timing:
        return bench.Timing(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 1000 * batch / milliseconds, 1e-7)

    return bench.Benchmark(
        model="net",
        version="2",
        measured="2026-11-21T00:00:00+00:00",
        rounds=7,
        threads=3,
        seed=0,
        unfolded=bench.GraphSize("reference.pt2", 5, 20),
        folded=bench.GraphSize("model.onnx", 1, 16),
        measurements=tuple(
            bench.Measurement(provider, batch, timing(cost * batch, batch), timing(0.8 * cost * batch, batch))
            for provider, cost in (("cpu", 1.5), ("cuda", 0.01))
            for batch in (1, 8, 32)
        ),
        machine=Machine("CPU <a> & b", 4, "GPU <c>", "Linux"),
        versions={"onnxruntime": "1.31.1"},
    )


def test_the_conclusion_says_what_was_found_and_why(found) -> None:
    """A graph is faster if its third quartile is below the other's first."""
    same = "The folded graph is as fast as the unfolded one, within the spread of the runs. "
    assert found.conclusion == f"{same}The unfolded graph has 5 BatchNorms, the folded one 1."
    folded = replace(found.unfolded, batchnorms_optimised=0, operators_optimised=15)
    found = replace(found, unfolded=folded, folded=replace(found.folded, operators_optimised=12))
    assert found.conclusion == (
        f"{same}ONNX Runtime folds all 5 BatchNorms itself when it opens the unfolded graph; "
        "after its optimisations the folded graph has 3 operators fewer."
    )
    left = replace(found, unfolded=replace(found.unfolded, batchnorms_optimised=4))
    assert left.conclusion == f"{same}ONNX Runtime leaves 4 of 5 BatchNorms, bnfold 1."

    def with_costs(*folded: float) -> bench.Benchmark:
        def scaled(timing: bench.Timing, factor: float) -> bench.Timing:
            return replace(timing, median_ms=factor, first_quartile_ms=0.9 * factor, third_quartile_ms=1.1 * factor)

        measured = [
            replace(one, unfolded=scaled(one.unfolded, 1), folded=scaled(one.folded, cost))
            for one, cost in zip(found.measurements, folded, strict=False)
        ]
        return replace(found, measurements=tuple(measured))

    for costs, sentence in (
        ((0.5, 0.4, 0.5), "faster: up to 2.50 times the speed of the unfolded one. "),
        ((0.5, 1.0), "faster in 1 of 2 measurements: up to 2.00 times the speed of the unfolded one. "),
        ((2.0,), "slower: down to 0.50 times the speed of the unfolded one. "),
        ((2.0, 0.5, 1.0), "faster in 1 and slower in 1 of 3 measurements. "),
    ):
        assert with_costs(*costs).conclusion.startswith(f"The folded graph is {sentence}")


def test_the_table_has_two_rows_for_each_provider_and_batch(found) -> None:
    table = bench_table(found)
    cells = [list(column.cells) for column in table.columns]
    assert table.row_count == 12
    assert cells[1][::2] == ["1", "8", "32", "1", "8", "32"]
    assert cells[3][:2] == ["1.50", "1.20"]
    assert cells[6][1::2] == ["[bold]1.25[/]"] * 6


def test_the_picture_is_svg_that_says_everything_and_needs_nothing(found, tmp_path) -> None:
    write_picture(tmp_path / "bench.svg", found)
    text = (tmp_path / "bench.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "href" not in text
    assert text.count("http") == 1  # the name of the namespace
    said = " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))
    for words in (
        "net version 2", "CPU: CPU <a> & b", "CUDA: GPU <c>", "milliseconds", "1.50 ms", "0.256 ms", "1.25×",
        "batch 32",
        "reference.pt2, 5 BatchNorms, 20 operators", "model.onnx, 1 BatchNorms, 16 operators", "onnxruntime 1.31.1",
        "7 rounds", "3 threads", "2026-11-21",
    ):  # fmt: skip
        assert words in said


def test_bars_are_as_long_as_their_median_and_stay_inside(found, tmp_path) -> None:
    write_picture(tmp_path / "bench.svg", found)
    root = ElementTree.parse(tmp_path / "bench.svg").getroot()
    width, height = float(root.get("width")), float(root.get("height"))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 2
    for panel, cost in zip(panels, (1.5, 0.01), strict=True):
        bars = [bar for bar in panel.iter(f"{SVG}rect") if bar.get("class", "").startswith("bar")]
        medians = [factor * cost * batch for batch in (1, 8, 32) for factor in (1, 0.8)]
        assert [bar.get("class") for bar in bars] == ["bar unfolded", "bar folded"] * 3
        lengths = np.array([float(bar.get("width")) for bar in bars])
        np.testing.assert_allclose(lengths / lengths[0], np.array(medians) / medians[0], rtol=2e-3)
        assert lengths.min() > 0
        assert lengths.max() < width
    assert all(0 < float(element.get("y")) < height for element in root.iter(f"{SVG}text"))


def test_a_picture_with_one_bar_pair_of_any_size_can_be_drawn(found, tmp_path) -> None:
    for milliseconds in (1e-3, 0.999, 1, 10, 123456.0):
        timing = bench.Timing(milliseconds, milliseconds, milliseconds, 1000 / milliseconds, 0)
        one = bench.Measurement("cpu", 1, timing, timing)
        write_picture(tmp_path / "one.svg", replace(found, measurements=(one,)))
        assert ElementTree.parse(tmp_path / "one.svg").getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(("name", "words"), [("a.jpg", "ends in .svg"), ("no/a.svg", "no folder"), ("d.svg", "folder")])
def test_a_path_that_takes_no_picture_is_refused(found, tmp_path, name, words) -> None:
    (tmp_path / "d.svg").mkdir()
    with pytest.raises(BnfoldError, match=words):
        write_picture(tmp_path / name, found)


# --- the machine


def test_the_machine_has_a_name_and_cores() -> None:
    machine = this_machine(gpu=False)
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.gpu is None


def test_the_first_gpu_is_named_by_its_driver(monkeypatch) -> None:
    def name_device(name, size, device):
        name.value = b"NVIDIA Tester"
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda device, n: n, cuDeviceGetName=name_device)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    assert this_machine(gpu=True).gpu == "NVIDIA Tester"
