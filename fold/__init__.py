"""bnfold: fold trained BatchNorm into the weights around it, write ONNX, and prove that the model is the same.

The public functions are imported when they are first asked for, so that serving a folded graph never loads PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fold.engine.fold import fold_model
    from fold.engine.report import Folded, FoldReport, Kept
    from fold.proof.run_time import Verdict
    from fold.proof.verify import verify_model
    from fold.sources.export import export_module

__all__ = ["FoldReport", "Folded", "Kept", "Verdict", "export_module", "fold_model", "verify_model"]

_HOMES = {
    "export_module": "fold.sources.export",
    "fold_model": "fold.engine.fold",
    "Folded": "fold.engine.report",
    "FoldReport": "fold.engine.report",
    "Kept": "fold.engine.report",
    "Verdict": "fold.proof.run_time",
    "verify_model": "fold.proof.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fold' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_HOMES[name]), name)
