"""The versions of a model that serve, and how one is opened: read, refused if unproven, warmed up, tried on its canary.

Nothing here belongs to the event loop: while the service runs, all of it happens on a thread beside the batches.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from fold.artifact import Listing, ModelVersion, version_folders
from fold.errors import BnfoldError, first_line, is_out_of_files, printable
from fold.runtime import ProviderUnavailableError, without_runtime_words
from fold.serving import CertificateError, ModelSession
from service.errors import OutOfFilesError, ServiceError
from service.settings import Settings

log = logging.getLogger("bnfold")

SHOWN_FOLDERS = 5
"""Names of ignored folders that a line has."""

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
    """Why a version cannot serve. `of_machine`: this machine can serve no other version either.

    `reason` is for clients; `details` has the runtime's words, too.
    """

    reason: str
    cause: FailureCause
    details: str
    of_machine: bool = False


LoadOutcome = Opened | Unchanged | Failure
WHOLE_MODEL = ""
"""In place of a version: what is said of the folder of a model that cannot be read."""


def open_versions(
    settings: Settings,
    model: Path,
    serving: Mapping[str, str],
    *,
    read: Callable[[Path], ModelVersion],
    halt: Halt = lambda: None,
    announce: Callable[[str], None] = lambda version: None,
) -> dict[str, LoadOutcome]:
    """The versions in the folder of a model that the policy chooses, ascending, and newer ones that failed.

    `serving` has the digests of the versions that serve now: they are not opened again, and if only the files on disk
    are broken, such a version still counts as one that works. `read` reads a version and checks its files; `announce`
    gets each version before it is opened.
    Empty if the model has no version; only `WHOLE_MODEL` if its folder cannot be read. Raises `OutOfFilesError` if the
    process is out of file descriptors.
    """
    try:
        numbers = [int(version) for version in version_folders(model).found]
    except OSError as error:
        unreadable = BnfoldError(f"{model}: cannot be read ({error.strerror})")
        unreadable.__cause__ = error
        return {WHOLE_MODEL: _failure(unreadable)}
    policy = VersionPolicy.of(settings.version_policy)
    found: dict[str, LoadOutcome] = {}
    working = 0
    for version in map(str, policy.candidates(numbers)):
        if working >= policy.at_most:
            break
        halt()
        announce(version)
        outcome = _try(settings, model / version, serving.get(version), read, halt)
        found[version] = outcome
        working += not isinstance(outcome, Failure) or version in serving
    if numbers and not found:
        has = ", ".join(map(str, numbers))
        text = f"version_policy {policy.text} chooses none of the versions that {model.name} has: {has}"
        return {str(numbers[-1]): Failure(text, "load", text)}
    return dict(reversed(found.items()))


def _try(
    settings: Settings, path: Path, digest: str | None, read: Callable[[Path], ModelVersion], halt: Halt
) -> LoadOutcome:
    started = time.perf_counter()
    try:
        version = read(path)
        if version.manifest.digest == digest:
            return Unchanged()
        halt()
        return Opened(ModelSession.open(version, settings.session_options, halt), time.perf_counter() - started)
    except ServiceError:
        raise
    except ProviderUnavailableError as error:
        return _failure(error, of_machine=True)
    except CertificateError as error:
        return _failure(error, "certificate")
    except BnfoldError as error:
        return _failure(error)
    except Exception as error:  # a fault of one model must not keep the others from serving
        failure = _failure(error, kind=f"{type(error).__name__}: ")
        log.exception("model %s/%s cannot be loaded", path.parent.name, path.name)
        return failure


def _failure(error: Exception, cause: FailureCause = "load", *, of_machine: bool = False, kind: str = "") -> Failure:
    """Raises `OutOfFilesError` if it is not the model's: the process has no file descriptor left."""
    if is_out_of_files(error):
        raise OutOfFilesError from error
    reason, details = (printable(kind + text) for text in (without_runtime_words(error), first_line(error)))
    return Failure(reason, cause, details, of_machine)


def stamp(model: Path) -> tuple[tuple[object, ...], Listing]:
    """What changes when a version of the model is added or removed, or a file of it is written; costs a stat a file.
    Empty if it has no version. And what its folder holds.

    What cannot be read is part of it, so that a fault is tried again when it changes, and not before. Raises `OSError`
    if the process is out of file descriptors.
    """
    try:
        listing = version_folders(model)
    except OSError as error:
        return (_fault(error),), Listing()
    found: list[object] = list(listing.found)
    for version in listing.found:
        try:
            with os.scandir(model / version) as entries:
                files = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.append((version, _fault(error)))
            continue
        for file in files:
            try:
                info = file.stat()
                found.append((version, file.name, info.st_ino, info.st_size, info.st_mtime_ns))
            except OSError as error:
                found.append((version, file.name, _fault(error)))
    return tuple(found), listing


def _fault(error: OSError) -> int | None:
    if is_out_of_files(error):
        raise error
    return error.errno


def ignored_folders(name: str, listing: Listing) -> str:
    """One line about the folders that are no model, or no version of the model `name`; empty if there are none."""
    by_reason: dict[str, list[str]] = {}
    for folder, reason in listing.ignored.items():
        by_reason.setdefault(reason, []).append(f"{name}/{folder}" if name else folder)
    return "; ".join(f"{_some(folders)}: {reason}" for reason, folders in by_reason.items())


def ignored_versions(model: Path) -> str:
    """The same for the folder of a model; empty if it cannot be read."""
    try:
        if os.path.lexists(model) and not model.is_dir():
            return f"{model.name}: it is no folder"
        return ignored_folders(model.name, version_folders(model))
    except OSError:
        return ""


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN_FOLDERS
    return ", ".join(names[:SHOWN_FOLDERS]) + (f" and {more} more" if more > 0 else "")
