"""`POST /v2/repository/models/{name}/load` and `/unload`: the protocol's model repository extension.

Off unless the setting `repository_control` is `explicit`; needs an admin's token. A load that fails is answered with
400 and the reason, as in Triton, and what served before goes on serving.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.http.body import PLAIN_BODY, read_body, request_headers
from service.operations import Shared, authorize, refuse_files
from service.protocol import Parameters, flag, parameters_of, parse_object

_LOAD_BODY, _UNLOAD_BODY = (
    {
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"type": "object", "properties": {"parameters": {"type": "object", "properties": known}}}
                }
            }
        }
    }
    for known in ({}, {"unload_dependents": {"type": "boolean"}})
)


def control_routes(shared: Shared) -> APIRouter:
    settings, repository, metrics = shared.settings, shared.repository, shared.metrics
    explicit = settings.repository_control == "explicit"
    router = APIRouter(prefix="/v2/repository/models", tags=["v2"], include_in_schema=explicit)

    @router.post("/{name}/load", openapi_extra=_LOAD_BODY)
    async def load(name: str, request: Request) -> Response:
        """Serve what is in the repository now; needs an admin's token. The old version serves until the new one can."""
        with metrics.counting("load"):
            refuse_files(await parameters(request))
            await repository.load_model(name)
            return Response()

    @router.post("/{name}/unload", openapi_extra=_UNLOAD_BODY)
    async def unload(name: str, request: Request) -> Response:
        """Answer what was accepted, then let all versions go; needs an admin's token."""
        with metrics.counting("unload"):
            flag(
                await parameters(request), "unload_dependents", default=False
            )  # checked only: no model depends on another
            await repository.unload_model(name)
            return Response()

    async def parameters(request: Request) -> Parameters:
        authorize(settings, shared.access, request.scope["headers"])
        body = await read_body(request_headers(request.scope), request.receive, PLAIN_BODY, shared.budget)
        expected = '{"parameters": {...}}, {} or an empty body'
        document: dict[str, Any] = parse_object(body, settings.max_json_depth, expected) if body else {}
        return parameters_of(document)

    return router
