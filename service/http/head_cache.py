"""Cache of parsed request heads, for the fast path: a client sends the same head with every request.

Parsing a head costs more than everything that is computed from it, and what it means depends on nothing but its bytes.
Only heads of the fast path are kept (`service.http.exchange`): POST, a path that needs no decoding, a body of declared
length within the limit and without encoding, on a connection that stays open.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from service.headers import JSON, LENGTH_HEADER, Headers

LARGEST_HEAD = 4096
"""Bytes of a head that is kept."""
HEADS = 256
"""Heads that are kept. Clients choose them, so there could be any number."""
EXCLUDED = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})
"""Headers that send a request the usual way."""

JSON_TYPE = JSON[1].decode()

ModelPath = tuple[str, str | None]
"""Model and version; None is the latest version."""
Route = Literal["infer", "predict"]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the head of an infer or predict request says."""

    target: ModelPath
    headers: Headers
    body_bytes: int
    """Content-Length; -1 where it is not needed."""
    json_bytes: bytes | None
    """Inference-Header-Content-Length, as it was sent."""
    route: Route = "infer"
    content_type: str = ""
    """Media type of the body in lower case, without parameters; empty if none was sent."""
    accept: str = ""
    reference: bool = False
    """Whether the query asks for the reference's answer, too. URLs with a query are not on the fast path."""


class HeadCache:
    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._heads: dict[bytes, RequestHead] = {}
        self.find = self._heads.get

    def add(self, raw: bytes, head: RequestHead) -> None:
        """Keep `head`, which the bytes `raw` were parsed to.

        `raw` ends with its first empty line. That the parsed head ends there, too, is checked by the number of lines:
        the parser skips empty lines before a head, and joins folded lines.
        """
        if len(raw) > LARGEST_HEAD or not raw.startswith(b"POST ") or raw.count(b"\n") != len(head.headers) + 2:
            return
        if len(self._heads) >= HEADS:
            self._heads.clear()
        self._heads[raw] = head

    def parse(self, url: bytes, headers: Headers) -> RequestHead | None:
        """None for a request that goes the usual way. It says what is wrong where something is, and reads and writes
        what is not JSON for `:predict`."""
        named = named_by(url) if len(url) <= LARGEST_HEAD else None
        if named is None:
            return None
        route, target = named
        length = json_bytes = None
        content_type = accept = ""
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == LENGTH_HEADER:
                json_bytes = value
            elif name == b"content-type":
                content_type = media_type(value)
            elif name == b"accept":
                accept = value.decode("latin-1")
            elif name in EXCLUDED:
                return None
        if length is None or not length.isdigit() or len(length) > 15 or not 0 < int(length) <= self._max_body_bytes:
            return None
        if route == "predict" and (content_type != JSON_TYPE or "npy" in accept.lower()):
            return None
        return RequestHead(target, headers, int(length), json_bytes, route, content_type, accept)


def media_type(content_type: bytes) -> str:
    """Of a Content-Type header, in lower case and without parameters."""
    if content_type == JSON[1]:
        return JSON_TYPE
    return content_type.split(b";")[0].strip().lower().decode("latin-1")


def infer_target(path: str) -> ModelPath | None:
    """Model and version that an infer path names; None for every other path."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


def predict_target(path: str) -> ModelPath | None:
    """Model and version that a `:predict` path names; None for every other path."""
    match path.split("/"):
        case ["", "v1", "models", named] if named.endswith(":predict"):
            return named.removesuffix(":predict"), None
        case ["", "v1", "models", name, "versions", named] if named.endswith(":predict"):
            return name, named.removesuffix(":predict")
    return None


@lru_cache(maxsize=1024)
def named_by(url: bytes) -> tuple[Route, ModelPath] | None:
    """Route, model and version of a URL that needs no decoding; None for every other URL."""
    if not url.isascii() or b"%" in url or b"?" in url or b"#" in url:
        return None
    path = url.decode()
    if (target := infer_target(path)) is not None:
        return "infer", target
    target = predict_target(path)
    return None if target is None else ("predict", target)
