"""The FastAPI handler that takes lists: `python plain_json.py GRAPH PORT`."""

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
app = FastAPI()


class Body(BaseModel):
    instances: list[list[list[list[float]]]]


@app.post("/predict")
def predict(body: Body) -> dict[str, list[list[float]]]:
    (out,) = session.run(None, {"x": np.array(body.instances, np.float32)})
    return {"predictions": out.tolist()}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
