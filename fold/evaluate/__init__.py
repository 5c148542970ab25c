"""Other interpretations of one ONNX graph than the runtime's: float64, error bounds, PyTorch autograd."""

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
