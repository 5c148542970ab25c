"""Other interpretations of one ONNX graph than the runtime's: float64, random rounding, PyTorch autograd."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.evaluate.autograd import TorchGraph
    from fold.evaluate.deadline import TooLongError
    from fold.evaluate.float64 import Evaluator
    from fold.evaluate.jumps import jumping
    from fold.evaluate.noise import AMPLITUDE, AMPLITUDE_REDUCED, NoisyEvaluator
    from fold.evaluate.program import InFloat64
    from fold.evaluate.random_rounding import (
        DRAWS,
        MovedTensors,
        MovedWeights,
        RandomRounding,
        rounded_weights,
        rounding_limits,
    )
    from fold.evaluate.torch_noise import TorchNoise

__all__ = [
    "AMPLITUDE",
    "AMPLITUDE_REDUCED",
    "DRAWS",
    "Evaluator",
    "InFloat64",
    "MovedTensors",
    "MovedWeights",
    "NoisyEvaluator",
    "RandomRounding",
    "TooLongError",
    "TorchGraph",
    "TorchNoise",
    "jumping",
    "rounded_weights",
    "rounding_limits",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AMPLITUDE": "noise",
        "AMPLITUDE_REDUCED": "noise",
        "DRAWS": "random_rounding",
        "Evaluator": "float64",
        "InFloat64": "program",
        "MovedTensors": "random_rounding",
        "MovedWeights": "random_rounding",
        "NoisyEvaluator": "noise",
        "RandomRounding": "random_rounding",
        "TooLongError": "deadline",
        "TorchGraph": "autograd",
        "TorchNoise": "torch_noise",
        "jumping": "jumps",
        "rounded_weights": "random_rounding",
        "rounding_limits": "random_rounding",
    },
)
