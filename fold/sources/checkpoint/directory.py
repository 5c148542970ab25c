"""Looks through a directory that a framework wrote and finds the weights in it.

Hugging Face, timm and Accelerate write `model.safetensors` or `pytorch_model.bin`, or an index and its parts; Trainer
writes that into `checkpoint-N/`, DeepSpeed writes `TAG/mp_rank_00_model_states.pt` and the tag into `latest`, and
PyTorch's distributed checkpoints (DCP, FSDP, Accelerate, Lightning) are `.metadata` and `*.distcp`.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fold.artifact import holds_version, published_models
from fold.errors import BnfoldError, short
from fold.sources.checkpoint.index import SUFFIX, read_index

CONFIG, DCP = "config.json", ".metadata"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt2", ".onnx")
ASIDE = re.compile(
    r"optim|sched|scaler|rng|random_states|sampler|training_args|custom_checkpoint|dl_state|meta\.pt$|tokenizer"
)
"""Names of what lies beside weights: states of optimisers, schedulers, data loaders and random generators."""
PART = re.compile(r"(.+)-(\d+)-of-(\d+)(\.[a-z]+)")
RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
PARTITIONED = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
POINTER = b"version https://git-lfs"
DEPTH, MOST_ENTRIES, LISTED = 3, 10_000, 8


@dataclass(frozen=True)
class Found:
    """The weights of a SOURCE. `path` is a file, an index of parts, or the directory of a distributed checkpoint;
    `files` are those to be read, and `config` describes the model, if there is such a file."""

    path: Path
    files: tuple[Path, ...]
    config: Path | None = None
    notes: tuple[str, ...] = ()


def find(source: Path) -> Found:
    """What to read of a file or a directory. Only an index is read, and the first bytes of other files.

    Raises `BnfoldError` if there is nothing, if there are several checkpoints, for a file that is only a part, and for
    one that was not downloaded.
    """
    found = _find(source)
    for file in found.files:
        _refuse_pointer(file)
    return found


def _find(source: Path) -> Found:
    if source.is_dir():
        return _in_directory(source)
    if not source.is_file():
        raise BnfoldError(f"{source}: no such file or directory; expected a checkpoint, a .pt2 or an .onnx")
    if source.name == DCP:
        return _found(source.parent, source.parent)
    _refuse_part(source)
    found = _found(source, source.parent)
    return found if source.name.endswith(SUFFIX) else replace(found, notes=())


def _in_directory(folder: Path) -> Found:
    _refuse_published(folder)
    paths, aside = _search(folder, DEPTH, [MOST_ENTRIES])
    if not paths:
        raise BnfoldError(
            f"{folder}: holds no weights; expected model.safetensors, pytorch_model.bin, an index of parts, a "
            "distributed checkpoint, or a single checkpoint of another name"
        )
    if len(paths) > 1:
        names = [str(path.relative_to(folder)) for path in paths]
        more = ", …" if len(names) > LISTED else ""
        raise BnfoldError(f"{folder}: holds several checkpoints; give one: {', '.join(names[:LISTED])}{more}")
    return _found(paths[0], folder, aside)


def _refuse_published(folder: Path) -> None:
    is_version = (folder / "manifest.json").is_file() and (folder / "model.onnx").is_file()
    if is_version or holds_version(folder):
        raise BnfoldError(f"{folder}: is a published model; give the checkpoint that it was folded from")
    if published_models(folder):
        raise BnfoldError(f"{folder}: is a repository of published models; give the checkpoint of one")


def _refuse_pointer(file: Path) -> None:
    """Raise `BnfoldError` for the text that Git LFS leaves in the place of a file that it did not download."""
    try:
        with file.open("rb") as stream:
            head = stream.read(len(POINTER))
    except OSError:
        return  # reading it raises the error with the reason
    if head == POINTER:
        raise BnfoldError(f"{file}: is a pointer of Git LFS, and the file itself was not downloaded; run git lfs pull")


def _found(path: Path, root: Path, aside: Iterable[str] = ()) -> Found:
    """`path` with the files that belong to it, and a note on what was found."""
    what, files = "", [path]
    if path.is_dir():
        files = [path / DCP, *sorted(path.glob("*.distcp"))]
        what = f"a distributed checkpoint of {len(files) - 1} file{'s' * (len(files) != 2)}"
    elif path.name.endswith(SUFFIX):
        files = [path, *sorted(set(read_index(path).values()))]
        what = f"{len(files) - 1} part{'s' * (len(files) != 2)}"
    folder = path if path.is_dir() else path.parent
    config = next((one / CONFIG for one in (folder, root) if (one / CONFIG).is_file()), None)
    name = "" if path == root else str(path.relative_to(root))
    left = f"; left aside {', '.join(aside)}" if aside else ""
    told = " with ".join(filter(None, (name, what)))
    return Found(path, tuple(files), config, (f"found {told}{left}",))


def _search(folder: Path, depth: int, budget: list[int]) -> tuple[list[Path], list[str]]:
    """The checkpoints in a folder, else those in its folders; and the names of duplicates that are left aside."""
    # 1. List it.
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    budget[0] -= len(entries)
    if budget[0] < 0:
        raise BnfoldError(f"{folder}: has more than {MOST_ENTRIES:,} files; give the checkpoint's own directory")
    names = [entry.name for entry in entries if entry.is_file()]
    # 2. Take what it holds itself.
    if DCP in names and any(name.endswith(".distcp") for name in names):
        return [folder], []
    found, aside = _of_files(folder, [name for name in names if not ASIDE.search(name)])
    if found or not depth:
        return found, aside
    # 3. Look into the folder that DeepSpeed calls the latest, else into all.
    folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if "latest" in names and (tag := _latest(folder)) in folders:
        return _search(folder / tag, depth - 1, budget)
    inner = [_search(folder / name, depth - 1, budget) for name in folders if not ASIDE.search(name)]
    return [path for paths, _ in inner for path in paths], [name for _, names in inner for name in names]


def _latest(folder: Path) -> str:
    with (folder / "latest").open("rb") as stream:
        return stream.read(256).decode("utf-8", "replace").strip()


def _of_files(folder: Path, names: list[str]) -> tuple[list[Path], list[str]]:
    """The checkpoints among the files of one folder. Where a model is there twice, as safetensors and as a pickle,
    safetensors are taken, as Hugging Face does; the names of the others are returned too."""
    ranks = [name for name in names if RANK.fullmatch(name) or PARTITIONED.fullmatch(name)]
    if ranks:
        _refuse_part(folder / ranks[0])
        return [folder / ranks[0]], []
    indexed = [name for name in names if name.endswith(SUFFIX) and name.removesuffix(SUFFIX).endswith(WEIGHTS)]
    single = [name for name in names if name.endswith(WEIGHTS)]
    parts = [name for name in single if _is_part(name)]
    whole = [name for name in single if name not in parts]
    if parts and not indexed and not whole:
        _refuse_part(folder / parts[0])
    best: dict[str, str] = {}
    for name in sorted([*indexed, *whole], key=lambda name: (".safetensors" not in name, name.endswith(SUFFIX))):
        best.setdefault(_model(name), name)
    aside = [name for name in (*indexed, *whole) if name not in best.values()]
    return [folder / name for name in best.values()], aside


def _model(name: str) -> str:
    """What a file's name says of the model: the same for `model.safetensors` and `pytorch_model.bin.index.json`."""
    plain = name.removesuffix(SUFFIX)
    for suffix in (".safetensors", ".bin"):
        if plain.endswith(suffix):
            return plain.removesuffix(suffix).replace("pytorch_model", "model")
    return name


