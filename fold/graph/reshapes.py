"""Which dimensions of a tensor become which of its reshaped form: followed, never guessed from equal sizes."""

import math
from dataclasses import dataclass, field

from fold.graph.reading import Dims


@dataclass(frozen=True)
class Block:
    """Dimensions `old` of a tensor that become the dimensions `new` of another, element for element.

    Where `opaque`, a size among them is not known. `sizes` and `new_sizes` are set where both sides are known.
    """

    old: list[int]
    new: list[int]
    opaque: bool = False
    sizes: list[int] = field(default_factory=list)
    new_sizes: list[int] = field(default_factory=list)


def matching_blocks(before: Dims, after: Dims) -> list[Block] | None:
    """Cut two shapes of one sequence of elements into the smallest blocks that hold the same elements.

    Equal leading dimensions (numbers, or symbols of one name) correspond, and so do equal trailing ones; between them
    the products of known sizes must meet, or all in between is one opaque block. None for tensors without elements.
    """
    if 0 in before or 0 in after:
        return None
    blocks: list[Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old = before[i] if i < len(before) else 1
        new = after[j] if j < len(after) else 1
        if i < len(before) and j < len(after) and _same_size(before[i:], after[j:]):
            blocks.append(Block([i], [j]))
            i, j = i + 1, j + 1
        elif old == 1 and i < len(before):
            blocks.append(Block([i], []))
            i += 1
        elif new == 1 and j < len(after):
            blocks.append(Block([], [j]))
            j += 1
        else:
            block = _static_block(before, after, i, j)
            if block is None:
                return blocks + _opaque_blocks(before, after, i, j)
            blocks.append(block)
            i, j = i + len(block.old), j + len(block.new)
    return blocks


def _same_size(before: Dims, after: Dims) -> bool:
    """Whether the first dimensions of two shapes of as many elements are equal: by name, or because all others are
    known and multiply to the same."""
    if before[0] == after[0] is not None:
        return True
    if isinstance(before[0], int) or isinstance(after[0], int):
        return False
    rests = [[size for size in dims[1:] if isinstance(size, int)] for dims in (before, after)]
    known = len(rests[0]) == len(before) - 1 and len(rests[1]) == len(after) - 1
    return known and math.prod(rests[0]) == math.prod(rests[1])


def _static_block(before: Dims, after: Dims, i: int, j: int) -> Block | None:
    """The smallest block from (i, j) on in which all sizes are known and the products are equal."""
    sizes, new_sizes = list[int](), list[int]()
    while not sizes or not new_sizes or math.prod(sizes) != math.prod(new_sizes):
        grows, source, position = (
            (sizes, before, i + len(sizes))
            if not sizes or (new_sizes and math.prod(sizes) < math.prod(new_sizes))
            else (new_sizes, after, j + len(new_sizes))
        )
        size = source[position] if position < len(source) else None
        if not isinstance(size, int):
            return None
        grows.append(size)
    return Block(list(range(i, i + len(sizes))), list(range(j, j + len(new_sizes))), False, sizes, new_sizes)


def _opaque_blocks(before: Dims, after: Dims, i: int, j: int) -> list[Block]:
    """One block of what is not known from (i, j) on, and the equal trailing dimensions behind it."""
    tail: list[Block] = []
    end, new_end = len(before), len(after)
    while end > i and new_end > j and before[end - 1] == after[new_end - 1] is not None:
        end, new_end = end - 1, new_end - 1
        tail.insert(0, Block([end], [new_end]))
    return [Block(list(range(i, end)), list(range(j, new_end)), opaque=True), *tail]
