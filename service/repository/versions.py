"""The versions of a model that serve, and how one is opened: read, refused if unproven, warmed up, tried on its canary.

Nothing here belongs to the event loop: while the service runs, all of it happens on a thread beside the batches.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from fold.artifact import ModelVersion, read_version, version_numbers
from fold.errors import BnfoldError, first_line
from fold.runtime import ProviderUnavailableError
from service.errors import ServiceError
from service.runtime import CertificateError, ModelSession
from service.settings import Settings

log = logging.getLogger("bnfold")

FailureCause = Literal["load", "certificate"]
Halt = Callable[[], None]
"""Called before each step; raises a `ServiceError` when the load is to end."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The setting `version_policy`: a number of the latest that work, all, or those that are given."""

    text: str
    at_most: float = inf
    given: frozenset[int] | None = None

    @classmethod
    def of(cls, text: str) -> "VersionPolicy":
        """`text` as the settings have checked it."""
        if text == "all":
            return cls(text)
        if text.startswith("latest"):
            return cls(text, at_most=int(text.partition(":")[2] or 1))
        return cls(text, given=frozenset(map(int, text.split(","))))

    def candidates(self, numbers: list[int]) -> list[int]:
        """Those that may serve, the newest first."""
        return sorted((n for n in numbers if self.given is None or n in self.given), reverse=True)


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that is ready to serve, and the seconds that this took."""

    session: ModelSession
    seconds: float


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The version that serves is the one on disk."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version cannot serve. `of_machine`: this machine can serve no other version either."""

    reason: str
    cause: FailureCause
    of_machine: bool = False


LoadOutcome = Opened | Unchanged | Failure


def open_versions(
    settings: Settings,
    name: str,
    serving: Mapping[str, str],
    *,
    halt: Halt = lambda: None,
    announce: Callable[[str], None] = lambda version: None,
) -> dict[str, LoadOutcome]:
    """The versions of a model that the policy chooses, ascending, and newer ones that failed.

    `serving` has the digests of the versions that serve now: they are not opened again, and if only the files on disk
    are broken, such a version still counts as one that works. `announce` gets each version before it is opened.
    Empty if the model has no version. Raises `OSError` if its folder cannot be read.
    """
    numbers = version_numbers(settings.repository / name)
    policy = VersionPolicy.of(settings.version_policy)
    found: dict[str, LoadOutcome] = {}
    working = 0
    for version in map(str, policy.candidates(numbers)):
        if working >= policy.at_most:
            break
        halt()
        announce(version)
        outcome = _try(settings, name, version, serving.get(version), halt)
        found[version] = outcome
        working += not isinstance(outcome, Failure) or version in serving
    if numbers and not found:
        has = ", ".join(map(str, numbers))
        text = f"version_policy {policy.text} chooses none of the versions that {name} has: {has}"
        return {str(numbers[-1]): Failure(text, "load")}
    return dict(reversed(found.items()))


def _try(settings: Settings, name: str, version: str, digest: str | None, halt: Halt) -> LoadOutcome:
    started = time.perf_counter()
    try:
        read = read_version(settings.repository / name / version)
        if read.manifest.digest == digest:
            return Unchanged()
        return Opened(_open(settings, read, halt), time.perf_counter() - started)
    except ServiceError:
        raise
    except ProviderUnavailableError as error:
        return Failure(str(error), "load", of_machine=True)
    except CertificateError as error:
        return Failure(str(error), "certificate")
    except BnfoldError as error:
        return Failure(str(error), "load")
    except Exception as error:  # a fault of one model must not keep the others from serving
        log.exception("model %s/%s cannot be loaded", name, version)
        return Failure(f"{type(error).__name__}: {first_line(error)}", "load")


def _open(settings: Settings, version: ModelVersion, halt: Halt) -> ModelSession:
    _refuse_unproven(version)
    halt()
    return ModelSession.open(version, settings, halt)


def _refuse_unproven(version: ModelVersion) -> None:
    verdict = version.manifest.verdict
    if verdict.get("equivalent") is not True:
        said = verdict.get("message", "it has no verdict")
        raise CertificateError(
            f"{version.path / 'manifest.json'}: does not certify that the graph is equivalent: {said}; "
            "fold the model again"
        )


def stamp(model: Path) -> tuple[object, ...]:
    """Changes when a version of the model is added or removed, or a file of it is written; costs a stat a file."""
    found: list[object] = []
    for number in version_numbers(model):
        try:
            for file in sorted((model / str(number)).iterdir()):
                info = file.stat()
                found.append((number, file.name, info.st_ino, info.st_size, info.st_mtime_ns))
        except OSError:  # it is being removed, and the next stamp will differ
            found.append((number, time.monotonic_ns()))
    return tuple(found)
