"""Statistics computed anew: a checkpoint in which nothing else has changed, and the command that writes it."""

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fold import cli
from fold.cli import recalibrate as command
from fold.cli.fold import fold as folding
from fold.errors import BnfoldError
from fold.inputs.dataset import open_dataset
from fold.inputs.images import read_preprocessing
from fold.recalibration.checkpoint import Recalibration, recalibrate
from fold.recalibration.population import layers_with_statistics
from fold.sources.source import Source
from models import digits
from models.cnn import cnn
from support import ROOT
from support.recalibrating import ROWS, Unreached, Unusual, directly, images, net, plain

DOCS = ROOT / "docs" / "recalibration.md"
NET = "support.recalibrating:Net"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source(path: Path, arch: str = NET, **more: object) -> Source:
    return Source(path, arch, **more)


def saved(tmp_path: Path, **changes: object) -> tuple[Path, Path]:
    """A checkpoint of `net` and an `.npz` of `images`."""
    torch.save({"state_dict": net().state_dict(), "epoch": 7, **changes}, tmp_path / "old.pt")
    np.savez(tmp_path / "data.npz", image=images())
    return tmp_path / "old.pt", tmp_path / "data.npz"


def test_accuracy_is_restored_after_the_statistics_were_spoiled(tmp_path: Path) -> None:
    data = digits.load()
    arguments = {"channels": [16, 32], "depth": 1}
    module = digits.train(cnn, arguments, data, epochs=10)
    right = digits.accuracy(module, data.test_images, data.test_labels)
    assert right > 0.95
    for layer in layers_with_statistics(module).values():
        spread = layer.running_var.clone()
        layer.running_mean.copy_(torch.randn(layer.num_features, generator=torch.Generator().manual_seed(1)))
        layer.running_var.copy_(spread.flip(0) * 9)
    spoiled = digits.accuracy(module, data.test_images, data.test_labels)
    assert spoiled < 0.7
    digits.save(tmp_path / "spoiled.pt", module, reached=spoiled, record={"arch_args": arguments})
    np.savez(tmp_path / "train.npz", x=data.train_images)
    for mode in (False, True):
        out = tmp_path / f"restored-{mode}.pt"
        recalibrate(source(tmp_path / "spoiled.pt", "models.cnn:cnn"), tmp_path / "train.npz", out, layer_by_layer=mode)
        module.load_state_dict(torch.load(out, weights_only=True)["state_dict"])
        restored = digits.accuracy(module, data.test_images, data.test_labels)
        assert round(len(data.test_labels) * (right - restored)) <= 1


def test_a_checkpoint_keeps_all_but_the_statistics(tmp_path: Path) -> None:
    old, data = saved(tmp_path, bnfold={"labels": ["a"]})
    content = torch.load(old, weights_only=True)
    content["state_dict"]["bn2.num_batches_tracked"].zero_()
    torch.save(content, old)
    done = recalibrate(source(old), data, tmp_path / "new.pt", batch_size=10, layer_by_layer=True)
    before, after = (torch.load(file, weights_only=True) for file in (old, tmp_path / "new.pt"))
    assert after["epoch"] == 7
    assert after["bnfold"] == {"labels": ["a"], "recalibrated": done.recalibrated}
    assert {key: done.recalibrated[key] for key in ("data", "samples", "batches", "mode", "seed")} == {
        "data": "data.npz",
        "samples": ROWS,
        "batches": 3,
        "mode": "layer by layer",
        "seed": 0,
    }
    assert list(before["state_dict"]) == list(after["state_dict"])
    exact = directly(net(), torch.from_numpy(images()))
    for name, tensor in after["state_dict"].items():
        layer, _, buffer = name.rpartition(".")
        if buffer not in STATISTICS:
            assert torch.equal(tensor, before["state_dict"][name])
        elif buffer == "num_batches_tracked":
            assert tensor == (3 if layer == "bn2" else 1000)
        else:  # rounded once
            want = exact[layer][buffer == "running_var"]
            np.testing.assert_allclose(tensor, want, rtol=2**-24, atol=1e-12)


def test_a_safetensors_file_stays_one_and_half_stays_half(tmp_path: Path) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in net().state_dict().items()}
    save_file(state, tmp_path / "old.safetensors", {"author": "me"})
    np.savez(tmp_path / "data.npz", images())
    done = recalibrate(source(tmp_path / "old.safetensors"), tmp_path / "data.npz", tmp_path / "new.safetensors")
    new = load_file(tmp_path / "new.safetensors")
    assert {name: t.dtype for name, t in new.items()} == {name: t.dtype for name, t in state.items()}
    assert all(torch.equal(t, state[name]) for name, t in new.items() if not name.endswith(STATISTICS))
    assert not torch.equal(new["bn1.running_mean"], state["bn1.running_mean"])
    header = (tmp_path / "new.safetensors").read_bytes()
    told = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert told["author"] == "me"
    assert json.loads(told["bnfold"])["recalibrated"] == done.recalibrated


