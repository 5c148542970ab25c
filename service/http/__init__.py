"""The protocol over HTTP: the server, its connections, and what stands before the routes."""

from service.http.answers import error_answer, failure, respond
from service.http.exchange import FastPath
from service.http.head_cache import HeadCache, infer_target, predict_target
from service.http.middleware import front
from service.http.server import run_server
from service.http.sockets import bind

__all__ = [
    "FastPath",
    "HeadCache",
    "bind",
    "error_answer",
    "failure",
    "front",
    "infer_target",
    "predict_target",
    "respond",
    "run_server",
]
