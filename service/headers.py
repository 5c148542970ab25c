"""HTTP headers as ASGI has them, those that infer requests and their answers use, and their form on the wire."""

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

LENGTH_HEADER = b"inference-header-content-length"
JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")


def header_lines(headers: Headers) -> bytes:
    return b"".join([part for name, value in headers for part in (name, b": ", value, b"\r\n")])
