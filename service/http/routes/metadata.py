"""Routes that describe the server and its models: those of the Open Inference Protocol (health, metadata,
configuration, statistics, readiness, the index), and traffic, versions and BatchNorms."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import BadRequestError, NotReadyError, shown
from service.http.body import PLAIN_BODY, read_body, request_headers
from service.http.routes.proofs import ProofQueue
from service.http.routes.versioned import VersionedRoute, add_versioned
from service.operations import (
    EXTENSIONS,
    Shared,
    example_request,
    model_config,
    model_metadata,
    model_version,
    model_versions,
    package_version,
)
from service.protocol import parse_object, render_json, render_verdict
from service.repository import Model
from service.telemetry import Metrics, Traffic


def metadata_routes(
    shared: Shared,
    traffic: Traffic,
    proofs: ProofQueue,
    ready: Callable[[], bool],
    grpc_port: Callable[[], int | None],
) -> APIRouter:
    settings, repository, metrics = shared.settings, shared.repository, shared.metrics
    router = APIRouter(tags=["v2"])

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process runs; 503 if its device is lost, which only a new process gets back."""
        lost = repository.lost()
        if lost is not None:
            raise NotReadyError(f"the device is lost: {lost}; start the service anew")
        return {"live": True}

    @router.get("/v2/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Requests are taken; 503 while stopping, and if readiness is strict, while a version is broken."""
        if not ready():
            strict = ", or a version is broken (POST /v2/repository/index)" if settings.readiness == "strict" else ""
            raise NotReadyError(
                f"the service is starting or stopping, or has lost its device{strict}; send requests elsewhere"
            )
        return {"ready": True}

    @router.get("/v2")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server, and its port for gRPC if it has one."""
        port = grpc_port()
        return {"name": "bnfold", "version": package_version(), "extensions": EXTENSIONS, "grpc_port": port}

    @router.get("/v2/models/stats")  # before the models, so that no model can be asked for under this name
    async def stats() -> dict[str, Any]:
        """Statistics of every version that serves."""
        return _statistics(metrics, repository.ready())

    @router.get("/v2/traffic", response_model=None)
    async def requests() -> Response:
        """Requests of the last quarter of an hour, for every version that serves, and the memory of the process and the
        GPUs meanwhile."""
        return _numbers(traffic.requests())

    @router.get("/v2/repository/models/{name}/versions")
    async def versions(name: str) -> dict[str, Any]:
        """Every version of a model that is known or on disk: state, reason, digests, where it comes from."""
        return {"name": name, "versions": await model_versions(repository, name)}

    @router.get("/v2/repository/models/{name}/versions/{version}", response_model=None)
    async def version(name: str, version: str) -> Response:
        """The same of one version, and in `fold` what became of each BatchNorm."""
        return Response(render_verdict(await model_version(repository, name, version)), media_type="application/json")

    add_versioned(router, _model_routes(shared, traffic, proofs))

    @router.post("/v2/repository/index", openapi_extra=_INDEX_BODY)
    async def index(request: Request) -> list[dict[str, Any]]:
        """Every version with its state; `{"ready": true}` leaves out those that cannot serve."""
        body = await read_body(request_headers(request.scope), request.receive, PLAIN_BODY, shared.budget)
        expected = '{"ready": true or false}, {} or an empty body'
        asked = parse_object(body, settings.max_json_depth, expected) if body else {}
        ready = asked.get("ready")
        if ready is None:
            ready = False
        if type(ready) is not bool:
            raise BadRequestError(f"ready is {shown(ready)}; expected {expected}")
        return repository.index(ready=ready)

    return router


def _model_routes(shared: Shared, traffic: Traffic, proofs: ProofQueue) -> tuple[VersionedRoute, ...]:
    repository, metrics = shared.repository, shared.metrics

    async def model_stats(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Statistics of a model's versions that serve."""
        found = repository.find(name, version)
        if version is not None:
            return _statistics(metrics, [found])
        return _statistics(metrics, [repository.find(name, each) for each in repository.versions(name)])

    async def config(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """The model's configuration, in the form of Triton's ModelConfig."""
        return model_config(repository.find(name, version), shared.settings)

    async def model(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Inputs and outputs of a model; -1 is a free dimension."""
        return model_metadata(repository.find(name, version), repository)

    async def model_ready(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Whether the model serves; 503 with the reason if not."""
        return {"name": repository.find(name, version).name, "ready": True}

    async def model_traffic(request: Request, name: str, version: str | None) -> Response:
        """Requests, quantiles of queueing and computing, batch sizes and errors of the last quarter of an hour."""
        return _numbers(traffic.of(repository.find(name, version)))

    async def example(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """A body for infer with one row that the model was published with."""
        return await example_request(repository.find(name, version))

    async def batchnorms(request: Request, name: str, version: str | None) -> Response:
        """What became of each BatchNorm; with the query `statistics=true` also what `bnfold inspect` says of it, and
        with `number=1` what a page draws of the first one. This is computed once, as a proof is."""
        model = repository.find(name, version)
        fold = model.manifest.fold
        content = {
            "batchnorms": fold.get("batchnorms", 0),
            "folded": fold.get("folded", ()),
            "kept": fold.get("kept", ()),
        }
        statistics, number = request.query_params.get("statistics") == "true", request.query_params.get("number")
        if statistics or number is not None:
            inspection = await proofs.inspection(model, request.scope)
            if statistics:
                content["inspection"] = inspection.to_dict()
            if number is not None:
                content["detail"] = inspection.details[_place(number, len(inspection.details))].to_dict()
        return Response(render_verdict(content), media_type="application/json")

    async def layers(request: Request, name: str, version: str | None) -> Response:
        """The largest error of each layer of the unfolded and of the folded graph, relative to the layer's largest
        value, on a few rows that are drawn. Computed once, as a proof is."""
        found = await proofs.layers(repository.find(name, version), request.scope)
        return Response(render_verdict(found), media_type="application/json")

    return (
        VersionedRoute("GET", "/traffic", model_traffic, "version_traffic", response_model=None),
        VersionedRoute("GET", "/example", example, "version_example"),
        VersionedRoute(
            "GET", "/batchnorms", batchnorms, "version_batchnorms", response_model=None, openapi_extra=_STATISTICS
        ),
        VersionedRoute("GET", "/layers", layers, "version_layers", response_model=None),
        VersionedRoute("GET", "/stats", model_stats, "version_stats"),
        VersionedRoute("GET", "/config", config, "version_config"),
        VersionedRoute("GET", "", model, "model_version"),
        VersionedRoute("GET", "/ready", model_ready, "version_ready"),
    )


def _place(number: str, count: int) -> int:
    """The index of a BatchNorm whose number counts from 1."""
    if not (re.fullmatch("[0-9]{1,9}", number) and 1 <= int(number) <= count):
        raise BadRequestError(f"number is {shown(number)}; expected that of a BatchNorm, from 1 to {count}")
    return int(number) - 1


def _numbers(content: dict[str, Any]) -> Response:
    """JSON of many numbers, which the framework would look at one by one. Pages ask for it again and again."""
    return Response(render_json(content), media_type="application/json")


def _statistics(metrics: Metrics, models: Iterable[Model]) -> dict[str, Any]:
    return {"model_stats": [metrics.statistics(model) for model in models]}


_STATISTICS = {
    "parameters": [
        {"name": "statistics", "in": "query", "schema": {"type": "boolean", "default": False}},
        {"name": "number", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    ]
}
_INDEX_BODY = {
    "requestBody": {
        "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}
    }
}
