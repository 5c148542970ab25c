"""A graph computed in other ways than to serve it: in float64, as error bounds, as PyTorch functions."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.evaluate.autograd import TorchGraph
    from fold.evaluate.bounds import RoundingBound
    from fold.evaluate.float64 import Evaluator
    from fold.evaluate.program import InFloat64

__all__ = ["Evaluator", "InFloat64", "RoundingBound", "TorchGraph"]

__getattr__ = lazy_names(
    __name__,
    {
        "Evaluator": "float64",
        "InFloat64": "program",
        "RoundingBound": "bounds",
        "TorchGraph": "autograd",
    },
)
