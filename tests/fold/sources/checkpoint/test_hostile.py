"""Checkpoints that are broken or made to harm: `bnfold fold` says one line, exits with 2 and leaves nothing behind."""

import io
import itertools
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fold.sources import silenced
from support import loadable
from support.commands import refused, run
from support.folding import randomise


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return randomise(loadable.plain(), seed=1).state_dict()


def refusal(tmp_path: Path, content: Any, *options: str) -> str:
    """How a fold refuses a file with this content, or the file that is there already."""
    if content is not None:
        torch.save(content, tmp_path / "m.pt")
    arch = ("--arch", "support.loadable:plain", "--input", "3,7,9")
    err = refused("fold", tmp_path / "m.pt", *arch, "--out", tmp_path / "r", *options)
    assert len(err) < 5000
    assert not (tmp_path / "r").exists()
    return err


def first_weight(state: dict[str, torch.Tensor]) -> str:
    return next(name for name, tensor in state.items() if tensor.ndim == 4)


def sparse(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_sparse()


def meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:TypedStorage:UserWarning")
def quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def complex_numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex64)


def small_integers(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor * 127).to(torch.int8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sparse, "is a sparse tensor; save it as tensor.to_dense()"),
        (meta, "is a meta tensor, which has no values"),
        (quantised, "is a quantised tensor; fold the float model that it was made from"),
        (complex_numbers, "is torch.complex64 in the checkpoint, expected floats"),
        (small_integers, "is torch.int8 in the checkpoint, expected floats"),
    ],
)
def test_tensors_that_are_no_arrays_of_floats(tmp_path, state, change, message) -> None:
    name = first_weight(state)
    changed = {**state, name: change(state[name])}
    assert f"{name} {message}" in refusal(tmp_path, changed)
    # Two sets of weights are compared before one is chosen.
    assert "choose with --key" in refusal(tmp_path, {"a": changed, "b": state})


def shared(container: Any, depth: int = 28) -> Any:
    """2^28 places in a few kilobytes."""
    for _ in range(depth):
        container = type(container)((container, container))
    return container


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_that_are_shared_are_walked_once(tmp_path, state, kind) -> None:
    torch.save({"state_dict": state, "deep": shared(kind())}, tmp_path / "m.pt")
    fold = ("fold", tmp_path / "m.pt", "--arch", "support.loadable:plain", "--input", "3,7,9", "--out", tmp_path / "r")
    assert run(*fold)[0]["verdict"]["equivalent"] is True


def pairs(depth: int) -> bytes:
    """Opcodes of a tuple of 2^depth places: each holds the next one twice."""
    return b")" + b"q\x00h\x00\x86" * depth


def long(number: int) -> bytes:
    """Opcodes of an integer."""
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


PRIME = 2**61 - 1
"""The hash of an integer is its remainder of this."""


def integers() -> Iterator[tuple[int, bytes]]:
    """Integers with one hash, and the opcodes that make them."""
    for number in range(300, 12_000):
        yield number * PRIME, long(number * PRIME)


def tuples() -> Iterator[tuple[tuple[int, int], bytes]]:
    """Pairs with one hash: the second number makes up for the first, as CPython mixes them (xxHash)."""
    first, second, start = 11400714785074694791, 14029467366897019727, 2870177450012600261
    made = 0
    for a in itertools.count():
        mixed = (start + a * second) % 2**64
        mixed = (mixed << 31 | mixed >> 33) * first % 2**64
        b = -mixed * pow(second, -1, 2**64) % 2**64
        if b < PRIME:  # an integer that is its own hash
            yield (a, b), long(a) + long(b) + b"\x86"
            made += 1
            if made == 9000:
                return


def complex_keys() -> Iterator[tuple[complex, bytes]]:
    """Complex numbers with one hash, which is a sum."""
    for b in range(1, 8000):
        a = 2**40 - 1_000_003 * b
        yield complex(a, b), b"c__builtin__\ncomplex\n" + struct.pack(">cdcd", b"G", a, b"G", b) + b"\x86R"


def with_none(keys: Iterable[tuple[Any, bytes]]) -> bytes:
    """Opcodes of pairs of a key and None."""
    return b"".join(opcodes + b"N" for _, opcodes in keys)


