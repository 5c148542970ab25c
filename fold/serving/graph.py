"""One graph in ONNX Runtime: arrays in, arrays out."""

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays
from fold.artifact import Manifest
from fold.runtime import in_flight, run_options
from fold.serving.bfloat16 import run_with_bfloat16


class Graph:
    """A session of ONNX Runtime with the outputs of a manifest. Several threads may run it at a time."""

    def __init__(
        self, session: ort.InferenceSession, manifest: Manifest, options: ort.RunOptions | None = None
    ) -> None:
        self.session = session
        self._outputs = [spec.name for spec in manifest.outputs]
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in (*manifest.inputs, *manifest.outputs))
        self._options = options or ort.RunOptions()

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name. Raises ONNX Runtime's exceptions."""
        # A binary tensor begins where the JSON before it happened to end, and kernels may load aligned.
        feeds = {name: a if a.flags.aligned else a.copy() for name, a in inputs.items()}
        options = run_options() or self._options
        found: list[np.ndarray]
        with in_flight:
            if self._has_bfloat16:
                found = run_with_bfloat16(self.session, self._outputs, feeds, options)
            else:
                found = self.session.run(self._outputs, feeds, options)
        return dict(zip(self._outputs, found, strict=True))
