"""The application: one process that serves the Open Inference Protocol and the v1 convention.

`create_app` builds it from the settings, with the middleware that they ask for, and loads nothing; models are loaded
when a server starts it: ours, or any other of ASGI. Infer and predict are answered before FastAPI's middleware and
routing, which would take longer than the rest of the request.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from socket import socket
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from fold.errors import is_out_of_files
from fold.runtime import cores, thread_limits
from service.access import Access
from service.budget import Budget, default_limit
from service.errors import OutOfFilesError, ServiceError, error_body
from service.http import (
    FastPath,
    HeadCache,
    add_middleware,
    bind,
    error_answer,
    failure,
    infer_target,
    predict_target,
    respond,
    run_server,
)
from service.http.page import locked_page, page_routes, wants_page
from service.http.routes import (
    PATHS,
    Infer,
    Predict,
    ProofQueue,
    control_routes,
    equivalence_routes,
    metadata_routes,
    v1_routes,
)
from service.operations import Shared, Turns, package_version
from service.proof import References, ShadowChecker
from service.repository import Model, Poller, Repository
from service.settings import Settings
from service.telemetry import Metrics, Traffic, configure_logging
from service.tls import Certificate

if TYPE_CHECKING:
    from service.grpc import GrpcServer

log = logging.getLogger("bnfold")

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter while others wait for it, a tenth of Python's default. A run on a thread
takes it several times, and each time waited for the event loop while that read a large body."""
LEFT_OUT = 8
"""How many versions that are not served the log names at the start."""


class Application(FastAPI):
    """FastAPI with our middleware around it, infer and predict answered before it, and the state that all routes share.

    Raises `BnfoldError` if a package of the middleware is missing."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            title="bnfold",
            version=package_version(),
            description="Serves networks with folded BatchNorm, and proves on request that they compute the same.",
            lifespan=_lifespan,
            redirect_slashes=False,  # a redirect would not be {"error": …}
            docs_url=None,  # the framework's pages load scripts from elsewhere
            redoc_url=None,
        )
        self.settings = settings
        self.access = Access(settings)
        self.budget = Budget(settings.max_bytes_in_flight or default_limit())
        self.repository = Repository(settings)
        self.poller: Poller | None = None
        self.metrics = Metrics(self.repository, self.is_ready, self.budget)
        self.traffic = Traffic(self.repository, self.metrics)
        references = References()
        self.shared = Shared(settings, self.repository, self.metrics, self.access, self.budget, Turns(self.budget))
        self.proofs = ProofQueue(settings, references)
        self.shadow_checker = ShadowChecker(settings.shadow, references)
        self.infer = Infer(self.shared)
        self.predict = Predict(self.shared, self.proofs)
        route: ASGIApp = self._route
        self._answer = add_middleware(route, settings)
        self.fast_path: FastPath | None = None
        """Answers infer and predict on a connection of our server; None where middleware must see every request."""
        if self._answer is route:
            heads = HeadCache(settings.max_body_bytes)
            self.fast_path = FastPath(heads, {"infer": self.infer, "predict": self.predict})
        self.grpc: GrpcServer | None = None
        self.started = False
        self.stopping = False

    def takes_requests(self) -> bool:
        """Readiness: false until the models are loaded, after the first signal to stop, and if the device is lost."""
        return self.started and not self.stopping and self.repository.lost() is None

    def is_ready(self) -> bool:
        """What health answers: whether requests are taken and, if `readiness` is strict, no version is broken."""
        return self.takes_requests() and (self.settings.readiness == "lenient" or self.repository.all_ready())

    def stop_being_ready(self) -> None:
        self.stopping = True
        self.repository.stop_loading()
        self.proofs.abandon()
        if self.grpc is not None:
            self.grpc.stop_being_ready()

    def load(self) -> None:
        """Load the models. Raises `BnfoldError` if nothing can be served."""
        if self.settings.repository_control == "watch":
            self.poller = Poller(self.repository)
        self.repository.load()

    def grpc_port(self) -> int | None:
        return None if self.grpc is None else self.grpc.port

    def add_grpc(self, listener: socket, certificate: Certificate | None) -> None:
        """Prepare the protocol over gRPC, on the port that `listener` holds."""
        from service.grpc import GrpcServer  # noqa: PLC0415  # a service without gRPC does not pay for it

        self.grpc = GrpcServer(self.shared, self.is_ready, listener, certificate)

    def model_ready(self, model: Model) -> None:
        self.metrics.track(model)
        self.shadow_checker.add(model)

    def model_retired(self, model: Model) -> None:
        self.metrics.forget(model)
        self.shadow_checker.remove(model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope.get("root_path"):
            scope = _without_doubled_prefix(scope)
        if scope["method"] in ("GET", "HEAD"):
            scope = _as_get(scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            self.access.check(path, scope["headers"])
        except ServiceError as error:
            answer = failure(self.metrics, "access", None, error, scope["headers"])
            if wants_page(path, scope["headers"]):
                await locked_page(error)(scope, receive, send)
            else:
                await respond(send, *answer)
            return
        if (target := infer_target(path)) is not None:
            await self.infer(target, scope, receive, send)
        elif (target := predict_target(path)) is not None:
            await self.predict(target, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["paths"].update(PATHS)
        return document


def create_app(settings: Settings) -> Application:
    """The application, with CORS, traces and the access log as the settings say. Its models are loaded when it starts,
    unless `load` was called before. Raises `BnfoldError` if a package is missing."""
    app = Application(settings)
    app.include_router(metadata_routes(app.shared, app.traffic, app.proofs, app.is_ready, app.grpc_port))
    app.include_router(control_routes(app.shared))
    app.include_router(v1_routes(app.repository))
    app.include_router(equivalence_routes(app.shared, app.proofs))
    app.include_router(page_routes(app.repository, app.proofs, app.is_ready, app.openapi))

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(app.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _answer_errors_in_json(app)
    return app


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then return 0. Raises `BnfoldError` if the port is taken or no model can serve."""
    configure_logging(settings.log_format)
    if current_thread() is main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server takes it; by default it would end the process
    os.environ.update(thread_limits())  # for processes that are started from here
    certificate = Certificate.of(settings)
    with ExitStack() as held:
        listener = held.enter_context(bind(settings.host, settings.port))
        grpc_listener = None
        if settings.grpc_port is not None:
            grpc_listener = held.enter_context(bind(settings.host, settings.grpc_port, "--grpc-port"))
        app = create_app(settings)
        app.load()
        if grpc_listener is not None:
            app.add_grpc(grpc_listener, certificate)
        code = run_server(
            app,
            listener,
            settings,
            fast_path=app.fast_path,
            grpc=app.grpc,
            certificate=certificate,
            on_start=partial(_announce, app),
            on_stop=app.stop_being_ready,
            budget=app.budget,
        )
    if app.proofs.computes and current_thread() is main_thread():
        # A step of a proof cannot be interrupted, and a normal exit under it would abort the process.
        logging.shutdown()
        os._exit(code)
    return code


