"""`fold.runtime.Trial` without its process."""

from pathlib import Path

from fold.errors import BnfoldError
from fold.runtime import CannotLoadError, TrialKind, open_session


class TrialHere:
    """Loads the file, as the process would, and does not run it."""

    def __init__(self, path: Path, shapes: object, kind: TrialKind = "run") -> None:
        self._path = path
        self._kind = kind

    def check(self) -> None:
        try:
            open_session(self._path, provider="cpu")
        except BnfoldError as error:
            if self._kind == "load" and type(error.__cause__).__name__ == "NotImplemented":
                return  # a valid graph, for which this build has no kernels
            raise CannotLoadError(str(error).removeprefix(f"{self._path}: ")) from error

    def close(self) -> None:
        """Nothing is left open."""
