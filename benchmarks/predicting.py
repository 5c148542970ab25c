"""Measures `bnfold predict` over data sets: rows per second, as a share of the session's best rate on rows in memory.

    python -m benchmarks.predicting [--model resnet18] [--rows 1024] [--images 512] [--rounds 5]

Beside it, what people write themselves: a loop over ONNX Runtime's session, and a `DataLoader` loop over the original
PyTorch module. All read the same files, one with arrays and a folder of JPEGs, and write the class and its probability
of each row as Parquet. Loading a model counts for none of them. They take turns, and every answer is checked.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fold
from benchmarks.folding import machine, markdown, randomise
from benchmarks.serving import MODELS
from fold.convert import Target, convert
from fold.prediction import Choices, predict_files
from fold.runtime import cores
from fold.sources import Source

BATCH = 64
SIDE = 256
"""Of the JPEGs, before they are resized."""
CLOSE = 1e-3
"""Probabilities of PyTorch and of ONNX Runtime differ by less."""

Contestant = Callable[[Path, Path], None]
"""Reads a file or folder of data, and writes a Parquet file, or a folder of them."""


@dataclass(frozen=True)
class Rate:
    """Rows per second of a contestant, the median of all rounds, and its share of the session's rate in the same
    round: the median, the least and the largest."""

    data: str
    contestant: str
    rows_per_second: float
    share: float
    least: float
    most: float


class Rows(Dataset[torch.Tensor]):
    """What a `DataLoader` reads: rows of an `.npy`, or images of a folder."""

    def __init__(self, data: Path, shape: Sequence[int]) -> None:
        self._shape = shape
        self._files = sorted(data.iterdir()) if data.is_dir() else []
        self._array = None if self._files else np.load(data, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._files) if self._array is None else len(self._array)

    def __getitem__(self, row: int) -> torch.Tensor:
        if self._array is None:
            return torch.from_numpy(decoded(self._files[row], self._shape))
        return torch.from_numpy(np.array(self._array[row]))


def decoded(file: Path, shape: Sequence[int]) -> np.ndarray:
    """An image as the preprocessing says: its colours, resized, from 0 to 1, the channels first."""
    channels, height, width = shape
    with Image.open(file) as image:
        pixels = np.asarray(
            image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
        )
    return np.ascontiguousarray((pixels.reshape(height, width, channels) / 255).transpose(2, 0, 1), np.float32)


def write(scores: Sequence[np.ndarray], out: Path) -> None:
    """What all contestants write."""
    joined = np.concatenate(scores).astype(np.float64)
    weights = np.exp(joined - joined.max(axis=1, keepdims=True))
    columns = {
        "index": joined.argmax(axis=1),
        "probability": (weights / weights.sum(axis=1, keepdims=True)).max(axis=1),
    }
    pq.write_table(pa.table(columns), out, compression="zstd")


def plain_loop(graph: Path, shape: Sequence[int]) -> Contestant:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    [name] = [given.name for given in session.get_inputs()]

    def run(data: Path, out: Path) -> None:
        files = sorted(data.iterdir()) if data.is_dir() else None
        array = np.load(data, mmap_mode="r") if files is None else None
        scores = []
        for at in range(0, len(files or array), BATCH):  # type: ignore[arg-type]  # one of both is there
            if files is not None:
                batch = np.stack([decoded(file, shape) for file in files[at : at + BATCH]])
            else:
                assert array is not None
                batch = np.array(array[at : at + BATCH])
            scores.append(session.run(None, {name: batch})[0])
        write(scores, out)

    return run


def torch_loop(module: nn.Module, shape: Sequence[int]) -> Contestant:
    """With as many workers as there are cores where images are decoded, and none for rows that only have to be read."""

    def run(data: Path, out: Path) -> None:
        loader = DataLoader(Rows(data, shape), batch_size=BATCH, num_workers=cores() if data.is_dir() else 0)
        with torch.inference_mode():
            write([module(batch).numpy() for batch in loader], out)

    return run


def ours(model: fold.LoadedModel) -> Contestant:
    def run(data: Path, out: Path) -> None:
        predict_files(model, [str(data)], out, Choices(top_k=1))

    return run


def publish(model: str, folder: Path) -> tuple[nn.Module, Path, tuple[int, ...]]:
    """The module, its model directory, which takes images as well, and the shape of a row."""
    arch, shape = MODELS[model]
    module, _, factory = arch.partition(":")
    torch.manual_seed(0)
    net = randomise(getattr(__import__(module, fromlist=[factory]), factory)())
    torch.save(net.state_dict(), folder / "net.pt")
    how = {"input": "x", "mode": "L" if shape[0] == 1 else "RGB", "height": shape[1], "width": shape[2]}
    (folder / "preprocessing.json").write_text(json.dumps(how))
    target = Target(folder / "repository", "net", preprocessing=folder / "preprocessing.json")
    source = Source(folder / "net.pt", arch, (), [",".join(map(str, shape))])
    published = convert(source, target, samples=2, provider="cpu")
    if published.path is None:
        raise SystemExit(published.certificate.message)
    return net.eval(), published.path, shape


def write_data(folder: Path, shape: Sequence[int], rows: int, images: int) -> dict[str, Path]:
    """An array of random rows, and photographs of nothing: noise that JPEG can pack."""
    random = np.random.default_rng(0)
    np.save(folder / "rows.npy", random.standard_normal((rows, *shape), np.float32))
    (folder / "images").mkdir()
    for number in range(images):
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "images" / f"{number:05d}.jpg", quality=90)
    return {"rows": folder / "rows.npy", "images": folder / "images"}


def answers(out: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(sorted(out.glob("part-*.parquet")) if out.is_dir() else out)
    return table["index"].to_numpy(), table["probability"].to_numpy()


def seconds_of(contestant: Contestant, data: Path, out: Path, expected: Path | None) -> float:
    """The time of one run, whose answers are checked against those that were written first."""
    began = time.perf_counter()
    contestant(data, out)
    seconds = time.perf_counter() - began
    if expected is not None:
        (index, probability), (truth, exact) = answers(out), answers(expected)
        if not np.allclose(probability, exact, atol=CLOSE) or (index != truth)[exact > 0.5 + CLOSE].any():
            raise SystemExit(f"{out.name}: other answers than ONNX Runtime's")
    return seconds


def compete(
    name: str, data: Path, contestants: dict[str, Contestant], in_memory: Callable[[], object], rows: int, rounds: int
) -> list[Rate]:
    rates: dict[str, list[float]] = {contestant: [] for contestant in ("session", *contestants)}
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "expected.parquet"
        contestants["plain loop"](data, expected)
        in_memory()
        for turn in range(rounds):
            began = time.perf_counter()
            in_memory()
            rates["session"].append(rows / (time.perf_counter() - began))
            for contestant in list(contestants)[:: -1 if turn % 2 else 1]:
                out = Path(scratch) / contestant
                rates[contestant].append(rows / seconds_of(contestants[contestant], data, out, expected))
                shutil.rmtree(out) if out.is_dir() else out.unlink()
    found = []
    for contestant, own in rates.items():
        shares = sorted(mine / best for mine, best in zip(own, rates["session"], strict=True))
        found.append(Rate(name, contestant, statistics.median(own), statistics.median(shares), shares[0], shares[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet18")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/predicting.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    rates = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        module, path, shape = publish(arguments.model, folder)
        data = write_data(folder, shape, arguments.rows, arguments.images)
        model = fold.load(path, device="cpu")
        contestants = {
            "bnfold predict": ours(model),
            "plain loop": plain_loop(path / "model.onnx", shape),
            "DataLoader": torch_loop(module, shape),
        }
        for name, rows in (("rows", arguments.rows), ("images", arguments.images)):
            x = np.load(data["rows"])[:1].repeat(rows, axis=0)
            rates += compete(name, data[name], contestants, lambda x=x: model.run(x), rows, arguments.rounds)
    table = [
        [one.data, one.contestant, f"{one.rows_per_second:.0f}", f"{one.share:.2f}", f"{one.least:.2f}–{one.most:.2f}"]
        for one in rates
    ]
    print(machine(("torch", "onnxruntime", "pyarrow", "pillow", "numpy")))
    print()
    print(markdown(["data", "contestant", "rows/s", "of the session's", "least and most"], table))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(one) for one in rates], indent=2) + "\n")


if __name__ == "__main__":
    main()
