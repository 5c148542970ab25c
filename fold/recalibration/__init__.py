"""Recalibration: BatchNorm's running statistics, recomputed over a data set."""

from fold.recalibration.checkpoint import Recalibration, recalibrate

__all__ = ["Recalibration", "recalibrate"]
