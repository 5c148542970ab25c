"""The references of served models: loaded when they are first needed, and kept as long as their model.

A reference may be a PyTorch program, so this is where the service's process may load PyTorch. One thread at a time uses
a reference, and PyTorch gets half of the cores, so that a check leaves the other half to requests.
"""

import sys
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakKeyDictionary

from fold.errors import BnfoldError, is_out_of_files
from fold.runtime import cores, without_runtime_words
from service.errors import ComputeError, NotOfferedError, OutOfFilesError

if TYPE_CHECKING:
    from fold.proof import Reference
    from service.repository import Model


Halt = Callable[[], None]
"""Raises when nobody waits for the result any more."""
T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """Computes something with a reference. Calls `halt` before each step and each batch of rows."""

    def __call__(self, reference: "Reference", halt: Halt, /) -> T_co: ...


class References:
    """Hold `lock` while you use a reference."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._loaded: WeakKeyDictionary[Model, Reference] = WeakKeyDictionary()

    def of(self, model: "Model") -> "Reference":
        """The reference of a model. Raises `NotOfferedError` if it needs a package that is not installed,
        `ComputeError` if it cannot be loaded."""
        reference = self._loaded.get(model)
        if reference is None:
            from fold.proof import load_reference  # noqa: PLC0415  # only a check pays for this import

            try:
                device = model.session.device
                reference = load_reference(model.session.version, provider=device, beside=True)
                self._loaded[model] = reference
            except ModuleNotFoundError as error:
                raise not_installed(model, error) from error
            except BnfoldError as error:
                if is_out_of_files(error):
                    raise OutOfFilesError from error
                raise ComputeError(f"model {model}: {without_runtime_words(error)}") from error
        torch = sys.modules.get("torch")
        if torch is not None:  # the number applies to the thread that sets it
            torch.set_num_threads(max(1, cores() // 2))
        return reference


def not_installed(model: "Model", error: ModuleNotFoundError) -> NotOfferedError:
    """The answer to a check that needs a package which is not installed."""
    return NotOfferedError(
        f"model {model} is proven against {model.manifest.reference}, and {error.name} is not installed here; "
        "install bnfold with torch to check equivalence"
    )
