"""BentoML with its own batching; tensors are base64 in JSON.

GRAPH=… SHAPE=C,H,W bentoml serve bento:Net --port PORT
"""

import base64
import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Net:
    def __init__(self) -> None:
        self.session = onnxruntime.InferenceSession(os.environ["GRAPH"], providers=["CPUExecutionProvider"])
        self.shape = tuple(map(int, os.environ["SHAPE"].split(",")))

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, x: list[str]) -> list[str]:
        tensor = np.frombuffer(b"".join(map(base64.b64decode, x)), np.float32).reshape(-1, *self.shape)
        out = self.session.run(None, {"x": tensor})[0]
        return [base64.b64encode(row.tobytes()).decode() for row in out]
