"""A published model in Python and over data sets: loaded as the service loads it, on any number of rows."""

from fold.prediction.classes import Classes, best_classes, class_names, descending, softmax

__all__ = ["Classes", "best_classes", "class_names", "descending", "softmax"]
