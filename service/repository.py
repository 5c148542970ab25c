"""The models that the service knows: read from the repository folder, opened, warmed up, proven, and found by name.

The latest version of every model serves whose certificate holds on this device with this session's options. Those above
it that cannot be loaded, or whose certificate does not hold, are listed with the reason and answered with 503; and so
is a model without any that can: a changed byte in one is no reason to refuse predictions of another.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from fold.artifact import Manifest, ModelVersion, model_names, read_version, version_numbers
from fold.errors import BnfoldError, first_line
from fold.runtime import ProviderUnavailableError
from service.batcher import Batcher
from service.errors import NotFoundError, NotReadyError, shown
from service.session import CertificateError, ModelSession
from service.settings import Settings
from service.shadow import Watched

log = logging.getLogger("bnfold")


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict of an equivalence check, as it was answered, and when: seconds since 1970."""

    verdict: dict[str, Any]
    at: float


@dataclass(slots=True, eq=False)
class Model:
    """A version that is READY."""

    name: str
    version: str
    session: ModelSession
    batcher: Batcher
    proof: Proof | None = None
    """Of the last check that was asked for over HTTP."""
    watched: Watched | None = None
    """Where answers are handed over that may be held against the reference."""

    @property
    def manifest(self) -> Manifest:
        return self.session.version.manifest

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Broken:
    """A version that is UNAVAILABLE, and why: it cannot be loaded, or its certificate does not hold here."""

    name: str
    version: str
    reason: str
    cause: Literal["load", "certificate"]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Repository:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._versions: dict[str, dict[str, Model | Broken]] = {}

    @property
    def loaded(self) -> bool:
        return bool(self._versions)

    def load(self) -> None:
        """Load the latest version of every model that works. Raises `BnfoldError` if that leaves nothing to serve."""
        folder = self.settings.repository
        try:
            numbers = {name: version_numbers(folder / name) for name in model_names(folder)}
        except OSError as error:
            raise BnfoldError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
        for name, found in numbers.items():
            self._versions[name] = self._load(name, found)
        if not self._versions:
            raise BnfoldError(f"{folder}: holds no model; expected NAME/VERSION folders, as `bnfold fold --out` writes")
        if not self.ready():
            reasons = "; ".join(f"{broken}: {broken.reason}" for broken in self.broken())
            raise BnfoldError(f"{folder}: no model can be served: {reasons}")

    def _load(self, name: str, numbers: list[int]) -> dict[str, Model | Broken]:
        """The latest version that works, and those above it, ascending."""
        found: dict[str, Model | Broken] = {}
        for number in reversed(numbers):
            found[str(number)] = entry = self._open(name, str(number))
            if isinstance(entry, Model):
                break
        return dict(reversed(found.items()))

    def _open(self, name: str, version: str) -> Model | Broken:
        settings = self.settings
        try:
            read = read_version(settings.repository / name / version)
            _refuse_unproven(read)
            session = ModelSession.open(
                read, provider=settings.provider, threads=settings.threads, spinning=settings.spinning
            )
            session.warm_up()
            session.try_canary()
        except ProviderUnavailableError:
            raise  # the machine's fault, not the model's
        except CertificateError as error:
            return Broken(name, version, str(error), "certificate")
        except BnfoldError as error:
            return Broken(name, version, str(error), "load")
        except Exception as error:  # whatever is wrong with one model must not keep the others from serving
            log.exception("model %s/%s cannot be loaded", name, version)
            return Broken(name, version, f"{type(error).__name__}: {first_line(error)}", "load")
        batcher = Batcher(
            session.run,
            name=f"{name}/{version}",
            max_batch_size=settings.max_batch_size,
            queue_rows=settings.queue_rows,
            timeout=settings.timeout_seconds,
            batched=session.signature.batched,
        )
        return Model(name, version, session, batcher)

    def find(self, name: str, version: str | None = None) -> Model:
        """The version asked for, or the one that serves. Raises 404 if there is none, 503 if it cannot serve."""
        found = self.entry(name, version)
        if isinstance(found, Broken):
            raise NotReadyError(f"model {found} is not ready: {found.reason}")
        return found

    def entry(self, name: str, version: str | None = None) -> Model | Broken:
        versions = self._versions.get(name)
        if versions is None:
            known = ", ".join(self._versions) or "none"
            raise NotFoundError(f"no model is named {shown(name)}; here are: {known}")
        if version is None:
            entries = list(versions.values())
            return next((entry for entry in entries if isinstance(entry, Model)), entries[-1])
        if version not in versions:
            raise NotFoundError(f"model {name!r} has no version {shown(version)}; here are: {', '.join(versions)}")
        return versions[version]

    def entries(self) -> list[Model | Broken]:
        return [entry for versions in self._versions.values() for entry in versions.values()]

    def versions(self, name: str) -> list[str]:
        """Those that serve."""
        return [version for version, entry in self._versions[name].items() if isinstance(entry, Model)]

    def ready(self) -> list[Model]:
        return [entry for entry in self.entries() if isinstance(entry, Model)]

    def broken(self) -> list[Broken]:
        return [entry for entry in self.entries() if isinstance(entry, Broken)]

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """What `POST /v2/repository/index` answers; `ready` leaves out what cannot serve."""
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if isinstance(entry, Model) else "UNAVAILABLE",
                "reason": entry.reason if isinstance(entry, Broken) else "",
            }
            for entry in self.entries()
            if not ready or isinstance(entry, Model)
        ]

    async def drain(self) -> None:
        """Answer every request that was accepted; nothing new is."""
        for model in self.ready():
            await model.batcher.drain()


def _refuse_unproven(version: ModelVersion) -> None:
    verdict = version.manifest.verdict
    if verdict.get("equivalent") is not True:
        said = verdict.get("message", "it has no verdict")
        raise CertificateError(
            f"{version.path / 'manifest.json'}: does not certify that the graph is equivalent: {said}; "
            "fold the model again"
        )
