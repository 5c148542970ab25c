"""Measures a certificate: seconds and peak memory, for the digits CNN and for a network of ResNet-50's size.

    python -m benchmarks.certifying [--samples 8]

Each model is first folded into a model directory. Then `certify` is measured in a process of its own, from that
directory alone, as in `bnfold verify`; this includes the export of the unfolded graph. Memory is the resident memory
above that of the process after its imports and the certificate of a small model.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.folding import machine, markdown, randomise
from benchmarks.scaling import resident
from fold.artifact import ModelVersion, read_version
from fold.convert import Target, convert
from fold.proof import certify
from fold.sources import Source


@dataclass(frozen=True)
class Cost:
    """Size and time of one certificate: `megabytes` of model.onnx, `memory` as a multiple of that size."""

    model: str
    samples: int
    megabytes: float
    seconds: float
    memory: float
    algebra: float
    bound: float | None
    equivalent: bool


MODELS = {
    "digits CNN": ("models.cnn:cnn", "1,8,8"),
    "ResNet-50": ("benchmarks.networks:resnet50", "3,224,224"),
}


def published(model: str, folder: Path) -> Path:
    """Fold a model with random statistics into `folder`; returns its model directory."""
    arch, shape = MODELS[model]
    module, _, factory = arch.partition(":")
    torch.manual_seed(0)
    net = randomise(getattr(__import__(module, fromlist=[factory]), factory)())
    checkpoint = folder / "net.pt"
    torch.save(net.state_dict(), checkpoint)
    conversion = convert(
        Source(checkpoint, arch=arch, inputs=(shape,)), Target(folder / "repository", "net"), samples=1, provider="cpu"
    )
    if conversion.path is None:
        raise SystemExit(f"{model}: {conversion.certificate.message}")
    return conversion.path


def cost(model: str, path: Path, warm: Path, samples: int) -> Cost:
    """Certify in this process. It must be new, because the peak of memory only grows."""
    certify(read_version(warm), samples=2, provider="cpu")
    before = resident("VmRSS")
    started = time.perf_counter()
    version: ModelVersion = read_version(path)
    made = certify(version, samples=samples, provider="cpu")
    seconds = time.perf_counter() - started
    size = version.model_file.stat().st_size
    peak = resident("VmHWM") - before
    bound = max((o.bound for o in made.rounding.outputs if o.bound is not None), default=None)
    return Cost(model, samples, size / 1e6, seconds, peak / size, made.algebra.worst.difference, bound, bool(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/certifying.json"))
    arguments = parser.parse_args()
    costs = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for index, model in enumerate(MODELS):
            folder = Path(scratch) / str(index)
            folder.mkdir()
            paths[model] = published(model, folder)
        for model, path in paths.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                costs.append(pool.submit(cost, model, path, paths["digits CNN"], arguments.samples).result())
    rows = [
        [c.model, str(c.samples), f"{c.megabytes:.1f}", f"{c.seconds:.1f}", f"{c.memory:.1f}", f"{c.algebra:.1e}"]
        for c in costs
    ]
    print(machine(("torch", "onnx", "onnx-ir", "onnxruntime", "numpy")))
    print()
    print(markdown(["model", "samples", "MB", "seconds", "memory / model", "A: difference"], rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n")
    if not all(c.equivalent for c in costs):
        raise SystemExit("not every model was certified")


if __name__ == "__main__":
    main()
