"""The proof over HTTP: whether the served graph, on this device and in this session, computes what the unfolded model
computes.

Checks run one at a time on a thread of their own, beside the batches; a few may wait, and more are refused with 429. A
check whose client has left, or whose time is up, ends before its next batch of rows.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from fold.errors import BnfoldError, is_out_of_files
from fold.runtime import runtime_code, without_runtime_words
from fold.serving import DeviceLostError, DeviceMemoryError
from service.batching import Worker
from service.budget import Body, Budget
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
    shown,
)
from service.headers import LENGTH_HEADER
from service.http.body import read_body, request_headers
from service.http.routes.versioned import VersionedRoute, add_versioned
from service.operations import WITHDRAW, Turns
from service.proof import DEFAULT_SAMPLES, DEFAULT_SEARCH_SECONDS, PARTS, CheckRequest, References, not_installed, prove
from service.protocol import PIECE, Steps, decode, decode_in_pieces, json_bytes, parse_object, render_verdict
from service.repository import Model, Proof, Repository
from service.settings import Settings
from service.telemetry import Metrics

MAX_WAITING = 4
"""Checks that may run or wait at one time."""
MAX_SEED = (1 << 32) - 1
EXPECTED = '{"samples": n, "seed": s, "parts": [...]}, tensors as in infer, or an empty body'

_BODY = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "samples": {"type": "integer", "minimum": 1, "default": DEFAULT_SAMPLES},
                        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
                        "parts": {"type": "array", "items": {"enum": list(PARTS)}, "default": []},
                        "search_seconds": {
                            "type": "number",
                            "exclusiveMinimum": 0,
                            "default": DEFAULT_SEARCH_SECONDS,
                        },
                    },
                }
            }
        }
    }
}

STOPPING = "the service is stopping and proves nothing any more; ask another, or this one when it has started again"

log = logging.getLogger("bnfold")

Result = asyncio.Future[dict[str, Any]]


class Equivalence:
    """The thread that checks, and the checks that wait for it."""

    def __init__(self, settings: Settings, references: References) -> None:
        self._settings = settings
        self._worker = Worker("equivalence")
        self._references = references
        self._under_way = 0
        self._results: set[Result] = set()
        """Of the checks that somebody waits for."""
        self._stopping = False

    @property
    def computes(self) -> bool:
        """Whether the thread has a check, of which a step may take any time."""
        return self._under_way > 0

    async def check(self, model: Model, asked: CheckRequest, request: Request) -> dict[str, Any]:
        """The verdict as JSON, which is also kept as the model's last proof.

        Raises `BusyError` if too many checks wait, `OverdueError` after `equivalence_seconds`, `ClientGoneError` if the
        client leaves, `ComputeError` if the check fails, `NotReadyError` once the service stops."""
        if self._stopping:
            raise NotReadyError(STOPPING)
        if self._under_way >= MAX_WAITING:
            raise BusyError(
                f"{self._under_way} equivalence checks are under way and one runs at a time; try again later"
            )
        loop = asyncio.get_running_loop()
        result: Result = loop.create_future()
        self._results.add(result)
        self._under_way += 1
        self._worker.submit(partial(self._prove, model, asked, result), partial(self._finish, result))
        gone = ClientGoneError("the client left before its check was done")
        request.scope.get("state", {})[WITHDRAW] = partial(_abandon, result, gone)
        seconds = self._settings.equivalence_seconds
        overdue = OverdueError(f"model {model}: not proven within {seconds:g} seconds; ask for fewer samples or parts")
        timer = loop.call_later(seconds, _abandon, result, overdue)
        try:
            verdict = await result
        finally:
            timer.cancel()
            self._results.discard(result)
            result.cancel()  # ends the check if this task was cancelled
        model.proof = Proof(verdict, time.time())
        return verdict

    def abandon(self) -> None:
        """Answer all checks with 503 at once, and take no other: a proof may take longer than there is to stop. May be
        called by a signal handler."""
        self._stopping = True
        for result in tuple(self._results):
            result.get_loop().call_soon_threadsafe(_abandon, result, NotReadyError(STOPPING))

    def stop(self) -> None:
        self._worker.stop()

    def _finish(self, result: Result, outcome: dict[str, Any] | Exception) -> None:
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

    def _prove(self, model: Model, asked: CheckRequest, result: Result) -> dict[str, Any]:
        """Runs on the worker's thread. `_finish` turns what it raises into the answer."""

        def halt() -> None:
            if result.done():
                raise ClientGoneError("nobody waits for this check any more")

        halt()
        with self._references.lock:
            reference = self._references.of(model)
            try:
                return prove(model, reference, asked, self._settings.max_batch_size, halt)
            except ModuleNotFoundError as error:
                raise not_installed(model, error) from error
            except (DeviceMemoryError, DeviceLostError) as error:
                raise DeviceError(error) from error
            except BnfoldError as error:
                if is_out_of_files(error):
                    raise OutOfFilesError from error
                log.warning("bnfold: model %s: an equivalence check failed: %s", str(model), error)
                raise ComputeError(f"model {model}: {without_runtime_words(error)}") from error


