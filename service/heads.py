"""What the head of an infer request came to, remembered: a client sends the same one with every request.

Only heads in the usual form are worth it: POST, a path that needs no decoding, a body that is plain, of declared length
and within the limit, on a connection that stays. What a head means depends on nothing but its bytes, so one that was
parsed once need not be parsed again, which costs more than all that is computed from it.
"""

from dataclasses import dataclass
from functools import lru_cache

from service.headers import LENGTH_HEADER, Headers

LARGEST_HEAD = 4096
"""Bytes of a head that is remembered."""
HEADS = 256
"""Clients choose them, so there could be any number."""

Target = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Head:
    """Of a request in the usual form: model and version, headers, the bytes of its body, and what it says of the JSON
    in them."""

    target: Target
    headers: Headers
    body_bytes: int
    json_bytes: bytes | None


class Heads:
    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._heads: dict[bytes, Head] = {}
        self.find = self._heads.get

    def remember(self, raw: bytes, head: Head) -> None:
        """`raw` is known to begin with the head, and to end with its first empty line. That this is where the parser
        saw the end is told by the number of lines: what stands before the first of them, or folds one, is no part."""
        if len(raw) > LARGEST_HEAD or not raw.startswith(b"POST ") or raw.count(b"\n") != len(head.headers) + 2:
            return
        if len(self._heads) >= HEADS:
            self._heads.clear()
        self._heads[raw] = head

    def read(self, url: bytes, headers: Headers) -> Head | None:
        """None for what goes the common way, which says what is wrong where something is."""
        target = target_of(url)
        if target is None:
            return None
        length = json_bytes = None
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name == LENGTH_HEADER:
                json_bytes = value
            elif name in (b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"):
                return None
        if length is None or not length.isdigit() or len(length) > 15 or not 0 < int(length) <= self._max_body_bytes:
            return None
        return Head(target, headers, int(length), json_bytes)


def infer_target(path: str) -> Target | None:
    """Model and version that an infer path names; None for every other path."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


@lru_cache(maxsize=1024)
def target_of(url: bytes) -> Target | None:
    """Model and version of an infer URL that needs no decoding; None for every other."""
    if not url.isascii() or b"%" in url or b"?" in url or b"#" in url:
        return None
    return infer_target(url.decode())
