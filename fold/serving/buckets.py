"""Batch sizes that a model is run at. A batch is filled up to the next size, so that no shape is new to the device
while it serves: cuDNN and cuBLAS choose their kernels by shape, and the first run of a shape takes up to seconds.

ONNX Runtime's convolutions on a GPU keep the cuDNN plan of their last shape alone, and build another one whenever the
shape changes. So there each size of a model that convolves has a session of its own, with its own copy of the weights.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays, in_chunks, row_count
from fold.artifact import DATATYPES, Manifest, powers_of_two
from fold.serving.cuda_runtime import CudaRuntime
from fold.serving.options import SessionOptions
from fold.serving.placement import Placement
from fold.serving.staging import Staging

WARM_UPS = 3
"""The first run finds algorithms and memory, the second records a CUDA graph, the third launches it."""


class Buckets:
    """Each size has as many stagings as batches may run at a time; a batch on top waits for one."""

    def __init__(self, sizes: Sequence[int], copies: int, make: Callable[[int, int], Staging]) -> None:
        """`make` gets a size and its position among the sizes."""
        self.sizes = tuple(sorted(sizes))
        self._free: list[SimpleQueue[Staging]] = []
        for position, size in enumerate(self.sizes):
            queue: SimpleQueue[Staging] = SimpleQueue()
            for _ in range(copies):
                queue.put(make(size, position))
            self._free.append(queue)
        self._copies = copies

    @classmethod
    def of(
        cls,
        first: ort.InferenceSession,
        another: Callable[[], ort.InferenceSession],
        manifest: Manifest,
        placement: Placement,
        options: SessionOptions,
        copies: int,
    ) -> "Buckets | None":
        """`another` opens the session `first` once more. None where batches are run as they are."""
        sizes = sizes_for(manifest, options, placement.provider)
        if not sizes:
            return None
        cuda = None if placement.gpu is None else CudaRuntime(placement.gpu)
        sessions = [first if not position or not placement.keeps_plans else another() for position in range(len(sizes))]

        def make(size: int, position: int) -> Staging:
            graph = position + 1 if options.cuda_graphs and cuda is not None else None
            return Staging(sessions[position], manifest.inputs, manifest.outputs, size, cuda=cuda, graph=graph)

        return cls(sizes, copies, make)

    def warm_up(self, blank: Arrays) -> None:
        """Run every staging; `blank` is one row.

        Those of one size run at the same time, as they will later: each thread has handles of its own to the device's
        libraries. A single one runs on the calling thread.
        """
        for queue, size in zip(self._free, self.sizes, strict=True):
            rows = {name: np.repeat(array, size, axis=0) for name, array in blank.items()}
            stagings = [queue.get() for _ in range(self._copies)]
            try:
                if len(stagings) == 1:
                    _warm_up(stagings[0], rows)
                    continue
                with ThreadPoolExecutor(len(stagings)) as pool:
                    list(pool.map(_warm_up, stagings, [rows] * len(stagings)))
            finally:
                for staging in stagings:
                    queue.put(staging)

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs; more rows than the largest bucket has are several runs."""
        return in_chunks(self._run, inputs, self.sizes[-1])

    def run_at(self, size: int, inputs: Arrays) -> Arrays:
        """Outputs, computed in runs of one of the sizes."""
        return in_chunks(lambda rows: self._run(rows, size), inputs, size)

    def _run(self, inputs: Arrays, size: int = 0) -> Arrays:
        rows = row_count(inputs)
        queue = self._free[bisect_left(self.sizes, size or rows)]
        staging = queue.get()
        try:
            return staging.run(inputs, rows)
        finally:
            queue.put(staging)


def _warm_up(staging: Staging, rows: Arrays) -> None:
    for _ in range(WARM_UPS):
        staging.run(rows, staging.rows)


def sizes_for(manifest: Manifest, options: SessionOptions, provider: str) -> tuple[int, ...]:
    """The batch sizes that a model is run at; none on the CPU unless sizes are given, and none where the sizes of
    tensors are not known beforehand."""
    specs = (*manifest.inputs, *manifest.outputs)
    known = all(-1 not in spec.shape[1:] and spec.datatype in DATATYPES for spec in specs)
    return bucket_sizes(options, provider) if known and manifest.batched and manifest.inputs else ()


def bucket_sizes(options: SessionOptions, provider: str) -> tuple[int, ...]:
    """The batch sizes that the option names for this provider; none where each batch keeps its own."""
    if options.buckets == "auto":
        return powers_of_two(options.max_batch_size) if provider == "cuda" else ()
    if options.buckets == "off":
        return ()
    given = {int(size) for size in options.buckets.split(",")}
    return (*sorted(size for size in given if size < options.max_batch_size), options.max_batch_size)
