"""The references that served models are held against, loaded when they are first needed, kept as long as their model.

A reference may be a torch program, so torch comes in here, and only here. One thread at a time uses a reference, and
torch gets half of the cores, so that a proof leaves the others to those who are served.
"""

import os
import sys
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fold.errors import BnfoldError
from service.errors import ComputeError, NotOfferedError

if TYPE_CHECKING:
    from fold.proof import Reference
    from service.repository import Model


class References:
    """Whoever uses a reference holds `lock` meanwhile."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._loaded: WeakKeyDictionary[Model, Reference] = WeakKeyDictionary()

    def of(self, model: "Model") -> "Reference":
        """Raises `NotOfferedError` where torch is needed and absent, `ComputeError` if it cannot be loaded."""
        reference = self._loaded.get(model)
        if reference is None:
            from fold.proof import load_reference  # noqa: PLC0415  # a predict never pays for this

            try:
                device = model.session.device
                reference = load_reference(model.session.version, provider=device, beside=True)
                self._loaded[model] = reference
            except ModuleNotFoundError as error:
                raise not_installed(model, error) from error
            except BnfoldError as error:
                raise ComputeError(f"model {model}: {error}") from error
        torch = sys.modules.get("torch")
        if torch is not None:  # the number holds for the thread that sets it
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        return reference


def not_installed(model: "Model", error: ModuleNotFoundError) -> NotOfferedError:
    return NotOfferedError(
        f"model {model} is proven against {model.manifest.reference}, and {error.name} is not installed here; "
        "install bnfold with torch to check equivalence"
    )
