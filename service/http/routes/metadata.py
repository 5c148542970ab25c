"""The Open Inference Protocol's routes that describe the server and its models: health, metadata, configuration,
statistics, readiness, the index."""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request

from service.budget import Budget
from service.errors import BadRequestError, NotReadyError, shown
from service.http.body import PLAIN_BODY, read_body, request_headers
from service.http.routes.versioned import VersionedRoute, add_versioned
from service.operations import EXTENSIONS, model_config, model_metadata, package_version
from service.protocol import parse_object
from service.repository import Model, Repository
from service.settings import Settings
from service.telemetry import Metrics


def metadata_routes(
    settings: Settings, repository: Repository, metrics: Metrics, ready: Callable[[], bool], budget: Budget
) -> APIRouter:
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
        """Name, version and extensions of the server."""
        return {"name": "bnfold", "version": package_version(), "extensions": EXTENSIONS}

    @router.get("/v2/models/stats")  # before the models, so that no model can be asked for under this name
    async def stats() -> dict[str, Any]:
        """Statistics of every version that serves."""
        return _statistics(metrics, repository.ready())

    add_versioned(router, _model_routes(settings, repository, metrics))

    @router.post("/v2/repository/index", openapi_extra=_INDEX_BODY)
    async def index(request: Request) -> list[dict[str, Any]]:
        """Every version with its state; `{"ready": true}` leaves out those that cannot serve."""
        body = await read_body(request_headers(request.scope), request.receive, PLAIN_BODY, budget)
        expected = '{"ready": true or false}, {} or an empty body'
        asked = parse_object(body, settings.max_json_depth, expected) if body else {}
        ready = asked.get("ready")
        if ready is None:
            ready = False
        if type(ready) is not bool:
            raise BadRequestError(f"ready is {shown(ready)}; expected {expected}")
        return repository.index(ready=ready)

    return router


def _model_routes(settings: Settings, repository: Repository, metrics: Metrics) -> tuple[VersionedRoute, ...]:
    async def model_stats(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Statistics of a model's versions that serve."""
        found = repository.find(name, version)
        if version is not None:
            return _statistics(metrics, [found])
        return _statistics(metrics, [repository.find(name, each) for each in repository.versions(name)])

    async def config(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """The model's configuration, in the form of Triton's ModelConfig."""
        return model_config(repository.find(name, version), settings)

    async def model(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Inputs and outputs of a model; -1 is a free dimension."""
        return model_metadata(repository.find(name, version), repository)

    async def model_ready(request: Request, name: str, version: str | None) -> dict[str, Any]:
        """Whether the model serves; 503 with the reason if not."""
        return {"name": repository.find(name, version).name, "ready": True}

    return (
        VersionedRoute("GET", "/stats", model_stats, "version_stats"),
        VersionedRoute("GET", "/config", config, "version_config"),
        VersionedRoute("GET", "", model, "model_version"),
        VersionedRoute("GET", "/ready", model_ready, "version_ready"),
    )


def _statistics(metrics: Metrics, models: Iterable[Model]) -> dict[str, Any]:
    return {"model_stats": [metrics.statistics(model) for model in models]}


_INDEX_BODY = {
    "requestBody": {
        "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}
    }
}
