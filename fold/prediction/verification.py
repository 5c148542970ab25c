"""Holds a share of the rows of a run against the reference, as watching does it while serving."""

from dataclasses import dataclass

import numpy as np

from fold.arrays import Arrays, cut_rows, row_count
from fold.errors import BnfoldError
from fold.prediction.model import LoadedModel

ROWS = 8
"""Rows that are compared at a time, as many as watching compares of an answer."""


@dataclass(frozen=True)
class Verification:
    """What comparisons have found: rows, those that disagree in an error or a decision, and the largest error over its
    limit (`fold.proof.Tally`)."""

    rows: int = 0
    errors: int = 0
    decisions: int = 0
    error_ratio: float = 0.0

    def __bool__(self) -> bool:
        return not self.errors and not self.decisions

    def __add__(self, other: "Verification") -> "Verification":
        return Verification(
            self.rows + other.rows,
            self.errors + other.errors,
            self.decisions + other.decisions,
            max(self.error_ratio, other.error_ratio),
        )


class Verifier:
    """Compares a share of the rows of one shard after another. Imports PyTorch if the reference needs it."""

    def __init__(self, model: LoadedModel, share: float) -> None:
        """Raises `BnfoldError` for a reference that cannot be loaded."""
        from fold.proof import load_reference  # noqa: PLC0415  # may need PyTorch

        self._model, self._share = model, share
        try:
            self._reference = load_reference(model.session.version, provider=model.device)
        except ModuleNotFoundError as error:
            raise BnfoldError(
                f"--verify: the reference of {model} needs {error.name}, which is not installed"
            ) from error
        self.begin(0)

    def begin(self, shard: int) -> None:
        """Count anew. The rows that are compared are the same in each run."""
        from fold.proof import Tally  # noqa: PLC0415  # as above

        self._random = np.random.default_rng(shard)
        self._tally = Tally(self._model.manifest.verdict)

    def offer(self, inputs: Arrays, outputs: Arrays) -> None:
        """Some of these rows are compared; the rest is let go."""
        chosen = np.flatnonzero(self._random.random(row_count(inputs)) < self._share)
        asked, answered = ({name: array[chosen] for name, array in each.items()} for each in (inputs, outputs))
        parts = (cut_rows(arrays, len(chosen), ROWS) for arrays in (asked, answered))
        for some_asked, some_answered in zip(*parts, strict=True):
            self._compare(some_asked, some_answered)

    def found(self) -> Verification:
        """Since `begin`."""
        disagreements = self._tally.disagreements
        return Verification(
            self._tally.rows, disagreements["error"], disagreements["decision"], self._tally.error_ratio
        )

    def _compare(self, inputs: Arrays, outputs: Arrays) -> None:
        from fold.proof import compare  # noqa: PLC0415  # as above

        provider = self._model.session.provider
        precision = self._model.manifest.precision_on(provider)
        self._tally.count(compare(self._reference, outputs, inputs, provider=provider, precision=precision))
