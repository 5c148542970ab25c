"""The proof over HTTP: is the graph that serves, on this device and in this session, still the model that was trained?

The reference may be a torch program, so torch is imported by the first check that needs it and by nothing else here.
Checks run on a thread of their own beside the batches, one at a time; a few may wait, more are told to come back.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request, Response

from fold.errors import BnfoldError, first_line
from service.batcher import Run
from service.body import read_body, request_headers
from service.errors import (
    BadRequestError,
    BusyError,
    ClientGoneError,
    ComputeError,
    NotOfferedError,
    ServiceError,
    shown,
)
from service.infer import WITHDRAW
from service.jsontext import parse_object, render_verdict
from service.metrics import Metrics
from service.protocol import LENGTH_HEADER, decode
from service.repository import Model, Proof, Repository
from service.settings import Settings
from service.signature import Arrays
from service.worker import Worker

if TYPE_CHECKING:
    from fold.verify import Reference

MAX_WAITING = 4
"""Checks that may be under way or wait at one time."""
DEFAULT_SAMPLES = 16
EXPECTED = '{"samples": n, "seed": s}, tensors as in infer, or an empty body'

_BODY = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "samples": {"type": "integer", "minimum": 1, "default": DEFAULT_SAMPLES},
                        "seed": {"type": "integer", "minimum": 0, "default": 0},
                    },
                }
            }
        }
    }
}


class Equivalence:
    """The thread that proves, and the references that it has loaded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker = Worker("equivalence")
        self._references: dict[str, Reference] = {}
        self._under_way = 0

    async def check(
        self, model: Model, given: Arrays | None, samples: int, seed: int, request: Request
    ) -> dict[str, Any]:
        """The verdict on `given`, or on `samples` rows drawn from `seed`; remembered as the model's last proof."""
        if self._under_way >= MAX_WAITING:
            raise BusyError(
                f"{self._under_way} equivalence checks are under way and one runs at a time; try again later"
            )
        result: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        job = partial(self._prove, model, given, samples, seed, result)
        self._under_way += 1
        self._worker.submit(job, partial(self._finish, result))
        request.scope.get("state", {})[WITHDRAW] = partial(_abandon, result)
        verdict = await result
        model.proof = Proof(verdict, time.time())
        return verdict

    def stop(self) -> None:
        self._worker.stop()

    def _finish(self, result: "asyncio.Future[dict[str, Any]]", outcome: dict[str, Any] | Exception) -> None:
        self._under_way -= 1
        if result.done():
            return
        if isinstance(outcome, ServiceError):
            result.set_exception(outcome)
        elif isinstance(outcome, Exception):
            result.set_exception(ComputeError(f"the equivalence check failed: {first_line(outcome)}"))
        else:
            result.set_result(outcome)

    def _prove(
        self, model: Model, given: Arrays | None, samples: int, seed: int, result: "asyncio.Future[dict[str, Any]]"
    ) -> dict[str, Any]:
        """On the worker's thread. Raises what `_finish` turns into the answer."""
        if result.done():
            raise ClientGoneError("the client left before its check began")
        from fold.verify import compare, draw_inputs  # noqa: PLC0415  # a predict never pays for this

        rows = self._settings.max_batch_size if model.session.signature.batched else 0
        try:
            inputs = draw_inputs(model.manifest.inputs, samples, seed) if given is None else given
            verdict = compare(
                _Chunked(self._reference(model), rows),
                lambda arrays: in_chunks(model.session.run, arrays, rows),
                inputs,
                seed=seed if given is None else None,
                provider=model.session.provider,
            )
        except ModuleNotFoundError as error:
            raise NotOfferedError(
                f"model {model} is proven against {model.manifest.reference}, and {error.name} is not installed here; "
                "install bnfold with torch to check equivalence"
            ) from error
        except BnfoldError as error:
            raise ComputeError(f"model {model}: {error}") from error
        return {"model_name": model.name, "model_version": model.version, **verdict.to_dict()}

    def _reference(self, model: Model) -> "Reference":
        from fold.verify import load_reference  # noqa: PLC0415

        key = model.manifest.digest
        if key not in self._references:
            self._references[key] = load_reference(model.session.version)
        return self._references[key]


