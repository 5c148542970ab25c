"""The routes that a browser opens."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from service.batching import on_thread
from service.http.page.docs import render_docs
from service.http.page.index import Page, SelfContainedPage, read_report, render_page
from service.http.page.static import static_file
from service.repository import Repository


def page_routes(repository: Repository, ready: Callable[[], bool], openapi: Callable[[], dict[str, Any]]) -> APIRouter:
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
    async def report(name: str, version: str) -> SelfContainedPage:
        """The report that `bnfold fold` wrote for this version."""
        folder = repository.find(name, version).session.version.path
        read = partial(read_report, folder, f"{name}/{version}")
        return SelfContainedPage(await on_thread("read a report", read))

    return router
