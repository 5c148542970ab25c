"""Takes a checked request through the model's queue, for HTTP and gRPC."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from starlette.types import Scope

from fold.arrays import Arrays
from fold.errors import first_line
from fold.runtime import runtime_code
from fold.serving import DeviceLostError, DeviceMemoryError
from service.batching import Outcome, Ticket
from service.errors import ClientGoneError, ComputeError, DeviceError, ServiceError
from service.repository import Model
from service.telemetry import ThrottledLog

GONE = "the client left while its request was queued"
Finish = Callable[[Outcome], None]
WITHDRAW = "bnfold.withdraw"
"""Key of `scope["state"]`. A queued request stores here what the server calls if the client leaves."""


log = logging.getLogger("bnfold")
failed_runs = ThrottledLog("bnfold")


class Waiting(Protocol):
    """A request on the fast path that waits for its outcome."""

    withdraw: Callable[[], object] | None
    """Takes the request out of the queue, where it is in one."""

    @property
    def sole_connection(self) -> bool:
        """Whether no other request can arrive meanwhile."""


class Reply:
    """Where the batcher puts the outcome of a request on the fast path: it goes to `finish` at once."""

    __slots__ = ("_done", "_finish", "_model", "ticket")

    def __init__(self, model: Model, finish: Finish) -> None:
        self.ticket: Ticket | None = None
        """The request in the queue; None once it has its outcome."""
        self._done = False
        self._model = model
        self._finish = finish

    def done(self) -> bool:
        return self._done

    def set_result(self, outputs: Outcome) -> None:
        self._done, self.ticket = True, None
        try:
            self._finish(outputs)
        except Exception as error:  # the other requests of the batch still get their answers
            log.error("an answer could not be sent", exc_info=error)

    set_exception = set_result

    def withdraw(self) -> None:
        if self.ticket is not None:
            self._model.batcher.withdraw(self.ticket, ClientGoneError(GONE))


def enqueue(
    model: Model,
    inputs: Arrays,
    rows: int,
    waiting: Waiting,
    finish: Finish,
    priority: int = 0,
    timeout: float | None = None,
) -> None:
    """Give a checked request to the model's queue. `finish` gets the outcome, possibly before this returns.

    Priority 1 is the highest and 0 is the default; `timeout` (seconds) can only shorten the configured wait. Raises
    `BusyError` if the queue is full, `DeadlineError` if the wait would be too long.
    """
    reply = Reply(model, finish)
    lane = model.signature.lane(inputs)
    ticket = model.batcher.submit(
        inputs, rows, lane, priority=priority, timeout=timeout, result=reply, sole_connection=waiting.sole_connection
    )
    if not reply.done():
        reply.ticket = ticket
        waiting.withdraw = reply.withdraw


def outputs_of(model: Model, inputs: Arrays, rows: int, outcome: Outcome) -> Arrays:
    """The outputs of a run, which are also offered to the shadow check. Raises `ServiceError` if the run failed."""
    if isinstance(outcome, Exception):
        raise _failed_run(model, outcome)
    if model.observer is not None:
        model.observer.offer(inputs, outcome, rows)
    return outcome


async def compute(
    model: Model, inputs: Arrays, rows: int, scope: Scope, priority: int = 0, timeout: float | None = None
) -> Arrays:
    """The outputs of a checked request, by ASGI or gRPC. The request leaves the queue if the client leaves.

    Raises `ServiceError` where `enqueue` does, and if the run failed.
    """
    lane = model.signature.lane(inputs)
    result: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
    ticket = model.batcher.submit(inputs, rows, lane, priority=priority, timeout=timeout, result=result)
    if ticket.queued and "state" in scope:
        scope["state"][WITHDRAW] = partial(model.batcher.withdraw, ticket, ClientGoneError(GONE))
    outcome: Outcome
    try:
        outcome = await result
    except Exception as error:
        outcome = error
    if "state" in scope:
        scope["state"].pop(WITHDRAW, None)  # it holds the inputs, and the connection keeps its last scope
    return outputs_of(model, inputs, rows, outcome)


def _failed_run(model: Model, error: Exception) -> ServiceError:
    """The error for the client; what the runtime says goes to the log, for it has paths and contents of tensors."""
    if isinstance(error, ServiceError):
        return error
    failed_runs.warning("model %s: a run failed: %s", str(model), first_line(error.__cause__ or error))
    if isinstance(error, DeviceMemoryError | DeviceLostError):
        return DeviceError(error)
    return ComputeError(f"model {model}: the run failed: {runtime_code(error)}; the service's log has the reason")
