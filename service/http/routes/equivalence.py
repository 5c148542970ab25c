"""The proof over HTTP: whether the served graph, on this device and in this session, computes what the unfolded model
computes. `service.http.routes.proofs` runs the checks.

A client that accepts `text/event-stream` gets each step as it begins, parts as they are done, then the verdict.
"""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from service.budget import Body, Budget
from service.errors import BadRequestError, ClientGoneError, ServiceError, shown
from service.headers import LENGTH_HEADER
from service.http.body import read_body, request_headers
from service.http.routes.events import MEDIA_TYPE, Events, wants_events
from service.http.routes.proofs import GONE, ProofQueue
from service.http.routes.versioned import VersionedRoute, add_versioned
from service.operations import Shared
from service.proof import DEFAULT_SAMPLES, DEFAULT_SEARCH_SECONDS, PARTS, CheckRequest, prove
from service.protocol import Steps, decode, decode_in_pieces, is_long, json_bytes, parse_object, render_verdict
from service.repository import Model, Proof
from service.settings import Settings
from service.telemetry import Metrics

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


def equivalence_routes(shared: Shared, proofs: ProofQueue) -> APIRouter:
    settings, repository, metrics, budget = shared.settings, shared.repository, shared.metrics, shared.budget
    router = APIRouter(tags=["equivalence"])

    async def latest(request: Request, name: str, version: str | None) -> Response:
        """Whether the served graph computes what the unfolded model computes, and how far they are apart. With
        `Accept: text/event-stream` each step and part is sent when it is known."""
        with metrics.counting("equivalence") as counted:
            counted.model = model = repository.find(name, version)
            headers = request_headers(request.scope)
            body = await read_body(headers, request.receive, settings.max_body_bytes, budget)
            length = headers.get(LENGTH_HEADER)
            if body and is_long(body, json_bytes(body, length)):
                asked = await shared.turns.run(_read_in_pieces(body, length, model, settings, budget))
            else:
                asked = _read(body, length, model, settings, budget)
            events = Events() if wants_events(headers) else None
            tell = _silent if events is None else events.tell
            job = partial(prove, model, asked, settings.max_batch_size, tell)
            result = proofs.submit(model, job, request.scope)
            result.add_done_callback(partial(_keep, model))
            if events is None:
                return Response(render_verdict(await result), media_type="application/json")
            counted.later = True
            result.add_done_callback(partial(_count, metrics, model))
            stream = events.stream(result, "verdict")
            return StreamingResponse(stream, media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})

    async def checks(request: Request, name: str, version: str | None) -> Response:
        """The certificate that was published with the model, and the checks since it was loaded, the last one first."""
        model = repository.find(name, version)
        made = [{"at": _time(proof.at), "verdict": proof.verdict} for proof in reversed(model.checks)]
        published = {"at": model.manifest.created, "verdict": model.manifest.verdict}
        return Response(render_verdict({"published": published, "checks": made}), media_type="application/json")

    routes = (
        VersionedRoute("POST", "/equivalence", latest, "of_version", response_model=None, openapi_extra=_BODY),
        VersionedRoute("GET", "/equivalence", checks, "checks_of_version", response_model=None),
    )
    add_versioned(router, routes)
    return router


def _silent(name: str, data: dict[str, Any]) -> None:
    """Tells nobody."""


def _keep(model: Model, result: asyncio.Future[dict[str, Any]]) -> None:
    """Keep the verdict as the model's last check."""
    if not result.cancelled() and result.exception() is None:
        model.checks.append(Proof(result.result(), time.time()))


def _count(metrics: Metrics, model: Model, result: asyncio.Future[dict[str, Any]]) -> None:
    """Count a check whose answer began before its verdict was known."""
    error = ClientGoneError(GONE) if result.cancelled() else result.exception()
    if error is None:
        metrics.answered("equivalence", model)
    else:
        metrics.failed("equivalence", model, error if isinstance(error, ServiceError) else ServiceError())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


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


def _read(body: Body, length_header: bytes | None, model: Model, settings: Settings, budget: Budget) -> CheckRequest:
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
    arrays = decode(body, length_header, signature, settings.max_json_depth, budget).inputs
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
