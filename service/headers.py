"""HTTP headers in the form of ASGI, and those that infer requests and their answers use."""

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

LENGTH_HEADER = b"inference-header-content-length"
JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
