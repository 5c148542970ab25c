"""Other interpretations of one ONNX graph than the runtime's: float64, error bounds, PyTorch autograd."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.evaluate.autograd import TorchGraph
    from fold.evaluate.bounds import RoundingBound
    from fold.evaluate.deadline import TooLongError
    from fold.evaluate.float64 import Evaluator
    from fold.evaluate.noise import AMPLITUDE_REDUCED, NoisyEvaluator, with_moved_weights
    from fold.evaluate.program import InFloat64
    from fold.evaluate.torch_noise import TorchNoise

__all__ = [
    "AMPLITUDE_REDUCED",
    "Evaluator",
    "InFloat64",
    "NoisyEvaluator",
    "RoundingBound",
    "TooLongError",
    "TorchGraph",
    "TorchNoise",
    "with_moved_weights",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AMPLITUDE_REDUCED": "noise",
        "Evaluator": "float64",
        "InFloat64": "program",
        "NoisyEvaluator": "noise",
        "RoundingBound": "bounds",
        "TooLongError": "deadline",
        "TorchGraph": "autograd",
        "TorchNoise": "torch_noise",
        "with_moved_weights": "noise",
    },
)