SET, ORDERED = b"c__builtin__\nset\n", b"ccollections\nOrderedDict\n)R"
HASHED = {
    "a key": b"}" + pairs(40) + b"Ns",
    "keys": b"}(" + pairs(40) + b"Nu",
    "a set": SET + b"](" + pairs(40) + b"e\x85R",
    "many sets": b"](" + (SET + b"]" + pairs(20) + b"a\x85R") * 100 + b"e",
    "a deep key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
    "an attribute": ORDERED + b"}" + pairs(40) + b"Nsb",
    "a storage": b"(X\x07\x00\x00\x00storage" + pairs(40) + b"tQ",
    "a list that grows in a tuple": b"]q\x01\x85q\x02h\x01(" + pairs(40) + b"e" + SET + b"h\x02R",
    "long integers": b"}(" + with_none(integers()) + b"u",
    "pairs of numbers": b"}(" + with_none(tuples()) + b"u",
    "complex numbers": b"}(" + with_none(complex_keys()) + b"u",
    "a set of pairs": SET + b"](" + b"".join(opcodes for _, opcodes in tuples()) + b"e\x85R",
    "pairs in an attribute": ORDERED
    + b"}q\x01("
    + with_none(itertools.islice(tuples(), 2000))
    + b"u"
    + b"bh\x01" * 20
    + b"b",
    "a size": b"}" + (b"ctorch\nSize\n](K\x01" + b"K\x01" * 20_000 + b"e\x85Rq\x01" + b"h\x01Ns" * 6000),
}


@pytest.mark.parametrize("case", HASHED)
def test_keys_are_not_hashed_without_end(tmp_path, case) -> None:
    content = b"\x80\x02" + HASHED[case] + b"."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", content)
        archive.writestr("m/version", "3\n")
    words = "has tuples, sets or long integers as keys, which take over 100,000,000 steps to hash or compare; save only"
    assert words in refusal(tmp_path, None)
    parts = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    before, keys = [pickle.dumps(part, protocol=2) for part in parts], pickle.dumps([], protocol=2)
    (tmp_path / "m.pt").write_bytes(b"".join([*before, content, keys]))
    assert words in refusal(tmp_path, None)
    (tmp_path / "m.pt").write_bytes(b"".join([*before, keys, content]))
    assert words in refusal(tmp_path, None)  # the keys of storages are looked up


@pytest.mark.parametrize("keys", [integers, tuples, complex_keys])
def test_such_keys_have_one_hash(keys) -> None:
    few = list(itertools.islice(keys(), 20))
    assert len({hash(key) for key, _ in few}) == 1
    assert pickle.loads(b"\x80\x02}(" + with_none(few) + b"u.") == dict.fromkeys(key for key, _ in few)


def text(content: bytes) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize("arguments", [b"\x86", text(b"latin1") + b"\x87"])
def test_texts_that_are_doubled_by_a_codec(tmp_path, arguments) -> None:
    """`hex` 40 times makes a million million bytes of one."""
    call = b"c_codecs\nencode\n"
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        doubled = text(b"a") + (text(b"hex") + arguments + b"R") * 40
        archive.writestr("m/data.pkl", b"\x80\x02" + call * 40 + doubled + b".")
        archive.writestr("m/version", "3\n")
    assert "encodes its texts by another codec than latin1" in refusal(tmp_path, None)


