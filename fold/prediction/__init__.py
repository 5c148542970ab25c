"""A published model in Python and over data sets: loaded as the service loads it, on any number of rows."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.prediction.classes import Classes, best_classes, class_names, descending, softmax
    from fold.prediction.compute import RowError
    from fold.prediction.job import Choices
    from fold.prediction.model import LoadedModel, load
    from fold.prediction.run import Summary, predict_files

__all__ = [
    "Choices",
    "Classes",
    "LoadedModel",
    "RowError",
    "Summary",
    "best_classes",
    "class_names",
    "descending",
    "load",
    "predict_files",
    "softmax",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Choices": "job",
        "Classes": "classes",
        "LoadedModel": "model",
        "RowError": "compute",
        "Summary": "run",
        "best_classes": "classes",
        "class_names": "classes",
        "descending": "classes",
        "load": "model",
        "predict_files": "run",
        "softmax": "classes",
    },
)
