"""uvicorn alone: it reads the body and answers with BYTES bytes: `python bare.py BYTES PORT`."""

import sys
from typing import Any

import uvicorn

ANSWER = bytes(int(sys.argv[1]))
HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(ANSWER))]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


config = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "log_level": "warning", "access_log": False}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), **config)