class _Chunked:
    """A reference that is asked for a batch at a time: in float64, many rows at once could fill the memory."""

    def __init__(self, reference: "Reference", rows: int) -> None:
        self._reference = reference
        self._rows = rows

    def exact(self, inputs: Arrays) -> Arrays:
        return in_chunks(self._reference.exact, inputs, self._rows)

    def unfolded(self, inputs: Arrays) -> Arrays:
        return in_chunks(self._reference.unfolded, inputs, self._rows)


def in_chunks(run: Run, inputs: Arrays, rows: int) -> Arrays:
    """Outputs of `run` on at most `rows` rows at a time, as large as the batches that are served; 0 is all at once."""
    total = len(next(iter(inputs.values()))) if rows else 0
    if total <= rows:
        return run(inputs)
    parts = [run({name: array[at : at + rows] for name, array in inputs.items()}) for at in range(0, total, rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def equivalence_routes(
    settings: Settings, repository: Repository, metrics: Metrics, equivalence: Equivalence
) -> APIRouter:
    router = APIRouter(tags=["equivalence"])

    @router.post("/v2/models/{name}/equivalence", openapi_extra=_BODY)
    async def latest(name: str, request: Request) -> Response:
        """Whether the served graph computes what the unfolded model computes, and how far they are apart."""
        return await answer(name, None, request)

    @router.post("/v2/models/{name}/versions/{version}/equivalence", openapi_extra=_BODY)
    async def of_version(name: str, version: str, request: Request) -> Response:
        """As above, for one version."""
        return await answer(name, version, request)

    async def answer(name: str, version: str | None, request: Request) -> Response:
        with metrics.counting("equivalence") as counted:
            counted.model = model = repository.find(name, version)
            headers = request_headers(request.scope)
            body = await read_body(headers, request.receive, settings.max_body_bytes)
            given, samples, seed = _read(body, headers.get(LENGTH_HEADER), model, settings)
            verdict = await equivalence.check(model, given, samples, seed, request)
            return Response(render_verdict(verdict), media_type="application/json")

    return router


def _read(body: bytes, length_header: bytes | None, model: Model, settings: Settings) -> tuple[Arrays | None, int, int]:
    """The tensors to check on, or the number of samples and the seed to draw them from."""
    if not body:
        return None, min(DEFAULT_SAMPLES, settings.max_samples), 0
    signature = model.session.signature
    if length_header is None:
        document = parse_object(body, settings.max_json_depth, EXPECTED)
        if "inputs" not in document:
            unknown = ", ".join(shown(key) for key in document if key not in ("samples", "seed"))
            if unknown:
                raise BadRequestError(f"{unknown} is not known here; expected {EXPECTED}")
            seed = document.get("seed", 0)
            if type(seed) is not int or not 0 <= seed < 1 << 32:
                raise BadRequestError(f"seed is {shown(seed)}; expected a whole number from 0 to 2^32-1")
            return None, _samples(document.get("samples", min(DEFAULT_SAMPLES, settings.max_samples)), settings), seed
    arrays = decode(body, length_header, signature, settings.max_json_depth).inputs
    signature.check(arrays, settings.max_samples)
    return arrays, 0, 0


def _samples(samples: Any, settings: Settings) -> int:
    if type(samples) is not int or not 1 <= samples <= settings.max_samples:
        raise BadRequestError(f"samples is {shown(samples)}; expected a whole number from 1 to {settings.max_samples}")
    return samples


def _abandon(result: "asyncio.Future[dict[str, Any]]") -> None:
    if not result.done():
        result.set_exception(ClientGoneError("the client left before its check was done"))
