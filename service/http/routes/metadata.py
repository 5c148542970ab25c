"""What the Open Inference Protocol tells of the server and its models: health, metadata, configuration, statistics,
readiness, the index."""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request

from service.errors import BadRequestError, NotReadyError, shown
from service.http.body import read_body, request_headers
from service.operations import EXTENSIONS, model_config, model_metadata, package_version
from service.protocol import parse_object
from service.repository import Model, Repository
from service.settings import Settings
from service.telemetry import Metrics


def metadata_routes(
    settings: Settings, repository: Repository, metrics: Metrics, ready: Callable[[], bool]
) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["v2"])

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """The process runs; 503 if its device is lost, which only a new process gets back."""
        lost = repository.lost()
        if lost is not None:
            raise NotReadyError(f"the device is lost: {lost}; start the service anew")
        return {"live": True}

    @router.get("/health/ready")
    async def server_ready() -> dict[str, bool]:
        """Requests are taken; 503 while stopping."""
        if not ready():
            raise NotReadyError("the service is starting or stopping, or has lost its device; send requests elsewhere")
        return {"ready": True}

    @router.get("")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "bnfold", "version": package_version(), "extensions": EXTENSIONS}

    @router.get("/models/stats")  # in front of the models, none of which can be asked for under this name
    async def stats() -> dict[str, Any]:
        """Statistics of every version that serves."""
        return _statistics(repository.ready())

    @router.get("/models/{name}/stats")
    async def model_stats(name: str) -> dict[str, Any]:
        """Statistics of a model's versions that serve."""
        repository.find(name)
        return _statistics([repository.find(name, version) for version in repository.versions(name)])

    @router.get("/models/{name}/versions/{version}/stats")
    async def version_stats(name: str, version: str) -> dict[str, Any]:
        """As above, for one version."""
        return _statistics([repository.find(name, version)])

    @router.get("/models/{name}/config")
    async def config(name: str) -> dict[str, Any]:
        """The model's configuration, in the form of Triton's ModelConfig."""
        return model_config(repository.find(name), settings)

    @router.get("/models/{name}/versions/{version}/config")
    async def version_config(name: str, version: str) -> dict[str, Any]:
        """As above, for one version."""
        return model_config(repository.find(name, version), settings)

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """Inputs and outputs of a model; -1 is a free dimension."""
        return model_metadata(repository.find(name), repository)

    @router.get("/models/{name}/versions/{version}")
    async def model_version(name: str, version: str) -> dict[str, Any]:
        """As above, for one version."""
        return model_metadata(repository.find(name, version), repository)

    @router.get("/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether the model serves; 503 with the reason if not."""
        return {"name": repository.find(name).name, "ready": True}

    @router.get("/models/{name}/versions/{version}/ready")
    async def version_ready(name: str, version: str) -> dict[str, Any]:
        """As above, for one version."""
        return {"name": repository.find(name, version).name, "ready": True}

    @router.post("/repository/index", openapi_extra=_INDEX_BODY)
    async def index(request: Request) -> list[dict[str, Any]]:
        """Every version with its state; `{"ready": true}` leaves out those that cannot serve."""
        body = await read_body(request_headers(request.scope), request.receive, settings.max_body_bytes)
        expected = '{"ready": true or false}, {} or an empty body'
        asked = parse_object(body, settings.max_json_depth, expected) if body else {}
        ready = asked.get("ready", False)
        if type(ready) is not bool:
            raise BadRequestError(f"ready is {shown(ready)}; expected {expected}")
        return repository.index(ready=ready)

    def _statistics(models: Iterable[Model]) -> dict[str, Any]:
        return {"model_stats": [metrics.statistics(found) for found in models]}

    return router


_INDEX_BODY = {
    "requestBody": {
        "content": {"application/json": {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}
    }
}
