"""The example data set, scikit-learn's handwritten digits, and the training of classifiers on it.

    python -m models.digits train --arch models.resnet:resnet --out resnet.pt

1,797 images of 8x8 pixels are few enough for a training in seconds, and real: BatchNorm's running statistics are
learnt, not random. The checkpoint says how it was made, and how an image becomes the network's input.
"""

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional

from fold.errors import BnfoldError
from fold.sources.architecture.build import parse_arch_args
from fold.sources.architecture.factory import load_architecture

CLASSES = 10
SIZE = 8
HELD_OUT_EVERY = 5
LEAST_ACCURACY = 0.97
EPOCHS = 30
BATCH_SIZE = 64
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
SHIFT = 1
"""The largest shift of an image in training, in pixels."""


@dataclass(frozen=True)
class Digits:
    """Images are float32 [N, 1, 8, 8] with pixels from 0 to 1; labels are int64 [N], from 0 to 9."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load() -> Digits:
    """The data set, split into 1,442 images to train on and 355 held out.

    Every fifth image of each digit is held out, in the order of the data set: the same ones on every machine and with
    every version of every library. Raises `BnfoldError` if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  # only who trains needs scikit-learn
    except ImportError as error:
        raise BnfoldError("the digits need scikit-learn; pip install 'bnfold[train]'") from error
    pixels, target = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, SIZE, SIZE)
    labels = target.astype(np.int64)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for digit in range(CLASSES):
        held_out[np.flatnonzero(labels == digit)[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    return Digits(images[~held_out], labels[~held_out], images[held_out], labels[held_out])


def held_out() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The held-out images and labels, which no training uses."""
    digits = load()
    return digits.test_images, digits.test_labels


def predict(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of the largest logit for each image, int64 [N], in eval mode; the module's own mode stays as it is."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            logits: Tensor = module(torch.from_numpy(images))
        return logits.argmax(1).numpy()
    finally:
        module.train(was_training)


def accuracy(module: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The share of images, from 0 to 1, that `predict` gets right."""
    return float((predict(module, images) == labels).mean())


def train(
    factory: Callable[..., nn.Module],
    arch_args: Mapping[str, object],
    digits: Digits,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    console: Console | None = None,
) -> nn.Module:
    """Build a classifier with `factory(**arch_args)` and train it; it comes back in eval mode.

    The seed decides initial weights, order and shifts, so one machine gives one result. The progress bar goes to
    `console`, if there is one. Raises `BnfoldError` if the factory refuses its arguments, or builds a network that does
    not take [N, 1, 8, 8] to [N, 10].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _build(factory, arch_args)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    batches = -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * batches, pct_start=0.2
    )
    module.train()
    with _one_thread(), _progress(console) as progress:
        task = progress.add_task("training", total=epochs, loss="")
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(images), generator=generator).tensor_split(batches):
                logits = module(_shifted(images[batch], generator))
                loss = functional.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item()
            progress.update(task, advance=1, loss=f", loss {total / batches:.3f}")
    return module.eval()


def training_record(
    arch: str, arch_args: Mapping[str, object], digits: Digits, *, epochs: int = EPOCHS, seed: int = 0
) -> dict[str, object]:
    """Everything that decides the result of a training. Equal records give equal weights on one machine."""
    return {
        "arch": arch,
        "arch_args": dict(arch_args),
        "epochs": epochs,
        "seed": seed,
        "samples": len(digits.train_labels),
        "held_out": len(digits.test_labels),
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "label_smoothing": LABEL_SMOOTHING,
        "shift": SHIFT,
        "torch": str(torch.__version__),
    }


def save(file: Path, module: nn.Module, *, reached: float, record: Mapping[str, object]) -> None:
    """Write the checkpoint, whole or not at all; `torch.load` reads it back with `weights_only=True`.

    `reached` is the accuracy on the held-out images and `record` a `training_record`. The entry `bnfold` has defaults
    for `bnfold fold`: the arguments of the architecture, the shape of an input, the labels and the preprocessing.
    Raises `BnfoldError` if the file cannot be written.
    """
    checkpoint = {
        "state_dict": module.state_dict(),
        "accuracy": reached,
        "training": dict(record),
        "bnfold": {
            "arch_args": record["arch_args"],
            "inputs": [f"1,{SIZE},{SIZE}"],
            "labels": [str(digit) for digit in range(CLASSES)],
            "preprocessing": {
                "input": next(iter(inspect.signature(module.forward).parameters)),
                "mode": "L",
                "height": SIZE,
                "width": SIZE,
                "scale": 1 / 255,
                "mean": [0.0],
                "std": [1.0],
            },
        },
    }
    _make_folder(file)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            torch.save(checkpoint, stream)
        partial.replace(file)
    except OSError as error:
        raise BnfoldError(f"{file}: cannot be written ({error.strerror}); choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BnfoldError(f"{file.parent}: cannot be created ({error.strerror}); choose another --out") from error


def _build(factory: Callable[..., nn.Module], arch_args: Mapping[str, object]) -> nn.Module:
    name = getattr(factory, "__name__", str(factory))
    try:
        module = factory(**arch_args)
        if not isinstance(module, nn.Module):
            raise TypeError(f"it returns {type(module).__name__}, not a torch.nn.Module")
        with torch.inference_mode():
            shape = tuple(module.eval()(torch.zeros(2, 1, SIZE, SIZE)).shape)
    except (TypeError, ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise BnfoldError(
            f"{name}: cannot be built for digits, [N, 1, {SIZE}, {SIZE}]: {text}; see --arch-arg"
        ) from error
    if shape != (2, CLASSES):
        raise BnfoldError(
            f"{name}: gives {list(shape)} for two images; expected a classifier, which gives [2, {CLASSES}]"
        )
    return module


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread. Networks this small gain little from a second one. On a busy machine, waiting for it costs
    minutes, and the result would depend on the number of cores, because sums are split differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to `SHIFT` pixels in both directions; zeros fill the gap."""
    count = len(images)
    padded = functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    offsets = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = offsets + torch.arange(SIZE)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def _progress(console: Console | None) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs{task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console or Console(quiet=True), disable=console is None)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """Train classifiers on scikit-learn's digits, the example data set of bnfold."""


@app.command("train")
def _train(
    arch: Annotated[str, typer.Option(help="The network, as module:callable, for example models.resnet:resnet.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.", dir_okay=False)],
    arch_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the callable; may be repeated.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = EPOCHS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of initial weights, order and shifts.")] = 0,
) -> None:
    """Train one classifier and write its checkpoint.

    Exit 1 if fewer than 97 % of the held-out images are recognised (nothing is written then), 2 for bad input.
    """
    try:
        factory = load_architecture(arch).make
        arch_args = parse_arch_args(arch_arg or [])
        digits = load()
        _make_folder(out)  # before the training, so that no time is lost if the file cannot be written
        started = time.perf_counter()
        module = train(factory, arch_args, digits, epochs=epochs, seed=seed, console=Console(stderr=True))
        seconds = time.perf_counter() - started
        reached = accuracy(module, digits.test_images, digits.test_labels)
        print(
            f"{arch}: {reached:.4f} of {len(digits.test_labels)} held-out images are right, {seconds:.1f} s of training"
        )
        if reached < LEAST_ACCURACY:
            print(f"{reached:.4f} is below {LEAST_ACCURACY}, nothing was written; raise --epochs", file=sys.stderr)
            raise typer.Exit(1)
        save(out, module, reached=reached, record=training_record(arch, arch_args, digits, epochs=epochs, seed=seed))
        print(f"written to {out}")
    except BnfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