def test_bytes_and_a_few_tuples_as_keys_are_read(tmp_path, state) -> None:
    """Bytes are written as a call of a codec."""
    keys = {(number, -number): torch.Size([number]) for number in range(1000)}
    torch.save({"state_dict": state, "bytes": [b"abc", bytes(range(256))], "keys": keys}, tmp_path / "m.pt")
    fold = ("fold", tmp_path / "m.pt", "--arch", "support.loadable:plain", "--input", "3,7,9", "--out", tmp_path / "r")
    assert run(*fold)[0]["verdict"]["equivalent"] is True


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("case", ["keys", "a deep key"])
def test_nested_tuples_in_a_distributed_checkpoint(tmp_path, state, case) -> None:
    """In `.metadata`, and in the part that holds a tensor."""
    folder = tmp_path / "m"
    dcp.save({"weight": torch.zeros(3)}, checkpoint_id=str(folder), no_dist=True)
    fold = ("fold", folder, "--arch", "support.loadable:plain", "--input", "3,7,9", "--out", tmp_path / "r")
    words = "has tuples, sets or long integers as keys, which take over 100,000,000 steps to hash"
    good, (part,) = (folder / ".metadata").read_bytes(), folder.glob("*.distcp")
    (folder / ".metadata").write_bytes(b"\x80\x04" + HASHED[case] + b".")
    assert words in refused(*fold)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + HASHED[case] + b".")
        archive.writestr("m/version", "3\n")
    metadata = pickle.loads(good)
    next(iter(metadata.storage_data.values())).length = len(stream.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    part.write_bytes(stream.getvalue())
    assert words in refused(*fold)


@pytest.mark.parametrize("key", ["inputs", "arch_args", "labels"])
def test_what_a_file_says_of_itself_is_limited(tmp_path, state, key) -> None:
    content = {"state_dict": state, "bnfold": {key: shared(["a"])}}
    assert "has more than 100,000 values under 'bnfold'" in refusal(tmp_path, content)


def test_labels_are_a_list(tmp_path, state) -> None:
    content = {"state_dict": state, "bnfold": {"labels": 5}}
    assert "'labels' under 'bnfold' is no list; save a list of texts there" in refusal(tmp_path, content)


def test_a_damaged_archive(tmp_path, state) -> None:
    """The name of an entry in its directory is no UTF-8, which zipfile decodes."""
    torch.save(state, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    start = content.index(b"PK\x01\x02")
    flags = start + 8  # of the first entry; bit 11 says that its name is UTF-8
    content = content[:flags] + b"\x00\x08" + content[flags + 2 : start + 46] + b"\xff" + content[start + 47 :]
    (tmp_path / "m.pt").write_bytes(content)
    assert "m.pt: is not a PyTorch checkpoint" in refusal(tmp_path, None)


def test_a_program_without_values(tmp_path) -> None:
    with torch.device("meta"):
        module = loadable.plain().eval()
    with silenced():
        program = torch.export.export(module, (torch.randn(2, 3, 7, 9, device="meta"),))
        program.example_inputs = None
        torch.export.save(program, tmp_path / "m.pt2")
    err = refused("fold", tmp_path / "m.pt2", "--out", tmp_path / "r")
    assert "is a meta tensor, which has no values" in err


def test_a_type_is_not_called(tmp_path, state) -> None:
    class Text:
        """str() of shared lists would fill the memory."""

        def __reduce__(self) -> tuple:
            return str, (shared([], 20),)

    assert "is not a PyTorch checkpoint" in refusal(tmp_path, {"state_dict": state, "text": Text()})


def test_an_archive_that_inflates(tmp_path, state, monkeypatch) -> None:
    torch.save({**state, "huge": torch.zeros(1 << 20)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "m.pt", "w") as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr("fold.sources.checkpoint.limits.LEAST", 1 << 20)
    err = refusal(tmp_path, None)
    assert "m.pt: unpacks to 4," in err
    assert "to read it, set BNFOLD_MAX_UNPACKED_BYTES=" in err
    monkeypatch.setenv("BNFOLD_MAX_UNPACKED_BYTES", err.rpartition("=")[2].strip())
    assert "1 unexpected: huge" in refusal(tmp_path, None)
    monkeypatch.setenv("BNFOLD_MAX_UNPACKED_BYTES", "4 GB")
    assert "BNFOLD_MAX_UNPACKED_BYTES: is '4 GB', expected a number of bytes" in refusal(tmp_path, None)
    (tmp_path / "m.pt").rename(tmp_path / "m.pt2")
    monkeypatch.delenv("BNFOLD_MAX_UNPACKED_BYTES")
    assert "m.pt2: unpacks to 4," in refused("fold", tmp_path / "m.pt2", "--out", tmp_path / "r")


def test_a_tensor_of_a_million_millions(tmp_path, state) -> None:
    """One number, repeated by strides of 0; to compare two such would take hours."""
    huge = {**state, "huge": torch.zeros(1).expand(10**6, 10**6)}
    assert "unpacks to 4,000,000," in refusal(tmp_path, {"a": huge, "b": dict(huge)})


def test_names_of_any_length(tmp_path, state) -> None:
    long = "x" * 200_000
    assert "xxx… (200,000 characters)" in refusal(tmp_path, {**state, long: torch.zeros(3)})
    assert "is too long; expected at most 200" in refusal(tmp_path, state, "--name", "x" * 201)
    assert "File name too long" in refusal(tmp_path, state, "--name", long)
    for option in ("--labels", "--preprocessing"):
        assert "File name too long" in refusal(tmp_path, state, option, f"/tmp/{long}")
    err = refused("fold", tmp_path / f"{long}.pt", "--out", tmp_path / "r")
    assert "(200," in err
    assert "File name too long" in err
    err = refused("fold", tmp_path / "m.pt", "--arch", "support.loadable:plain", "--out", tmp_path / ("x" * 256))
    assert "File name too long" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to …"),
        RuntimeError("std::bad_alloc"),
    ],
)
@pytest.mark.parametrize("place", ["torch.load", "torch.export.export", "fold.convert.certify"])
def test_too_little_memory(tmp_path, state, monkeypatch, place, error) -> None:
    """As PyTorch says it under `ulimit -v`, while the file is read, exported and proven."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    torch.save(state, tmp_path / "m.pt")
    arch = ("--arch", "support.loadable:plain", "--input", "3,7,9")
    err = refused("fold", tmp_path / "m.pt", *arch, "--out", tmp_path / "r")
    assert err.startswith("bnfold: too little memory; give the process more (ulimit -v)")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".incoming")]


@pytest.mark.parametrize("command", [["serve", "."], ["fold", "m.onnx", "--out", "r"]])
def test_without_onnxruntime(tmp_path, command) -> None:
    (tmp_path / "m.onnx").touch()
    code = f"import sys; sys.modules['onnxruntime'] = None; from fold.cli import main; main({command})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    line = "bnfold: onnxruntime is not installed; install bnfold[cpu], or bnfold[gpu] for an NVIDIA GPU\n"
    assert done.stderr == line
