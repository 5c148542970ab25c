"""The protocol over HTTP: the server, its connections, the fast path, and what the routes share."""

from service.http.answers import error_answer, failure, respond
from service.http.exchange import FastPath
from service.http.head_cache import HeadCache, infer_target, predict_target
from service.http.middleware import add_middleware
from service.http.server import run_server
from service.http.sockets import bind

__all__ = [
    "FastPath",
    "HeadCache",
    "add_middleware",
    "bind",
    "error_answer",
    "failure",
    "infer_target",
    "predict_target",
    "respond",
    "run_server",
]
