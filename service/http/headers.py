"""Headers in the form that they have on the wire."""

from service.headers import Headers


def header_lines(headers: Headers) -> bytes:
    return b"".join([part for name, value in headers for part in (name, b": ", value, b"\r\n")])