def _announce(app: Application, urls: str) -> None:
    """Log what a user wants to know at the start. The last line says that the service serves."""
    repository = app.repository
    for broken in repository.broken():
        log.warning("bnfold: not serving %s: %s", broken, broken.details)
    if left_out := repository.left_out:
        more = f" and {len(left_out) - LEFT_OUT} more" if len(left_out) > LEFT_OUT else ""
        names, policy = ", ".join(left_out[:LEFT_OUT]), app.settings.version_policy
        log.info("bnfold: version_policy %s leaves out %s%s", policy, names, more)
    log.info("bnfold: access is %s", app.access)
    url = urls.split(" and ", maxsplit=1)[0] + app.settings.root_path
    log.info("bnfold: the page is %s/, the API %s/docs", url, url)
    models = repository.ready()
    if not models and app.settings.repository_control == "explicit":
        log.info("bnfold: no model is loaded at the start; BNFOLD_MODELS names some, or * for all, and calls load them")
    names = ", ".join(map(str, models)) or "no model yet"
    log.info("bnfold: serving %s on %s (%s)", names, urls, models[0].session.provider if models else "none")


@asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    if not app.repository.loaded:
        app.load()
    # What unpacks bodies and decodes images computes; Python's own choice counts the machine's processors.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(cores(), "bnfold"))
    sys.setswitchinterval(SWITCH_SECONDS)
    for model in app.repository.ready():
        app.model_ready(model)
    app.repository.on_ready, app.repository.on_retired = app.model_ready, app.model_retired
    tasks = [asyncio.create_task(app.traffic.run())]
    if app.poller is not None:
        tasks.append(asyncio.create_task(app.poller.run()))
    gc.collect()
    gc.freeze()  # these objects stay, so later collections need not look through them
    app.started = True
    yield
    app.stop_being_ready()
    for task in tasks:
        task.cancel()
    await app.repository.drain()
    app.proofs.stop()
    app.shadow_checker.stop()


def _without_doubled_prefix(scope: Scope) -> Scope:
    """The scope with the URL prefix once in its path. uvicorn adds the prefix to every path, because most proxies
    remove it; behind a proxy that does not, it is there twice."""
    prefix: str = scope["root_path"]
    inner = scope["path"].removeprefix(prefix)
    return {**scope, "path": inner} if inner.startswith(f"{prefix}/") else scope


def _as_get(scope: Scope) -> Scope:
    """HEAD is GET, of whose answer uvicorn leaves out the body. One slash behind a path that is read means nothing."""
    path: str = scope["path"]
    if path.endswith("/") and path != f"{scope.get('root_path', '')}/":
        path = path[:-1]
    return {**scope, "method": "GET", "path": path}


def _answer_errors_in_json(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> Response:
        headers, body = error_answer(error)
        return _response(error.status, body, {name.decode(): value.decode() for name, value in headers})

    @app.exception_handler(OSError)
    async def no_files(request: Request, error: OSError) -> Response:
        if not is_out_of_files(error):
            raise error
        return await refused(request, OutOfFilesError())

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        texts = {
            404: f"{where}: no such path; /docs lists all paths",
            405: f"{where}: this method is not allowed; expected {headers.get('Allow', 'another')}",
        }
        return _response(
            error.status_code, error_body(texts.get(error.status_code, f"{where}: {error.detail}")), headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _response(422, error_body(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _response(500, error_body("internal error; the service's log has the details"))


def _response(status: int, body: bytes, headers: Any = None) -> Response:
    return Response(body, status, dict(headers or {}), media_type="application/json")
