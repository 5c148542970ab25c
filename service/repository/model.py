"""The entry of the repository for a name and a version: a model that serves, or the reason why none does."""

import asyncio
import contextlib
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fold.arrays import Arrays
from fold.artifact import Manifest
from fold.serving import ModelSession
from service.batching import Batcher, BatchPolicy
from service.protocol import Signature
from service.repository.versions import FailureCause
from service.settings import Settings

if TYPE_CHECKING:
    from fold.inspection import Inspection

Disagreement = Literal["error", "decision"]
CHECKS = 32
"""Checks of a version that are kept."""
Drop = Literal["load", "busy", "proof", "failed"]
"""Why an answer was not compared."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict of an equivalence check, as it was answered, and when: seconds since 1970."""

    verdict: dict[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Absent:
    """A version that does not serve, and why. `version` is empty where the folder of a model cannot be read."""

    name: str
    version: str
    state: Literal["LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str
    cause: FailureCause | None = None
    """Of a broken version: it cannot be loaded, or its certificate does not hold here."""
    details: str = ""
    """The reason of a broken version, with the runtime's words, for the operator."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name


class Observer(Protocol):
    """Compares a share of a model's answers with its reference, and counts what it found."""

    share: float
    """Of the answers; 0 until the reference is loaded."""
    rows: int
    disagreements: Counter[Disagreement]
    drops: Counter[Drop]
    error_ratio: float
    """The largest error over its limit; infinite where an error has no size."""

    def offer(self, inputs: Arrays, outputs: Arrays, rows: int) -> None:
        """Called with each answer, which may be compared. The arrays must not be changed from now on."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Model:
    """A version that is READY. `with model:` holds it: it is not retired before the block has ended."""

    name: str
    version: str
    session: ModelSession
    signature: Signature
    batcher: Batcher
    checks: deque[Proof] = field(default_factory=partial(deque, maxlen=CHECKS))
    """The last checks that were asked for over HTTP, ascending."""
    inspection: "Inspection | None" = None
    """Of its BatchNorms, once it was asked for."""
    layers: dict[str, Any] | None = None
    """The errors of its layers, once they were asked for."""
    observer: Observer | None = None
    """Compares a share of the responses with the reference."""
    fault: Absent | None = None
    """Why its present files could not be loaded in its place."""
    retired: bool = False
    """Whether it has answered its last request and is counted no more."""
    _users: int = 0
    _free: asyncio.Event | None = None

    @classmethod
    def of(cls, name: str, version: str, session: ModelSession, settings: Settings) -> "Model":
        signature = Signature.of(session.version.manifest)
        batched, in_flight = signature.batched, session.batches_in_flight
        single_core_runs = session.single_core_runs
        if session.provider == "cpu":
            policy = BatchPolicy.for_cpu(
                settings, batched=batched, in_flight=in_flight, single_core_runs=single_core_runs
            )
        else:
            policy = BatchPolicy.for_gpu(settings, batched=batched, in_flight=in_flight)
        batcher = Batcher(
            session.run,
            policy,
            name=f"{name}/{version}",
            single_core_run=session.run_on_one_core if single_core_runs else None,
        )
        return cls(name, version, session, signature, batcher)

    @property
    def proof(self) -> Proof | None:
        """Of the last check."""
        return self.checks[-1] if self.checks else None

    @property
    def manifest(self) -> Manifest:
        return self.session.version.manifest

    @property
    def state(self) -> Literal["READY"]:
        return "READY"

    @property
    def reason(self) -> str:
        return f"serves as it was loaded, for its files cannot be: {self.fault.reason}" if self.fault else ""

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, *error: object) -> None:
        self._users -= 1
        if self._free is not None and not self._users:
            self._free.set()

    async def unused(self, seconds: float) -> None:
        """Wait until no block holds it, for so many seconds at most."""
        if self._users:
            self._free = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._free.wait(), seconds)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


Entry = Model | Absent