def _is_part(name: str) -> bool:
    part = PART.fullmatch(name)
    return part is not None and int(part[3]) > 1


def _refuse_part(path: Path) -> None:
    """Raise `BnfoldError` for a file that holds only a part of the weights."""
    if _is_part(path.name):
        part = PART.fullmatch(path.name)
        assert part is not None
        index = path.with_name(f"{part[1]}{part[4]}{SUFFIX}")
        do = f"give {index} or its directory" if index.is_file() else f"the index {index.name} is missing beside it"
        raise BnfoldError(f"{short(str(path))}: is one of {int(part[3])} parts of a checkpoint; {do}")
    if path.suffix == ".distcp":
        raise BnfoldError(f"{path}: is one file of a distributed checkpoint; give its directory")
    if PARTITIONED.fullmatch(path.name):
        raise BnfoldError(
            f"{path}: is one part of weights that DeepSpeed partitioned (ZeRO stage 3); merge them with the "
            "zero_to_fp32.py that lies beside the checkpoint, and fold its result"
        )
    if RANK.fullmatch(path.name):
        ranks = [other.name for other in path.parent.iterdir() if RANK.fullmatch(other.name)]
        if len(ranks) > 1:
            raise BnfoldError(f"{path}: is one of {len(ranks)} parts of a tensor-parallel model; merge them first")
    if path.name == CONFIG:
        raise BnfoldError(f"{path}: describes a model and holds no weights; give its directory")
