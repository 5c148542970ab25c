"""Data sets on disk: rows of tables, arrays and images, read in order and no more of them than are asked for."""

from fold.prediction.data.chunk import Chunk, Wanted, merge_chunks
from fold.prediction.data.sources import Source, open_sources

__all__ = ["Chunk", "Source", "Wanted", "merge_chunks", "open_sources"]
