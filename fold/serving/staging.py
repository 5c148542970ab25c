"""Buffers of one batch size, at fixed addresses: the rows of a batch are copied into them, and its outputs out.

On a GPU the host's buffers are page-locked and the device's are allocated once, so a run allocates nothing and the
device copies by itself. A batch of fewer rows is filled up with copies of its first row, which is valid for any model,
and only the rows of the batch are returned.
"""

from collections.abc import Sequence

import onnxruntime as ort

from fold.arrays import Arrays
from fold.artifact import DTYPES, TensorSpec
from fold.serving.pinned import Allocate


class Staging:
    """One thread at a time runs through it."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        rows: int,
        *,
        allocate: Allocate,
        device: int | None,
        graph: int | None = None,
    ) -> None:
        """`device` is the GPU's number, None for the CPU. With `graph`, the number of a CUDA graph, kernels are
        recorded once and launched as one; outputs then stay on the device until they are copied."""
        self.rows = rows
        self._session = session
        self._host_in = {s.name: allocate((rows, *s.shape[1:]), DTYPES[s.datatype]) for s in inputs}
        self._host_out: Arrays = {}
        self._device_in: dict[str, ort.OrtValue] = {}
        self._device_out: dict[str, ort.OrtValue] = {}
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        self._binding = session.io_binding()
        for name, array in self._host_in.items():
            if device is None:
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                continue
            value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cuda", device)
            self._device_in[name] = value
            self._binding.bind_ortvalue_input(name, value)
        for spec in outputs:
            shape, dtype = (rows, *spec.shape[1:]), DTYPES[spec.datatype]
            if device is None or graph is None:
                array = self._host_out[spec.name] = allocate(shape, dtype)
                self._binding.bind_output(spec.name, "cpu", 0, dtype, shape, array.ctypes.data)
                continue
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", device)
            self._device_out[spec.name] = value
            self._binding.bind_ortvalue_output(spec.name, value)

    def run(self, inputs: Arrays, rows: int) -> Arrays:
        """Outputs of `inputs`, which have `rows` rows, 1 to `self.rows`; copied, since the buffers are used again."""
        for name, host in self._host_in.items():
            host[:rows] = inputs[name]
            host[rows:] = host[:1]
            if name in self._device_in:
                self._device_in[name].update_inplace(host)
        self._session.run_with_iobinding(self._binding, self._options)
        if self._device_out:
            return {name: value.numpy()[:rows] for name, value in self._device_out.items()}
        return {name: host[:rows].copy() for name, host in self._host_out.items()}