def equivalence_routes(
    settings: Settings, repository: Repository, metrics: Metrics, equivalence: Equivalence, budget: Budget, turns: Turns
) -> APIRouter:
    router = APIRouter(tags=["equivalence"])

    async def latest(request: Request, name: str, version: str | None) -> Response:
        """Whether the served graph computes what the unfolded model computes, and how far they are apart."""
        with metrics.counting("equivalence") as counted:
            counted.model = model = repository.find(name, version)
            headers = request_headers(request.scope)
            body = await read_body(headers, request.receive, settings.max_body_bytes, budget)
            length = headers.get(LENGTH_HEADER)
            if body and json_bytes(body, length) > PIECE:
                asked = await turns.run(_read_in_pieces(body, length, model, settings, budget))
            else:
                asked = _read(body, length, model, settings)
            verdict = await equivalence.check(model, asked, request)
            return Response(render_verdict(verdict), media_type="application/json")

    route = VersionedRoute("POST", "/equivalence", latest, "of_version", response_model=None, openapi_extra=_BODY)
    add_versioned(router, [route])
    return router


def _read_in_pieces(
    body: Body, length_header: bytes | None, model: Model, settings: Settings, budget: Budget
) -> Steps[CheckRequest]:
    """As `_read`, for tensors with much JSON."""
    signature, most = model.signature, settings.max_samples
    steps = decode_in_pieces(body, length_header, signature, settings.max_json_depth, most, budget)
    request, document = yield from steps
    signature.check(request.inputs, most)
    return CheckRequest(
        given=request.inputs, parts=_parts(document), search_seconds=_search_seconds(document, settings)
    )


def _read(body: Body, length_header: bytes | None, model: Model, settings: Settings) -> CheckRequest:
    """What the body asks for. Tensors are sent as in infer, with `parts` and `search_seconds` beside `inputs`."""
    samples = min(DEFAULT_SAMPLES, settings.max_samples)
    if not body:
        return CheckRequest(samples=samples)
    document: dict[str, Any] = {}
    if length_header is None:
        document = _given(parse_object(body, settings.max_json_depth, EXPECTED))
    if length_header is None and "inputs" not in document:
        unknown = ", ".join(shown(k) for k in document if k not in ("samples", "seed", "parts", "search_seconds"))
        if unknown:
            raise BadRequestError(f"{unknown} is not known here; expected {EXPECTED}")
        return CheckRequest(
            samples=_whole("samples", document.get("samples", samples), 1, settings.max_samples),
            seed=_whole("seed", document.get("seed", 0), 0, MAX_SEED),
            parts=_parts(document),
            search_seconds=_search_seconds(document, settings),
        )
    signature = model.signature
    arrays = decode(body, length_header, signature, settings.max_json_depth).inputs
    signature.check(arrays, settings.max_samples)
    if length_header is not None and (length := int(length_header)):  # which `decode` has checked
        document = _given(parse_object(body[:length], settings.max_json_depth, EXPECTED))
    return CheckRequest(given=arrays, parts=_parts(document), search_seconds=_search_seconds(document, settings))


def _given(document: dict[str, Any]) -> dict[str, Any]:
    """What is not null: null is as good as left out."""
    return {key: value for key, value in document.items() if value is not None}


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadRequestError(f"{name} is {shown(value)}; expected a whole number from {least} to {most}")
    return value


def _parts(document: dict[str, Any]) -> tuple[str, ...]:
    parts = document.get("parts", [])
    if type(parts) is not list or any(part not in PARTS for part in parts):
        raise BadRequestError(f"parts is {shown(parts)}; expected a list of {', '.join(map(repr, PARTS))}")
    return tuple(parts)


def _search_seconds(document: dict[str, Any], settings: Settings) -> float:
    seconds = document.get("search_seconds", DEFAULT_SEARCH_SECONDS)
    most = settings.equivalence_seconds
    if type(seconds) not in (int, float) or ("search_seconds" in document and not 0 < seconds <= most):
        raise BadRequestError(f"search_seconds is {shown(seconds)}; expected a number above 0, at most {most:g}")
    return float(seconds)


def _abandon(result: Result, error: ServiceError) -> None:
    if not result.done():
        result.set_exception(error)