def test_averaged_weights_get_statistics_of_their_own(tmp_path: Path) -> None:
    """An average of parameters alone has no buffers: its new ones are written beside it, the plain ones stay."""
    plain = net()
    averaged = {name: parameter + 0.5 for name, parameter in plain.named_parameters()}
    old, data = saved(tmp_path, state_dict=plain.state_dict(), state_dict_ema=averaged)
    recalibrate(source(old, ema=True), data, tmp_path / "new.pt", layer_by_layer=True)
    new = torch.load(tmp_path / "new.pt", weights_only=True)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in new["state_dict"].items())
    with torch.no_grad():
        plain.load_state_dict({**plain.state_dict(), **averaged})
    mean, variance = directly(plain, torch.from_numpy(images()))["bn2"]
    np.testing.assert_allclose(new["state_dict_ema"]["bn2.running_mean"], mean, rtol=2**-23, atol=1e-6)
    np.testing.assert_allclose(new["state_dict_ema"]["bn2.running_var"], variance, rtol=2**-23)


def test_two_names_two_inputs_casts_and_layers_left_out(tmp_path: Path) -> None:
    module = Unusual()
    torch.save(module.state_dict(), tmp_path / "old.pt")
    random = np.random.default_rng(0)
    # float32 would lose the deviation beside the mean, so what the module casts must be in float64
    values, index = random.normal(1e8, 1, (9, 3)), random.integers(0, 7, 9)
    np.savez(tmp_path / "data.npz", index=index, values=values)
    done = recalibrate(
        source(tmp_path / "old.pt", "support.recalibrating:Unusual"), tmp_path / "data.npz", tmp_path / "new.pt"
    )
    assert [layer.name for layer in done.layers] == ["first"]
    assert done.unreached == ("auxiliary",)
    new = torch.load(tmp_path / "new.pt", weights_only=True)
    seen = values + module.table.weight.detach().double().numpy()[index]
    for name in ("first", "also"):
        np.testing.assert_allclose(new[f"{name}.running_var"], seen.var(0), rtol=1e-6)
    assert torch.equal(new["auxiliary.running_var"], torch.ones(3))


