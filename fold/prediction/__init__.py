"""A published model in Python and over data sets: loaded as the service loads it, on any number of rows."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.prediction.classes import Classes, best_classes, class_names, descending, softmax
    from fold.prediction.model import LoadedModel, load

__all__ = ["Classes", "LoadedModel", "best_classes", "class_names", "descending", "load", "softmax"]

__getattr__ = lazy_names(
    __name__,
    {
        "Classes": "classes",
        "LoadedModel": "model",
        "best_classes": "classes",
        "class_names": "classes",
        "descending": "classes",
        "load": "model",
        "softmax": "classes",
    },
)
