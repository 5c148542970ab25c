"""What the command line prints for people: the short form, the tables of `--all`, help, version and completion."""

import re
from math import ceil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fold import __version__
from fold.cli import COMMANDS
from support.commands import bnfold
from support.folding import GraphBuilder

COLUMNS, LINES = 80, 25
BATCHNORMS = 50


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """50 BatchNorms with long names, 43 behind a convolution, and 7 behind a Sigmoid, which are kept. 3 outputs."""
    g = GraphBuilder("n", 4, 3, 3)
    x, outputs = g.x, []
    for index in range(BATCHNORMS):
        x = g.op("Sigmoid", x) if index % 7 == 3 else g.op("Conv", x, g.normal(4, 4, 1, 1))
        x = g.op("Relu", g.batchnorm(x, 4))
        outputs += [g.op("GlobalAveragePool", x)] if index in (9, 30, 49) else []
    model = g.finish(*outputs)
    for position, node in enumerate(node for node in model.graph if node.op_type == "BatchNormalization"):
        node.name = f"backbone.stages.{position // 12}.blocks.{position}.residual.normalization.bn{position}"
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for value in (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(o for n in model.graph for o in n.outputs),
    ):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    path = tmp_path_factory.mktemp("deep") / "deep.onnx"
    ir.save(model, path)
    return path


def shown(text: str) -> int:
    """The number of lines that a terminal of 80 columns shows."""
    return sum(max(1, ceil(len(line) / COLUMNS)) for line in text.splitlines())


def test_a_fold_of_50_batchnorms_fits_on_a_screen_and_says_what_was_kept(deep, tmp_path) -> None:
    done = bnfold("fold", deep, "--out", tmp_path, "--samples", 2)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert shown(done.stderr) <= LINES, done.stderr
    kept, numbers, *_ = done.stderr.splitlines()
    assert re.match(
        r"kept backbone\.stages\S*…\S*bn3 and 6 more of this kind: the scale of channel \d \(.*\) cannot move", kept
    )
    assert numbers.startswith("50 BatchNorms: 43 folded, 7 kept; ")
    assert numbers.endswith(" --all lists each of them.")
    for part in ("C  error as served", "D  decisions"):
        assert done.stderr.count(part) == 1
    verdict = r"^equivalent over 2 samples on cpu in fp32: same decisions on 6 of 6; error \d+ % of the limit \("
    assert re.search(verdict, done.stderr, re.MULTILINE)
    assert f"published {tmp_path}/deep/1" in done.stderr
    every = bnfold("verify", tmp_path / "deep", "--samples", 1, "--all").stderr
    assert (every.count("D  decisions,"), every.count("worst of")) == (3, 0)


def test_an_inspection_of_50_batchnorms_fits_on_a_screen(deep) -> None:
    done = bnfold("inspect", deep)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert shown(done.stderr) <= LINES, done.stderr
    kept, ranges, numbers = done.stderr.splitlines()
    assert "and 6 more of this kind: " in kept
    assert re.fullmatch(r"all channels: γ .+ … .+, β .+, μ .+, σ² .+, 0 dead, \d+ negative", ranges)
    assert numbers == f"{deep}: 50 BatchNorms: 43 would be folded, 7 kept. --all lists each of them."


def test_all_prints_a_row_for_each_batchnorm_and_cuts_names_in_the_middle(deep) -> None:
    """No name is broken over two lines, and no column is lost."""
    lines = bnfold("inspect", deep, "--all").stderr.splitlines()
    assert max(map(len, lines)) <= COLUMNS or len(lines[-1]) > COLUMNS  # the last one is a sentence
    rows = [line.split()[1] for line in lines if re.match(r" *\d+ back", line)]
    assert rows == 2 * [f"back…{end}" for end in (f"orm.bn{i}"[-4:] if i < 10 else f"bn{i}" for i in range(BATCHNORMS))]
    statistics, folding = (line.split() for line in lines if "BatchNorm" in line and "#" in line)
    assert statistics == ["#", "BatchNorm", "Channels", "Placement", "Trained", "γ", "β", "μ", "σ²"]
    assert folding[-3:] == ["Scale", "Stretch", "float16"]


def test_the_help_is_plain_and_its_sentences_end() -> None:
    bare, asked = bnfold(), bnfold("-h")
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, asked.stdout, "")
    commands = bare.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in commands] == [command.__name__ for command in COMMANDS]
    assert all(line.endswith(".") for line in commands)
    for command in COMMANDS:
        text = bnfold(command.__name__, "-h").stdout
        assert "<bool>" not in text
        described = text.split("\n\n")[1]
        assert described.rstrip().endswith(".")
        assert "..." not in described
    assert re.search(r"--json  +Print one JSON object on stdout\.", bnfold("fold", "--help").stdout)


def test_the_version_is_printed() -> None:
    done = bnfold("--version")
    assert (done.returncode, done.stdout) == (0, f"bnfold {__version__}\n")


def test_a_shell_completes_commands_and_options(monkeypatch) -> None:
    monkeypatch.setenv("_BNFOLD_COMPLETE", "complete_bash")
    for words, position, expected in (("bnfold ver", 1, "verify"), ("bnfold fold --open", 2, "--open-activations")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(position))
        assert bnfold().stdout.split() == [expected]
