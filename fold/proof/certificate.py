"""The certificate: what was proven of a folded graph, part by part, its sentence and its JSON (docs/certificate.md)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fold.arrays import Arrays
from fold.proof.algebra import Algebra
from fold.proof.locate import Located
from fold.proof.rounding import Rounding
from fold.proof.run_time import Verdict

if TYPE_CHECKING:
    from fold.proof.search import SearchResult


@dataclass(frozen=True)
class GraphParts:
    """Parts A, B and E, which compare graphs: None for a part that was not asked for.

    `located` says where the fault is if A or B fails. `witness` has inputs of A, and what the unfolded graph computes
    from them in float64.
    """

    algebra: Algebra | None
    rounding: Rounding | None
    search: "SearchResult | None"
    located: Located | None
    witness: tuple[Arrays, Arrays] | None = None

    def __bool__(self) -> bool:
        return all(part is None or bool(part) for part in (self.algebra, self.rounding, self.search))

    def message(self, verdict: Verdict) -> str:
        """These parts and the verdict of C and D in one sentence."""
        return _message(verdict, self.algebra, self.rounding, self.search, self.located)

    def to_dict(self) -> dict[str, Any]:
        """The parts that were asked for, as JSON, and `located`."""
        parts = {"algebra": self.algebra, "rounding": self.rounding, "search": self.search}
        content = {name: part.to_dict() for name, part in parts.items() if part is not None}
        return {**content, "located": None if self.located is None else self.located.to_dict()}


@dataclass(frozen=True)
class Certificate:
    """True if every part holds: A in `algebra`, B in `rounding`, C and D in `verdict`, and E, `search`, if it was asked
    for.

    `drawn` has the shapes of the inputs, None if they were given. `located` says where the fault is if a part fails.
    `subject` has the SHA-256 of the source, the reference and the served graph.
    """

    algebra: Algebra
    rounding: Rounding
    verdict: Verdict
    search: "SearchResult | None"
    located: Located | None
    drawn: dict[str, tuple[int, ...]] | None
    subject: dict[str, str]
    device: str
    versions: dict[str, str]
    created: str

    def __bool__(self) -> bool:
        return all((self.algebra, self.rounding, self.verdict)) and (self.search is None or bool(self.search))

    @property
    def message(self) -> str:
        """The whole certificate in one sentence."""
        return _message(self.verdict, self.algebra, self.rounding, self.search, self.located)

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON (docs/certificate.schema.json)."""
        content = {
            **self.verdict.to_dict(),
            "equivalent": bool(self),
            "message": self.message,
            "runtime_holds": bool(self.verdict),
            "algebra": self.algebra.to_dict(),
            "rounding": self.rounding.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "located": None if self.located is None else self.located.to_dict(),
            "drawn": None if self.drawn is None else {name: list(shape) for name, shape in self.drawn.items()},
            "subject": self.subject,
            "device": self.device,
            "versions": self.versions,
            "created": self.created,
        }
        return {key: _without_infinities(value) for key, value in content.items()}


def _message(
    verdict: Verdict,
    algebra: Algebra | None,
    rounding: Rounding | None,
    search: "SearchResult | None",
    located: Located | None,
) -> str:
    where = f"; {located.message}" if located else ""
    failed = [part.failure for part in (algebra, rounding) if part is not None and not part]
    failed += ["the search proves nothing; an output has no finite value"] if search is not None and not search else []
    if (
        verdict.doubt is not None or verdict.empty is not None or not failed
    ):  # a wrong reference makes other parts fail, too
        return f"{verdict.message}{where}"
    precision = "" if verdict.precision == "fp32" else f" in {verdict.precision}"
    return f"NOT equivalent{precision}: {'; '.join(failed)}{where}"


def _without_infinities(content: Any) -> Any:
    """The same content with null for infinities and NaN, which JSON does not have."""
    if isinstance(content, dict):
        return {key: _without_infinities(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_infinities(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
