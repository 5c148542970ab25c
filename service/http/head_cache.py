"""What the head of an infer or predict request came to, remembered: a client sends the same one with every request.

Only heads in the usual form are worth it: POST, a path that needs no decoding, a body that is plain, of declared length
and within the limit, on a connection that stays. What a head means depends on nothing but its bytes, so one that was
parsed once need not be parsed again, which costs more than all that is computed from it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from service.headers import JSON, LENGTH_HEADER, Headers

LARGEST_HEAD = 4096
"""Bytes of a head that is remembered."""
HEADS = 256
"""Clients choose them, so there could be any number."""
UNUSUAL = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})
"""Headers that say more of a request than is read here."""

ModelPath = tuple[str, str | None]
Endpoint = Literal["infer", "predict"]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Of a request in the usual form: model and version, headers, the bytes of its body, and what it says of the JSON
    in them."""

    target: ModelPath
    headers: Headers
    body_bytes: int
    json_bytes: bytes | None
    endpoint: Endpoint = "infer"


class HeadCache:
    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._heads: dict[bytes, RequestHead] = {}
        self.find = self._heads.get

    def remember(self, raw: bytes, head: RequestHead) -> None:
        """`raw` is known to begin with the head, and to end with its first empty line. That this is where the parser
        saw the end is told by the number of lines: what stands before the first of them, or folds one, is no part."""
        if len(raw) > LARGEST_HEAD or not raw.startswith(b"POST ") or raw.count(b"\n") != len(head.headers) + 2:
            return
        if len(self._heads) >= HEADS:
            self._heads.clear()
        self._heads[raw] = head

    def read(self, url: bytes, headers: Headers) -> RequestHead | None:
        """None for what goes the common way, which says what is wrong where something is, and reads and writes what is
        no JSON for `:predict`."""
        named = named_by(url)
        if named is None:
            return None
        endpoint, target = named
        length = json_bytes = None
        is_json = endpoint == "infer"
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == LENGTH_HEADER:
                json_bytes = value
            elif name == b"content-type":
                is_json = is_json or value.split(b";")[0].strip().lower() == JSON[1]
            elif name in UNUSUAL or (name == b"accept" and b"npy" in value.lower()):
                return None
        if length is None or not length.isdigit() or len(length) > 15 or not 0 < int(length) <= self._max_body_bytes:
            return None
        if not is_json:
            return None
        return RequestHead(target, headers, int(length), json_bytes, endpoint)


def infer_target(path: str) -> ModelPath | None:
    """Model and version that an infer path names; None for every other path."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


def predict_target(path: str) -> str | None:
    """The model that a `:predict` path names; None for every other path."""
    match path.split("/"):
        case ["", "v1", "models", named] if named.endswith(":predict"):
            return named.removesuffix(":predict")
    return None


@lru_cache(maxsize=1024)
def named_by(url: bytes) -> tuple[Endpoint, ModelPath] | None:
    """What is asked for by a URL that needs no decoding, and of which model and version; None for every other."""
    if not url.isascii() or b"%" in url or b"?" in url or b"#" in url:
        return None
    path = url.decode()
    if (target := infer_target(path)) is not None:
        return "infer", target
    name = predict_target(path)
    return None if name is None else ("predict", (name, None))
