"""The thread that runs what needs a model's reference, and the requests that wait for it.

One job runs at a time, beside the batches; a few may wait, and more are refused with 429. A job whose client has left,
or whose time is up, ends before its next batch of rows; ONNX Runtime and the float64 evaluator end before their next
node, or the next iteration of a Loop, which may never end by itself.
"""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import onnxruntime as ort
from starlette.types import Scope

from fold.errors import BnfoldError, is_out_of_files
from fold.inputs import UndrawableError
from fold.runtime import ended_by, runtime_code, without_runtime_words
from fold.serving import DeviceLostError, DeviceMemoryError
from service.batching import Worker
from service.errors import (
    BadRequestError,
    BusyError,
    ClientGoneError,
    ComputeError,
    DeviceError,
    NotReadyError,
    OutOfFilesError,
    OverdueError,
    ServiceError,
)
from service.operations import WITHDRAW
from service.proof import Job, References, inspect_batchnorms, measure_layers, not_installed
from service.repository import Model
from service.settings import Settings

if TYPE_CHECKING:
    from fold.inspection import Inspection

MAX_WAITING = 4
"""Jobs that may run or wait at one time."""
GONE = "the client left before its check was done"
STOPPING = "the service is stopping and proves nothing any more; ask another, or this one when it has started again"

log = logging.getLogger("bnfold")

T = TypeVar("T")


class ProofQueue:
    def __init__(self, settings: Settings, references: References) -> None:
        self._settings = settings
        self._worker = Worker("equivalence")
        self._references = references
        self._under_way = 0
        self._results: set[asyncio.Future[Any]] = set()
        """Of the jobs that somebody waits for."""
        self._stopping = False

    @property
    def computes(self) -> bool:
        """Whether the thread has a job, of which a step may take any time."""
        return self._under_way > 0

    def submit(self, model: Model, job: Job[T], scope: Scope) -> asyncio.Future[T]:
        """Queue a job for a request. The job ends before its next step if the result is cancelled.

        Raises `BusyError` if too many jobs wait, `NotReadyError` once the service stops. The result raises
        `OverdueError` after `equivalence_seconds`, `ClientGoneError` if the client leaves, `ComputeError` if the job
        fails."""
        if self._stopping:
            raise NotReadyError(STOPPING)
        if self._under_way >= MAX_WAITING:
            raise BusyError(
                f"{self._under_way} equivalence checks are under way and one runs at a time; try again later"
            )
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self._results.add(result)
        self._under_way += 1
        options = ort.RunOptions()
        self._worker.submit(partial(self._run, model, job, result, options), partial(self._finish, result))
        state = scope.get("state", {})
        state[WITHDRAW] = partial(_abandon, result, ClientGoneError(GONE))
        seconds = self._settings.equivalence_seconds
        overdue = OverdueError(f"model {model}: not proven within {seconds:g} seconds; ask for fewer samples or parts")
        timer = loop.call_later(seconds, _abandon, result, overdue)

        def settle(result: asyncio.Future[T]) -> None:
            timer.cancel()
            options.terminate = True
            state.pop(WITHDRAW, None)  # it holds the result, and the connection keeps its last scope
            self._results.discard(result)

        result.add_done_callback(settle)
        return result

    async def inspection(self, model: Model, scope: Scope) -> "Inspection":
        """What `bnfold inspect` says of a model; computed for the first request. Raises as `submit`."""
        if model.inspection is None:
            model.inspection = await self.submit(model, partial(inspect_batchnorms, model), scope)
        return model.inspection

    async def layers(self, model: Model, scope: Scope) -> dict[str, Any]:
        """The errors of a model's layers; computed for the first request. Raises as `submit`."""
        if model.layers is None:
            model.layers = await self.submit(model, partial(measure_layers, model), scope)
        return model.layers

    def abandon(self) -> None:
        """Answer all jobs with 503 at once, and take no other: a proof may take longer than there is to stop. May be
        called by a signal handler."""
        self._stopping = True
        for result in tuple(self._results):
            result.get_loop().call_soon_threadsafe(_abandon, result, NotReadyError(STOPPING))

    def stop(self) -> None:
        self._worker.stop()

    def _finish(self, result: asyncio.Future[T], outcome: T | Exception) -> None:
        self._under_way -= 1
        if result.done():
            return
        if isinstance(outcome, ServiceError):
            result.set_exception(outcome)
        elif isinstance(outcome, Exception):
            log.error("bnfold: an equivalence check failed", exc_info=outcome)
            text = f"the equivalence check failed: {runtime_code(outcome)}; the service's log has the reason"
            result.set_exception(ComputeError(text))
        else:
            result.set_result(outcome)

    def _run(self, model: Model, job: Job[T], result: asyncio.Future[T], options: ort.RunOptions) -> T:
        """Runs on the worker's thread. `_finish` turns what it raises into the answer."""

        def halt() -> None:
            if result.done():
                raise ClientGoneError("nobody waits for this check any more")

        halt()
        with self._references.lock, ended_by(options):
            reference = self._references.of(model)
            try:
                return job(reference, halt)
            except ModuleNotFoundError as error:
                raise not_installed(model, error) from error
            except (DeviceMemoryError, DeviceLostError) as error:
                raise DeviceError(error) from error
            except UndrawableError as error:
                raise BadRequestError(f"model {model}: {error}") from error
            except BnfoldError as error:
                halt()  # it was ended
                if is_out_of_files(error):
                    raise OutOfFilesError from error
                log.warning("bnfold: model %s: an equivalence check failed: %s", str(model), error)
                raise ComputeError(f"model {model}: {without_runtime_words(error)}") from error


def _abandon(result: asyncio.Future[Any], error: ServiceError) -> None:
    if not result.done():
        result.set_exception(error)
