"""Which heads are refused before their request is believed: what another server could read as another request.

Behind a proxy that filters by path, two readings of the same bytes are a way around the filter (request smuggling).
The parser refuses what is malformed. What is well formed and still ambiguous, or not spoken here, is refused by
`fault_of` (RFC 9112).
"""

import re

from service.headers import Headers

VERSIONS = ("1.1", "1.0")
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
"""A name or an address with or without a port; it may be empty (RFC 9110, 7.2)."""

Fault = tuple[int, str]
"""Status and text of the answer."""


def fault_of(method: bytes, version: str, headers: Headers) -> Fault | None:
    """Why a request with this head is refused; None if it is not."""
    if version not in VERSIONS:
        return 505, f"HTTP/{version} is not spoken here; expected HTTP/1.1"
    hosts, codings = [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return 400, f"{len(hosts)} Host headers came; expected one"
    if hosts and not HOST.fullmatch(hosts[0].strip()):
        return 400, "the Host header is not a name or address with or without a port"
    if codings and (fault := _fault_of_coding(version, b",".join(codings))) is not None:
        return fault
    if method == b"CONNECT":
        return 501, "CONNECT is not offered: this is no proxy"
    return None


def _fault_of_coding(version: str, coding: bytes) -> Fault | None:
    """Why the body cannot be found, or not be read."""
    codings = [part.strip().lower() for part in coding.split(b",")]
    if codings == [b"chunked"] and version == "1.1":
        return None
    if codings[-1] != b"chunked" or version == "1.0":
        return 400, "Transfer-Encoding leaves the end of the body open; expected chunked, by HTTP/1.1"
    return 501, "Transfer-Encoding has another coding than chunked; compress with Content-Encoding: gzip"
