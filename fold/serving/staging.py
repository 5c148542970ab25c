"""Buffers of one batch size, at fixed addresses: the rows of a batch are copied into them, and its outputs out.

On a GPU the host's buffers are page-locked and the device's are allocated once, so a run allocates nothing and the
device copies by itself. A batch of fewer rows is filled up with copies of its first row, which is valid for any model,
and only the rows of the batch are returned.
"""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays
from fold.artifact import DTYPES, TensorSpec
from fold.runtime import in_flight
from fold.serving.cuda_runtime import CudaRuntime


class Staging:
    """One thread at a time runs through it."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        rows: int,
        *,
        cuda: CudaRuntime | None = None,
        graph: int | None = None,
    ) -> None:
        """`cuda` is for a session on a GPU. With `graph`, the number of a CUDA graph, kernels are recorded once and
        launched as one; outputs then stay on the device until they are copied."""
        self.rows = rows
        self._session = session
        self._cuda = cuda
        allocate = np.zeros if cuda is None else cuda.allocate
        self._host_in: Arrays = {s.name: allocate((rows, *s.shape[1:]), DTYPES[s.datatype]) for s in inputs}
        self._host_out: Arrays = {s.name: allocate((rows, *s.shape[1:]), DTYPES[s.datatype]) for s in outputs}
        self._device_in: dict[str, ort.OrtValue] = {}
        self._device_out: dict[str, ort.OrtValue] = {}
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        self._binding = session.io_binding()
        for name, array in self._host_in.items():
            if cuda is None:
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                continue
            value = self._device_in[name] = _on_device(array, cuda.device)
            self._binding.bind_ortvalue_input(name, value)
        for name, array in self._host_out.items():
            if cuda is None or graph is None:
                self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                continue
            value = self._device_out[name] = _on_device(array, cuda.device)
            self._binding.bind_ortvalue_output(name, value)

    def run(self, inputs: Arrays, rows: int) -> Arrays:
        """Outputs of `inputs`, which have at most `self.rows` rows; copied, since the buffers are used again."""
        for name, host in self._host_in.items():
            host[:rows] = inputs[name]
            host[rows:] = host[:1]
            if self._cuda is not None:
                self._cuda.to_device(self._device_in[name].data_ptr(), host)
        with in_flight:
            self._session.run_with_iobinding(self._binding, self._options)
        if self._cuda is not None:
            for name, value in self._device_out.items():
                self._cuda.to_host(self._host_out[name][:rows], value.data_ptr())
        return {name: host[:rows].copy() for name, host in self._host_out.items()}


def _on_device(array: np.ndarray, device: int) -> ort.OrtValue:
    """Memory on the GPU for such an array."""
    return ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cuda", device)
