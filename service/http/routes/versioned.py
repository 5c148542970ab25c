"""Routes of a model and of one of its versions: one table, each row of which is registered under both paths."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import getdoc
from typing import Any

from fastapi import APIRouter, Request

Handler = Callable[[Request, str, str | None], Awaitable[Any]]
"""Gets the request, the model's name and the version; None is the latest version."""


@dataclass(frozen=True, slots=True)
class VersionedRoute:
    """`path` stands behind `/v2/models/{name}` and behind `/v2/models/{name}/versions/{version}`.

    In the OpenAPI document the first has the handler's name and docstring, and the second is called `version_name`."""

    method: str
    path: str
    handler: Handler
    version_name: str
    response_model: Any = dict[str, Any]
    openapi_extra: dict[str, Any] | None = None


def add_versioned(router: APIRouter, routes: Iterable[VersionedRoute]) -> None:
    for route in routes:
        for prefix, endpoint, name, description in (
            ("/v2/models/{name}", _of_model(route.handler), route.handler.__name__, getdoc(route.handler)),
            (
                "/v2/models/{name}/versions/{version}",
                _of_version(route.handler),
                route.version_name,
                "As above, for one version.",
            ),
        ):
            router.add_api_route(
                prefix + route.path,
                endpoint,
                methods=[route.method],
                name=name,
                description=description,
                response_model=route.response_model,
                openapi_extra=route.openapi_extra,
            )


# FastAPI takes path parameters from the signature, so each path has a function of its own.


def _of_model(handler: Handler) -> Callable[..., Awaitable[Any]]:
    async def of_model(request: Request, name: str) -> Any:
        return await handler(request, name, None)

    return of_model


def _of_version(handler: Handler) -> Callable[..., Awaitable[Any]]:
    async def of_version(request: Request, name: str, version: str) -> Any:
        return await handler(request, name, version)

    return of_version
