"""The shards of a run over a data set: which rows each of them has. The same data and size give the same shards."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a source, by its position among the sources."""

    source: int
    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """The unit of commit: consecutive rows, which may be of several sources."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)


def plan_shards(rows: Sequence[int], shard_rows: int) -> list[Shard]:
    """Shards of `shard_rows` rows each, the last one of what is left, over sources of so many `rows`."""
    shards: list[Shard] = []
    pieces: list[Piece] = []
    room = shard_rows
    for source, count in enumerate(rows):
        start = 0
        while start < count:
            stop = min(count, start + room)
            pieces.append(Piece(source, start, stop))
            room -= stop - start
            start = stop
            if not room:
                shards.append(Shard(len(shards), tuple(pieces)))
                pieces, room = [], shard_rows
    if pieces:
        shards.append(Shard(len(shards), tuple(pieces)))
    return shards
