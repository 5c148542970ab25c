"""bnfold: fold trained BatchNorm into the weights around it, write ONNX, and prove that the model is the same."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.comparison import Comparison, compare
    from fold.engine import Folded, FoldReport, Kept, fold_model
    from fold.prediction import Classes, LoadedModel, load
    from fold.proof import Verdict, verify_model
    from fold.sources import export_module

__version__ = "0.1.0"

__all__ = [
    "Classes",
    "Comparison",
    "FoldReport",
    "Folded",
    "Kept",
    "LoadedModel",
    "Verdict",
    "compare",
    "export_module",
    "fold_model",
    "load",
    "verify_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Classes": "prediction",
        "Comparison": "comparison",
        "FoldReport": "engine",
        "Folded": "engine",
        "Kept": "engine",
        "LoadedModel": "prediction",
        "Verdict": "proof",
        "compare": "comparison",
        "export_module": "sources",
        "fold_model": "engine",
        "load": "prediction",
        "verify_model": "proof",
    },
)
