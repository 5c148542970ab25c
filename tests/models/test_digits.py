"""The data set and its split, training from a seed, the checkpoint, and the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fold.errors import BnfoldError
from models import digits
from models.cnn import cnn
from models.conv1d_tcn import conv1d_tcn
from models.digits import Digits
from models.mlp import mlp
from models.unet import unet


@pytest.fixture(scope="module")
def data() -> Digits:
    return digits.load()


def trained(data: Digits, *, seed: int = 0, epochs: int = 2) -> dict[str, torch.Tensor]:
    module = digits.train(mlp, {"channels": 32}, data, epochs=epochs, seed=seed)
    return module.state_dict()


def test_images_are_float32_from_zero_to_one(data: Digits) -> None:
    for images, labels in [(data.train_images, data.train_labels), (data.test_images, data.test_labels)]:
        assert images.dtype == np.float32
        assert images.shape == (len(labels), 1, 8, 8)
        assert (images.min(), images.max()) == (0, 1)
        assert labels.dtype == np.int64
    assert len(data.train_labels) + len(data.test_labels) == 1797


def test_the_split_is_disjoint_and_stratified(data: Digits) -> None:
    # No two of the 1,797 images are equal, so an image that stood on both sides would show.
    images = np.concatenate([data.train_images, data.test_images]).reshape(-1, 64)
    assert len(np.unique(images, axis=0)) == 1797
    shares = np.bincount(data.test_labels) / (np.bincount(data.train_labels) + np.bincount(data.test_labels))
    assert len(shares) == 10
    assert np.all((shares > 0.19) & (shares <= 0.2))


def test_the_split_is_the_same_everywhere(data: Digits) -> None:
    # Sums of sixteenths are exact, so these numbers hold on every machine.
    assert data.test_images.sum(dtype=np.float64) == 6947
    assert data.test_labels[:12].tolist() == [5, 0, 9, 8, 7, 1, 2, 6, 3, 4, 0, 2]
    images, labels = digits.held_out()
    assert np.array_equal(images, data.test_images)
    assert np.array_equal(labels, data.test_labels)


def test_training_is_determined_by_the_seed(data: Digits) -> None:
    first, again, other = trained(data), trained(data), trained(data, seed=1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_training_leaves_its_callers_random_numbers_and_threads_alone(data: Digits) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    trained(data, epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_training_moves_the_running_statistics(data: Digits) -> None:
    module = digits.train(cnn, {"channels": [4], "momentum": 0.2}, data, epochs=1)
    assert not module.training
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        assert norm.num_batches_tracked == 23
        assert norm.running_mean.abs().min() > 0
        assert (norm.running_var - 1).abs().min() > 1e-4


def test_shifts_move_an_image_by_a_pixel_at_most_and_lose_nothing_in_the_middle() -> None:
    image = torch.zeros(200, 1, 8, 8)
    image[:, 0, 3, 4] = 1
    shifted = digits._shifted(image, torch.Generator().manual_seed(0))
    assert torch.equal(shifted.sum((1, 2, 3)), torch.ones(200))
    places = {(int(row), int(column)) for _, _, row, column in shifted.nonzero()}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_accuracy_is_measured_in_eval_mode_and_keeps_the_mode(data: Digits) -> None:
    module = mlp()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    share = digits.accuracy(module, data.test_images, data.test_labels)
    assert share == (digits.predict(module, data.test_images) == data.test_labels).mean()
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (unet, {}, r"unet: gives \[2, 1, 8, 8\] for two images; expected a classifier, which gives \[2, 10\]"),
        (cnn, {"classes": 3}, r"cnn: gives \[2, 3\] for two images"),
        (cnn, {"in_channels": 3}, r"cnn: cannot be built for digits, \[N, 1, 8, 8\]: .*3 channels"),
        (cnn, {"widht": 3}, r"cnn: cannot be built .*unexpected keyword argument 'widht'; see --arch-arg"),
        (conv1d_tcn, {"kernel": 2}, r"kernel 2: expected an odd number"),
        (dict, {}, r"dict: cannot be built .*it returns dict, not a torch.nn.Module"),
    ],
)
def test_a_network_that_is_no_classifier_of_digits_is_refused(
    data: Digits, factory: Any, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(BnfoldError, match=message) as caught:
        digits.train(factory, arguments, data, epochs=1)
    assert "\n" not in str(caught.value)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BnfoldError, match=r"pip install 'bnfold\[train\]'"):
        digits.load()


def test_a_checkpoint_says_all_that_folding_needs(data: Digits, tmp_path: Path) -> None:
    module = mlp(channels=16)
    record = digits.training_record("models.mlp:mlp", {"channels": 16}, data, epochs=1, seed=3)
    file = tmp_path / "new" / "mlp.pt"
    digits.save(file, module, reached=0.5, record=record)
    assert [entry.name for entry in file.parent.iterdir()] == ["mlp.pt"]
    checkpoint = torch.load(file, weights_only=True)
    assert set(checkpoint) == {"state_dict", "accuracy", "training", "bnfold"}
    assert checkpoint["accuracy"] == 0.5
    assert checkpoint["training"] == record
    assert (record["arch"], record["epochs"], record["seed"], record["samples"]) == ("models.mlp:mlp", 1, 3, 1442)
    assert checkpoint["bnfold"] == {
        "arch_args": {"channels": 16},
        "inputs": ["1,8,8"],
        "labels": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "preprocessing": {
            "input": "x",
            "mode": "L",
            "height": 8,
            "width": 8,
            "scale": 1 / 255,
            "mean": [0.0],
            "std": [1.0],
        },
    }
    mlp(channels=16).load_state_dict(checkpoint["state_dict"])


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_says_so(
    data: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, stream: Any) -> None:
        stream.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    file = tmp_path / "mlp.pt"
    with pytest.raises(BnfoldError, match=r"mlp\.pt: cannot be written \(No space left on device\)"):
        digits.save(file, mlp(), reached=1.0, record=digits.training_record("models.mlp:mlp", {}, data))
    assert list(tmp_path.iterdir()) == []


def test_train_reaches_97_percent_with_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mlp.pt"
    done = subprocess.run(
        [sys.executable, "-m", "models.digits", "train", "--arch", "models.mlp:mlp", "--out", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["accuracy"] >= 0.97
    assert f"{checkpoint['accuracy']:.4f} of 355 held-out images" in done.stdout
    module = mlp(**checkpoint["bnfold"]["arch_args"])
    module.load_state_dict(checkpoint["state_dict"])
    assert digits.accuracy(module, *digits.held_out()) == checkpoint["accuracy"]


def command(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(digits.app, ["train", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_arch_args_reach_the_architecture_and_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "mlp.pt"
    code, _, errors = command(
        *("--arch", "models.mlp:mlp", "--out", str(file), "--epochs", "12", "--seed", "5"),
        *("--arch-arg", "channels=96", "--arch-arg", "placement=after", "--arch-arg", "eps=0.001"),
    )
    assert code == 0, errors
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["bnfold"]["arch_args"] == {"channels": 96, "placement": "after", "eps": 0.001}
    assert (checkpoint["training"]["epochs"], checkpoint["training"]["seed"]) == (12, 5)
    assert checkpoint["state_dict"]["classifier.weight"].shape == (10, 96)


def test_too_low_an_accuracy_is_exit_1_and_no_file(tmp_path: Path) -> None:
    file = tmp_path / "mlp.pt"
    code, out, errors = command(
        *("--arch", "models.mlp:mlp", "--arch-arg", "channels=2", "--epochs", "1", "--out", str(file))
    )
    assert code == 1
    assert "held-out images" in out
    assert errors.splitlines()[-1].endswith("is below 0.97, nothing was written; raise --epochs")
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--arch", "models.resnet:resnt"], "resnet"),
        (["--arch", "models.resnt:resnet"], "models.resnet"),
        (["--arch", "models.unet:unet"], "expected a classifier"),
        (["--arch", "models.mlp:mlp", "--arch-arg", "channels"], "channels"),
        (["--arch", "models.mlp:mlp", "--arch-arg", "chanels=3"], "chanels"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    code, out, errors = command(*arguments, "--out", str(tmp_path / "out.pt"))
    assert (code, out) == (2, "")
    assert len(errors.splitlines()) == 1
    assert expected in errors
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, errors = command("--arch", "models.mlp:mlp", "--out", str(tmp_path / "file" / "mlp.pt"))
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "choose another --out" in errors
