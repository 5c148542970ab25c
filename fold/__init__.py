"""bnfold: fold trained BatchNorm into the weights around it, write ONNX, and prove that the model is the same.

The public functions are imported when they are first asked for, so that serving a folded graph never loads PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fold.engine import fold_model
    from fold.export import export_module
    from fold.report import Folded, FoldReport, Kept
    from fold.verdict import Verdict
    from fold.verify import verify_model

__all__ = ["FoldReport", "Folded", "Kept", "Verdict", "export_module", "fold_model", "verify_model"]

_HOMES = {
    "export_module": "fold.export",
    "fold_model": "fold.engine",
    "Folded": "fold.report",
    "FoldReport": "fold.report",
    "Kept": "fold.report",
    "Verdict": "fold.verdict",
    "verify_model": "fold.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fold' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_HOMES[name]), name)
