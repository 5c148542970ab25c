"""Limits what a pickle has hashed: a tuple that holds the next one twice, 40 deep, is 300 bytes and 2^40 places.

Python hashes a tuple place by place, and nothing interrupts it. So the opcodes are followed before PyTorch's unpickler
is, with the number of places instead of each value. An opcode or a value that it would refuse ends the scan. Opcodes
of later protocols are known too, which `.metadata` of a distributed checkpoint has. Codecs that double a text at each
call are refused on the way.

Keys can be chosen to have one hash; then each new one is compared with all that a dict has. What can: tuples, sets and
complex numbers of two numbers or more, because the second one can make up for the first, and integers of more bytes
than a hash has. Texts cannot, because Python hashes them with a secret, and of one number a few share a hash at most.
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
TOO_MUCH = f"has tuples, sets or long integers as keys, which take over {MOST_HASHED:,} steps to hash or compare"
LONG_BYTES = 8
CHOSEN = 2
"""So many numbers in one key can be chosen so that it has the hash of another key."""
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
ENCODE = b"\n_codecs\nencode\n"
"""How pickle writes bytes: as a call of this on a text of Latin-1. Other codecs may double what they are given."""
LATIN = b"latin1"
COLLECTIONS = (b"\nset\n", b"\nfrozenset\n", b"\nOrderedDict\n", b"\nCounter\n")
"""Ends of the names of functions that hash what their argument holds."""
DTYPE, DTYPE_FLAGS = b"\ndtype\n", 2
"""numpy's, and how many Booleans it takes beside a name; they are no numbers of a scalar of that type."""
COMPLEX = (b"c8", b"c16")
"""Names of numpy's complex types."""


class _RefusedError(Exception):
    """The reason for a refusal, part of one line."""


class _Value:
    """Places of a value that is unpickled, how deep tuples are nested in it, and whether it is inside another.

    `word` is a short text or the name of a function; a pair has that of its second value. `numbers` counts those in
    the value, `chosen` the values in it whose hash can be chosen, `keys` those of them that are keys.
    """

    def __init__(self, word: bytes = b"", places: int = 1, numbers: int = 0) -> None:
        self.places, self.depth, self.held = places, 0, False
        self.word = word if len(word) < LONGEST_WORD else b""
        self.numbers, self.chosen, self.keys = numbers, 0, 0

    def add(self, values: list["_Value"]) -> None:
        for value in values:
            value.held = True
            self.places = min(self.places + value.places, MOST_HASHED + 1)
            self.depth = max(self.depth, value.depth + 1)
            self.numbers = min(self.numbers + value.numbers, MOST_HASHED)
            self.chosen = min(self.chosen + value.chosen + value.can_be_chosen, MOST_HASHED)
            self.keys = min(self.keys + value.keys, MOST_HASHED)

    @property
    def can_be_chosen(self) -> bool:
        return self.numbers >= CHOSEN


def _text(opcode: bytes, content: bytes) -> _Value:
    """A text, bytes, or an integer of any length."""
    if opcode not in LONGS:
        return _Value(content, numbers=CHOSEN if content in COMPLEX else 0)
    places = max(1, -(-len(content) // LONG_BYTES))
    return _Value(places=places, numbers=1 if places == 1 else CHOSEN)


class _Scan:
    """The unpickler's stack and memo. `hashed` counts all places that it would hash or compare, `storages` those whose
    keys may have one hash."""

    def __init__(self) -> None:
        self.hashed = self.storages = 0

    def run(self, file: BinaryIO) -> _Value:
        """Follow one pickle; returns what it holds. Raises any error for what is none."""
        self._stack: list[_Value] = []
        self._outer: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        while (opcode := file.read(1)) != b".":
            if not self._push(opcode, file):
                self._combine(opcode)
        return self._stack.pop()

    def hash(self, values: list[_Value], among: int = 0) -> None:
        """Count that values are hashed, and compared with `among` others."""
        self.hashed += sum(value.places for value in values) * (1 + among)
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
        if opcode in NUMBERS:
            file.read(NUMBERS[opcode])
            value = _Value(numbers=1)
        elif opcode in TEXTS:
            value = _text(opcode, file.read(int.from_bytes(file.read(TEXTS[opcode]), "little")))
        elif opcode == b"c":  # GLOBAL, a module and a name
            value = _Value(b"\n" + file.readline() + file.readline())
        elif opcode in PLAIN:
            value = _Value(numbers=1)
        else:
            return False
        self._stack.append(value)
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
            state, numbers = stack.pop(), stack[-1].numbers
            self.hash([state], among=state.keys)
            stack[-1].add([state])
            stack[-1].numbers = numbers  # an object with a state has no hash, or one of its address
        # 3. STACK_GLOBAL; calls; and BINPERSID, which looks a storage up.
        elif opcode == b"\x93":
            name, module = stack.pop(), stack.pop()
            stack.append(_Value(b"\n%b\n%b\n" % (module.word, name.word)))
        elif opcode in CALLS:
            arguments, function = stack.pop(), stack.pop()
            self._call(function.word, arguments)
        elif opcode == b"Q":
            key = stack.pop()
            self.hash([key], among=self.storages if key.chosen else 0)
            self.storages += key.chosen > 0
            stack.append(_Value())
        else:
            raise ValueError(opcode)

    def _call(self, function: bytes, arguments: _Value) -> None:
        self.hash([arguments], among=arguments.chosen if function.endswith(COLLECTIONS) else 0)
        if function == ENCODE and arguments.word != LATIN:
            raise _RefusedError("encodes its texts by another codec than latin1")
        self._tuple([arguments])  # the result may be a torch.Size of them
        if function.endswith(DTYPE):
            self._stack[-1].numbers -= DTYPE_FLAGS

    def _since_mark(self) -> list[_Value]:
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _tuple(self, values: list[_Value]) -> None:
        made = _Value(values[1].word if len(values) == 2 else b"")
        made.add(values)
        self._stack.append(made)

    def _change(self, values: list[_Value], keys: list[_Value]) -> None:
        container = self._stack[-1]
        container.add(values)
        if container.held:  # what holds it was counted without these
            self.hash(values, among=container.chosen)
        for key in keys:
            others = MOST_HASHED if container.held else container.keys
            self.hash([key], among=others * (1 + key.chosen) if key.can_be_chosen else 0)
            container.keys += key.can_be_chosen


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
                    scan.hash([value], among=scan.storages if value.chosen else 0)
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
