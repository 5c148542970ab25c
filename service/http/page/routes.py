"""The routes that a browser opens."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from service.batching import on_thread
from service.http.page.docs import render_docs
from service.http.page.index import Page, ReportPage, read_report, render_page
from service.http.page.static import static_file
from service.http.routes import ProofQueue
from service.repository import Repository

if TYPE_CHECKING:
    from fold.inspection import Inspection


def page_routes(
    repository: Repository, proofs: ProofQueue, ready: Callable[[], bool], openapi: Callable[[], dict[str, Any]]
) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Page:
        return Page(render_page(repository, ready=ready(), base_url=str(request.base_url)))

    @router.get("/docs")
    async def docs(request: Request) -> Page:
        return Page(render_docs(openapi(), repository, str(request.base_url)))

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        return static_file(name, request.headers.get("if-none-match", ""))

    @router.get("/models/{name}/versions/{version}/report")
    async def report(name: str, version: str) -> ReportPage:
        """The report that `bnfold fold` wrote for this version."""
        folder = repository.find(name, version).session.version.path
        read = partial(read_report, folder, f"{name}/{version}")
        return ReportPage(await on_thread("read a report", read))

    @router.get("/models/{name}/versions/{version}/inspection")
    async def inspection(request: Request, name: str, version: str) -> ReportPage:
        """The page of `bnfold inspect` for the unfolded graph of this version."""
        model = repository.find(name, version)
        found = await proofs.inspection(model, request.scope)
        return ReportPage(await on_thread("write an inspection", partial(_inspection_page, found, str(model))))

    return router


def _inspection_page(inspection: "Inspection", model: str) -> str:
    from fold.reports import inspection_page  # noqa: PLC0415  # loads onnx

    return inspection_page(inspection, model)
