"""The FastAPI handler that takes the tensor's bytes: `python plain_bytes.py GRAPH PORT C,H,W`."""

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
shape = tuple(map(int, sys.argv[3].split(",")))
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    x = np.frombuffer(await request.body(), np.float32).reshape(-1, *shape)
    (out,) = await run_in_threadpool(session.run, None, {"x": x})
    return Response(out.tobytes(), media_type="application/octet-stream")


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
