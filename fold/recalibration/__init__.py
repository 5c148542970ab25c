"""BatchNorm's statistics computed anew over a data set."""

from fold.recalibration.checkpoint import Recalibration, recalibrate

__all__ = ["Recalibration", "recalibrate"]
