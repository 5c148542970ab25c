"""Maps the dimensions of a tensor to those of its reshaped form: derived, never guessed from equal sizes."""

import math
from dataclasses import dataclass, field

from fold.graph.reading import Dims


@dataclass(frozen=True)
class Block:
    """Dimensions `old` of a tensor that become the dimensions `new` of another, element for element.

    If `opaque`, a size among them is unknown. `sizes` and `new_sizes` are set if all sizes are known.
    """

    old: list[int]
    new: list[int]
    opaque: bool = False
    sizes: list[int] = field(default_factory=list)
    new_sizes: list[int] = field(default_factory=list)


def matching_blocks(before: Dims, after: Dims) -> list[Block] | None:
    """Cut two shapes of the same elements into the smallest corresponding blocks.

    Equal leading dimensions (numbers, or symbols of one name) correspond, and so do equal trailing ones. Between them
    blocks end where the products of known sizes are equal; if a size is unknown, the rest is one opaque block. None for
    tensors without elements.
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
    """Whether the first dimensions of two shapes with equal element counts are equal: by name, or because all other
    dimensions are known and have equal products."""
    if before[0] == after[0] is not None:
        return True
    if isinstance(before[0], int) or isinstance(after[0], int):
        return False
    rests = [[size for size in dims[1:] if isinstance(size, int)] for dims in (before, after)]
    known = len(rests[0]) == len(before) - 1 and len(rests[1]) == len(after) - 1
    return known and math.prod(rests[0]) == math.prod(rests[1])


def _static_block(before: Dims, after: Dims, i: int, j: int) -> Block | None:
    """The smallest block from (i, j) on with known sizes and equal products."""
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
    """One opaque block from (i, j) on, then a block for each equal trailing dimension."""
    tail: list[Block] = []
    end, new_end = len(before), len(after)
    while end > i and new_end > j and before[end - 1] == after[new_end - 1] is not None:
        end, new_end = end - 1, new_end - 1
        tail.insert(0, Block([end], [new_end]))
    return [Block(list(range(i, end)), list(range(j, new_end)), opaque=True), *tail]
