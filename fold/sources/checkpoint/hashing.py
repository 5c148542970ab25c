"""Limits what a pickle has hashed: a tuple that holds the next one twice, 40 deep, is 300 bytes and 2^40 places.

Python hashes a tuple place by place, and nothing interrupts it. So the opcodes are followed before PyTorch's unpickler
is, with the number of places instead of each value. An opcode or a value that it would refuse ends the scan. Opcodes
of later protocols are known too, which `.metadata` of a distributed checkpoint has. Codecs that double a text at each
call are refused on the way.
"""

import io
from pathlib import Path
from typing import BinaryIO

import torch

from fold.errors import BnfoldError
from fold.sources.quiet import silenced

MOST_HASHED = 100_000_000
"""Places that a file may have hashed: some seconds. A checkpoint has some ten for each tensor."""
MOST_NESTED = 10_000
"""Tuples inside each other that may be hashed: each takes some of the stack, of which there are 8 MB."""
TOO_MUCH = f"has nested tuples or long integers as keys, which take over {MOST_HASHED:,} steps to hash"
LONG_BYTES, LONG_PLACES = 8, 100_000
"""An integer of more bytes counts as so many places: such integers can be chosen to have one hash, and then each new
key of a dict is compared with all that it has."""
ZIP = b"PK\x03\x04"
LEGACY = 5
"""Pickles in a file without an archive: magic number, version, system, content, and the keys of the storages."""
CONTENT = 3
NUMBERS = {b"J": 4, b"K": 1, b"M": 2, b"G": 8}
"""BININT, BININT1, BININT2, BINFLOAT, and how many bytes each reads."""
TEXTS = {b"X": 4, b"\x8c": 1, b"\x8d": 8, b"U": 1, b"T": 4, b"C": 1, b"B": 4, b"\x8e": 8, b"\x8a": 1, b"\x8b": 4}
"""Texts, bytes and long integers, and the bytes of their length."""
LONGS = (b"\x8a", b"\x8b")
"""LONG1 and LONG4."""
GETS, PUTS = {b"h": 1, b"j": 4}, {b"q": 1, b"r": 4}
HEADS = {b"\x80": 1, b"\x95": 8}
"""PROTO and FRAME."""
PLAIN = (b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f")
"""None, True, False and what is empty: tuple, list, dict, set."""
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
CALLS = (b"R", b"\x81")
"""REDUCE and NEWOBJ: a function and its arguments; set and OrderedDict hash them."""
LONGEST_WORD = 100
ENCODE = b"_codecs\nencode\n"
"""How pickle writes bytes: as a call of this on a text of Latin-1. Other codecs may double what they are given."""
LATIN = b"latin1"


class _RefusedError(Exception):
    """The reason for a refusal, part of one line."""


class _Value:
    """Places of a value that is unpickled, how deep tuples are nested in it, and whether it is inside another.

    `word` is a short text or the name of a function; a pair has that of its second value.
    """

    def __init__(self, word: bytes = b"", places: int = 1) -> None:
        self.places, self.depth, self.held, self.word = places, 0, False, word

    def add(self, values: list["_Value"]) -> None:
        for value in values:
            value.held = True
            self.places = min(self.places + value.places, MOST_HASHED + 1)
            self.depth = max(self.depth, value.depth + 1)


class _Scan:
    """The unpickler's stack and memo. `hashed` counts all places that it would hash."""

    def __init__(self) -> None:
        self.hashed = 0

    def run(self, file: BinaryIO) -> _Value:
        """Follow one pickle; returns what it holds. Raises any error for what is none."""
        self._stack: list[_Value] = []
        self._outer: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        while (opcode := file.read(1)) != b".":
            if not self._push(opcode, file):
                self._combine(opcode)
        return self._stack.pop()

    def hash(self, values: list[_Value]) -> None:
        self.hashed += sum(value.places for value in values)
        if self.hashed > MOST_HASHED or any(value.depth > MOST_NESTED for value in values):
            raise _RefusedError(TOO_MUCH)

    def _push(self, opcode: bytes, file: BinaryIO) -> bool:
        """Opcodes that read from the file; False for any other. As `torch._weights_only_unpickler` does it."""
        if opcode in GETS:
            self._stack.append(self._memo[int.from_bytes(file.read(GETS[opcode]), "little")])
            return True
        if opcode in PUTS:
            self._memo[int.from_bytes(file.read(PUTS[opcode]), "little")] = self._stack[-1]
            return True
        if opcode == b"\x94":  # MEMOIZE
            self._memo[len(self._memo)] = self._stack[-1]
            return True
        if opcode in HEADS:
            file.read(HEADS[opcode])
            return True
        word, places = b"", 1
        if opcode in NUMBERS:
            file.read(NUMBERS[opcode])
        elif opcode in TEXTS:
            word = file.read(int.from_bytes(file.read(TEXTS[opcode]), "little"))
            places = LONG_PLACES if opcode in LONGS and len(word) > LONG_BYTES else 1
        elif opcode == b"c":  # GLOBAL, a module and a name
            word = file.readline() + file.readline()
        elif opcode not in PLAIN:
            return False
        self._stack.append(_Value(word if len(word) < LONGEST_WORD else b"", places))
        return True

    def _combine(self, opcode: bytes) -> None:
        """Opcodes that change the stack or values on it."""
        stack = self._stack
        # 1. Tuples.
        if opcode == b"(":  # MARK
            self._outer.append(stack)
            self._stack = []
        elif opcode == b"t":
            self._tuple(self._since_mark())
        elif opcode in TUPLES:
            self._tuple([stack.pop() for _ in range(TUPLES[opcode])][::-1])
        # 2. What changes the value below: APPEND, APPENDS, SETITEM, SETITEMS, BUILD.
        elif opcode in (b"a", b"e"):
            self._change([stack.pop()] if opcode == b"a" else self._since_mark(), [])
        elif opcode == b"\x90":  # ADDITEMS, of a set
            values = self._since_mark()
            self._change(values, values)
        elif opcode in (b"s", b"u"):
            values = [stack.pop(), stack.pop()][::-1] if opcode == b"s" else self._since_mark()
            self._change(values, values[::2])
        elif opcode == b"b":
            state = stack.pop()
            self.hash([state])
            stack[-1].add([state])
        # 3. STACK_GLOBAL; calls; and BINPERSID, which looks a storage up.
        elif opcode == b"\x93":
            stack.pop()
            stack[-1] = _Value()
        elif opcode in CALLS:
            arguments, function = stack.pop(), stack.pop()
            self.hash([arguments])
            if function.word == ENCODE and arguments.word != LATIN:
                raise _RefusedError("encodes its texts by another codec than latin1")
            self._tuple([arguments])  # the result may be a torch.Size of them
        elif opcode == b"Q":
            self.hash([stack.pop()])
            stack.append(_Value())
        else:
            raise ValueError(opcode)

    def _since_mark(self) -> list[_Value]:
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _tuple(self, values: list[_Value]) -> None:
        made = _Value(values[1].word if len(values) == 2 else b"")
        made.add(values)
        self._stack.append(made)

    def _change(self, values: list[_Value], keys: list[_Value]) -> None:
        container = self._stack[-1]
        if container.held:  # places of what holds it were counted without these
            self.hash(values)
        container.add(values)
        self.hash(keys)


def refuse_costly_keys(path: Path, file: BinaryIO) -> None:
    """Raise `BnfoldError` for a file of `torch.save` in which more has to be hashed than the limit.

    A file that cannot be read passes; PyTorch's reader says what is wrong. `file` is left at its start.
    """
    scan = _Scan()
    try:
        with silenced():
            archive = file.read(len(ZIP)) == ZIP
            file.seek(0)
            if archive:
                scan.run(io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl")))
            for number in range(0 if archive else LEGACY):
                value = scan.run(file)
                if number != CONTENT:
                    scan.hash([value])
    except _RefusedError as error:
        raise BnfoldError(f"{path}: {error}; save only the weights: torch.save(model.state_dict(), FILE)") from error
    except Exception:  # a foreign or damaged file raises many types
        pass
    file.seek(0)


def refuse_costly_metadata(path: Path, file: BinaryIO) -> None:
    """Raise `BnfoldError` for a pickle with more values than the limit; those that are shared count each time.

    Raises any error for what is no pickle. `file` is left at its start.
    """
    scan = _Scan()
    try:
        scan.hash([scan.run(file)])
    except _RefusedError as error:
        raise BnfoldError(f"{path}: {error}; save the checkpoint again") from error
    file.seek(0)