def test_how_far_the_statistics_and_the_outputs_moved(tmp_path: Path) -> None:
    old, data = saved(tmp_path)
    steps: list[tuple[int, int, str]] = []
    done = recalibrate(
        source(old),
        data,
        tmp_path / "new.pt",
        batch_size=12,
        layer_by_layer=True,
        progress=lambda step, total, name: steps.append((step, total, name)),
    )
    assert steps == [(n + 1, 6, ("bn1", "bn2", "bn3")[n // 2]) for n in range(6)]
    module = net().double()
    new = directly(net(), torch.from_numpy(images()))
    assert [(layer.name, layer.channels, layer.values) for layer in done.layers] == [
        ("bn1", 5, ROWS * 4 * 5),
        ("bn2", 4, ROWS * 3 * 4),
        ("bn3", 4, ROWS),
    ]
    for layer in done.layers:
        before = module.get_submodule(layer.name)
        spread = before.running_var + before.eps
        shift = (new[layer.name][0] - before.running_mean).abs() / spread.sqrt()
        ratio = (new[layer.name][1] + before.eps) / spread
        assert layer.mean_shift == pytest.approx(shift.max().item(), rel=1e-10)
        assert layer.variance_ratio == pytest.approx((ratio.min().item(), ratio.max().item()), rel=1e-10)
    again = recalibrate(source(tmp_path / "new.pt"), data, tmp_path / "newer.pt", layer_by_layer=True)
    assert done.outputs_moved > 0.1
    assert again.outputs_moved < 1e-5  # the first ones were rounded to float32
    assert max(layer.mean_shift for layer in again.layers) < 1e-5


def test_statistics_that_are_no_numbers_are_replaced(tmp_path: Path) -> None:
    old, data = saved(tmp_path)
    content = torch.load(old, weights_only=True)
    content["state_dict"]["bn1.running_mean"][0] = math.nan
    content["state_dict"]["bn2.running_var"][0] = -1
    torch.save(content, old)
    done = recalibrate(source(old), data, tmp_path / "new.pt")
    assert [(layer.mean_shift is None, layer.variance_ratio is None) for layer in done.layers] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert done.outputs_moved is None
    json.dumps(done.to_dict(), allow_nan=False)
    new = torch.load(tmp_path / "new.pt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in new.values())


def test_batches_are_even_shuffled_and_hold_every_row_once(tmp_path: Path) -> None:
    for name, start, count in (("a", 0, 11), ("b", 11, 1), ("c", 12, 14)):
        np.savez(tmp_path / f"{name}.npz", x=np.arange(start, start + count), y=np.arange(start, start + count) * 2.0)
    data = open_dataset(tmp_path, None, batch_size=5, seed=3)
    batches = list(data.batches())
    assert [len(batch["x"]) for batch in batches] == data.sizes == [5, 5, 4, 4, 4, 4]
    rows = np.concatenate([batch["x"] for batch in batches])
    np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in batches]), 2 * rows)
    assert sorted(rows) == list(range(26))
    assert list(rows) != sorted(rows)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in data.batches()]), rows)
    lone = open_dataset(tmp_path / "c.npz", None, batch_size=5, seed=3)
    assert max(np.ptp(batch["x"]) for batch in lone.batches()) > 5  # rows of one file are mixed as well
    other = open_dataset(tmp_path, None, batch_size=5, seed=4)
    assert list(np.concatenate([batch["x"] for batch in other.batches()])) != list(rows)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `bnfold recalibrate`."""
    with pytest.raises(SystemExit) as left:
        cli.main(["recalibrate", *map(str, arguments)])
    output = capsys.readouterr()
    return int(left.value.code or 0), output.out, output.err


def test_the_command_says_that_the_function_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, data = saved(tmp_path)
    arguments = ("--arch", NET, "--data", data)
    code, out, err = run(capsys, old, *arguments, "--out", tmp_path / "new.pt")
    assert (code, out) == (0, "")
    for word in ("bn1", "bn2", "bn3", "23 samples", "one pass", "This changes what the model computes", "new.pt"):
        assert word in err
    code, out, _ = run(capsys, old, *arguments, "--out", tmp_path / "2.pt", "--layer-by-layer", "--json")
    answer = json.loads(out)
    assert code == 0
    assert list(answer) == list(inspect.signature(Recalibration).parameters)
    for key in (*answer, *answer["recalibrated"]):
        assert f"`{key}`" in DOCS.read_text(encoding="utf-8")
    assert answer["recalibrated"]["mode"] == "layer by layer"
    assert answer["checkpoint"] == str(tmp_path / "2.pt")
    assert [layer["name"] for layer in answer["layers"]] == ["bn1", "bn2", "bn3"]


def test_a_file_a_folder_of_files_and_a_folder_of_images_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 6, 7, 3)).astype(np.uint8)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    rows = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    how = {"input": "image", "mode": "RGB", "height": 6, "width": 7, "mean": mean.tolist(), "std": std.tolist()}
    old, file = saved(tmp_path, bnfold={"preprocessing": how})
    np.savez(file, image=rows)
    (tmp_path / "files").mkdir()
    (tmp_path / "images").mkdir()
    for position, part in enumerate(np.split(rows, [4, 5])):
        np.savez(tmp_path / "files" / f"{position}.npz", image=part)
    for position, image in enumerate(pixels):  # one folder for each class, as people keep them
        (tmp_path / "images" / str(position % 2)).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / str(position % 2) / f"{position}.png")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"none of it")
    found = []
    for data in (file, tmp_path / "files", tmp_path / "images"):
        out = tmp_path / f"{data.stem}-new.pt"
        options = ("--out", out, "--layer-by-layer", "--batch-size", 9)
        code, _, err = run(capsys, old, "--arch", NET, "--data", data, *options)
        assert code == 0, err
        found.append(torch.load(out, weights_only=True)["state_dict"])
    for state in found[1:]:
        assert all(torch.allclose(t, found[0][name], rtol=1e-6, atol=1e-9) for name, t in state.items())
    exact = directly(net(), torch.from_numpy(rows))["bn1"]
    np.testing.assert_allclose(found[2]["bn1.running_var"], exact[1], rtol=2**-23)


def refused_data(tmp_path: Path, **arrays: np.ndarray) -> tuple[Path, Path]:
    old, data = saved(tmp_path)
    np.savez(data, **arrays)
    return old, data


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": images(), "label": np.zeros(ROWS)}, ("data.npz", "no such input", "it takes image")),
        ({"image": images()[:, :2]}, ("data.npz", "does not take", "[23, 2, 6, 7]")),
        ({"image": images().astype(np.uint8)}, ("data.npz", "does not take", "torch.uint8")),
        ({"image": images().astype(str)}, ("data.npz", "<U", "give numbers")),
        ({"image": np.where(images() > 45, np.nan, images())}, ("data.npz", "'image'", "not finite in row")),
        ({"image": np.where(images() > 45, np.inf, images())}, ("data.npz", "not finite")),
        ({"image": images().astype(np.float64) * 1e306}, ("layer bn2", "not finite")),
        ({"image": images().astype(np.float64) * 1e290}, ("layer bn1", "too large for torch.float32")),
        ({"image": images()[:0]}, ("data.npz", "no common number of rows")),
        ({"image": images()[:1]}, ("layer bn3", "a single value in each channel", "--batch-size")),
        ({"image": images(), "other": images(2)}, ("data.npz", "no common number of rows")),
        ({}, ("data.npz", "(none)")),
    ],
)
def test_bad_data_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray], words: tuple[str, ...]
) -> None:
    old, data = refused_data(tmp_path, **arrays)
    refused(tmp_path, run(capsys, old, "--arch", NET, "--data", data, "--out", tmp_path / "new.pt"), *words)


def refused(tmp_path: Path, done: tuple[int, str, str], *words: str) -> None:
    code, out, err = done
    assert (code, out) == (2, ""), err
    (line,) = err.strip().splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("*new*"))
    assert not list(tmp_path.glob(".*"))


def test_bad_sources_and_targets_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, data = saved(tmp_path)
    torch.save(plain().state_dict(), tmp_path / "plain.pt")
    torch.save(Unreached().state_dict(), tmp_path / "left.pt")
    Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "a.onnx").touch()
    np.savez(tmp_path / "mixed" / "a.npz", image=images())
    np.savez(tmp_path / "mixed" / "b.npz", image=images()[:, :, 1:])
    (tmp_path / "how.json").write_text('{"input": "x", "mode": "RGB", "height": 6, "width": 7}')
    net_, new = ("--arch", NET), ("--out", tmp_path / "new.pt")
    cases = [
        ((old, *net_, "--data", data, "--out", old), ("old.pt", "exists")),
        ((old, *net_, "--data", data, "--out", tmp_path / "new.safetensors"), ("new.safetensors", "suffix .pt")),
        ((old, *net_, "--data", data, "--out", tmp_path / "no" / "x.pt"), ("no/x.pt", "no folder")),
        ((old, "--data", data, *new), ("old.pt", "--arch")),
        ((tmp_path / "a.onnx", "--data", data, *new), ("a.onnx", "state_dict")),
        (
            (tmp_path / "plain.pt", "--arch", "support.recalibrating:plain", "--data", data, *new),
            ("plain.pt", "no BatchNorm"),
        ),
        (
            (tmp_path / "left.pt", "--arch", "support.recalibrating:Unreached", "--data", data, *new),
            ("Unreached", "none of its"),
        ),
        ((old, *net_, "--data", tmp_path / "none.npz", *new), ("none.npz",)),
        ((old, *net_, "--data", tmp_path / "one.png", *new), ("one.png", "--preprocessing")),
        ((old, *net_, "--data", tmp_path / "mixed", *new), ("b.npz", "[3, 5, 7]", "a.npz", "[3, 6, 7]")),
        ((old, *net_, "--data", data, "--preprocessing", tmp_path / "how.json", *new), ("how.json", "no input 'x'")),
    ]
    for arguments, words in cases:
        refused(tmp_path, run(capsys, *arguments), *words)


def test_a_file_of_preprocessing_goes_before_the_checkpoints_own(tmp_path: Path) -> None:
    own = {"input": "x", "mode": "L", "height": 3, "width": 4}
    (tmp_path / "how.json").write_text(json.dumps({**own, "height": 9}))
    assert read_preprocessing(None, {}, ["x"]) is None
    assert read_preprocessing(None, {"preprocessing": own}, ["x"]).height == 3
    assert read_preprocessing(tmp_path / "how.json", {"preprocessing": own}, ["x"]).height == 9
    (tmp_path / "how.json").write_text(json.dumps({**own, "height": -9}))
    with pytest.raises(BnfoldError, match=r"how\.json: Input should be greater than 0"):
        read_preprocessing(tmp_path / "how.json", {"preprocessing": own}, ["x"])


def test_a_fold_has_no_way_to_recalibrate() -> None:
    assert not set(inspect.signature(command).parameters) & {"samples", "provider", "device", "name", "version"}
    assert not {"data", "layer_by_layer", "batch_size"} & set(inspect.signature(folding).parameters)


def test_a_network_that_cannot_tell_whose_input_it_is_says_which_are_missing(tmp_path: Path) -> None:
    torch.save(Unusual().state_dict(), tmp_path / "old.pt")
    np.savez(tmp_path / "data.npz", values=np.ones((4, 3)))
    with pytest.raises(BnfoldError, match=r"data\.npz: input 'index': missing; the model takes values, index"):
        recalibrate(
            source(tmp_path / "old.pt", "support.recalibrating:Unusual"), tmp_path / "data.npz", tmp_path / "new.pt"
        )
