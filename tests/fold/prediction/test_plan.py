"""Shards: each row is in one of them, and the same rows and size give the same shards."""

from hypothesis import given
from hypothesis import strategies as st

from fold.prediction.plan import plan_shards

SOURCES = st.lists(st.integers(0, 40), max_size=8)


@given(SOURCES, st.integers(1, 50))
def test_shards_hold_every_row_once_and_in_order(rows: list[int], shard_rows: int) -> None:
    shards = plan_shards(rows, shard_rows)
    held = [(p.source, row) for shard in shards for p in shard.pieces for row in range(p.start, p.stop)]
    assert held == [(source, row) for source, count in enumerate(rows) for row in range(count)]
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(shard.rows == shard_rows for shard in shards[:-1])
    assert all(0 < shard.rows <= shard_rows for shard in shards)


@given(SOURCES, st.integers(1, 50))
def test_the_same_data_gives_the_same_shards(rows: list[int], shard_rows: int) -> None:
    assert plan_shards(rows, shard_rows) == plan_shards(tuple(rows), shard_rows)
    longer = plan_shards([*rows, 7], shard_rows)
    full = [shard for shard in plan_shards(rows, shard_rows) if shard.rows == shard_rows]
    assert longer[: len(full)] == full, "rows that are added change no shard that was full"
