"""LitServe with its own batching; tensors are base64 in JSON: `python lit.py GRAPH PORT C,H,W`."""

import base64
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        self.shape = tuple(map(int, sys.argv[3].split(",")))

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["x"]), np.float32).reshape(-1, *self.shape)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        out: np.ndarray = self.session.run(None, {"x": x})[0]
        return out

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return [row[None] for row in output]

    def encode_response(self, output: np.ndarray) -> dict[str, str]:
        return {"y": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=64, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
