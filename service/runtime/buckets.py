"""Batch sizes that a model is run at. A batch is filled up to the next of them, so that no shape is new to the device
while it serves: cuDNN and cuBLAS choose their kernels by shape, and a first time takes up to seconds.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np

from fold.arrays import Arrays
from service.runtime.staging import Staging

WARM_UPS = 3
"""The first run finds algorithms and memory, the second records a CUDA graph, the third launches it."""


class Buckets:
    """Each size has as many stagings as batches may run at a time; whoever comes on top waits for one."""

    def __init__(self, sizes: Sequence[int], copies: int, make: Callable[[int, int], Staging]) -> None:
        """`make` gives the staging of a size, which it is told with its position among the sizes."""
        self.sizes = tuple(sorted(sizes))
        self._free: list[SimpleQueue[Staging]] = []
        for position, size in enumerate(self.sizes):
            queue: SimpleQueue[Staging] = SimpleQueue()
            for _ in range(copies):
                queue.put(make(size, position))
            self._free.append(queue)
        self._copies = copies

    def warm_up(self, blank: Arrays) -> None:
        """Run every staging; `blank` is one row. Those of a size run at a time, as they will: each thread that runs has
        handles of its own to the device's libraries. A single one runs on the calling thread."""
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

    def run(self, inputs: Arrays, rows: int) -> Arrays:
        """Outputs of `rows` rows, 1 or more; more than the largest bucket are several runs."""
        most = self.sizes[-1]
        if rows <= most:
            return self._run(inputs, rows)
        parts = []
        for start in range(0, rows, most):
            part = {name: array[start : start + most] for name, array in inputs.items()}
            parts.append(self._run(part, min(most, rows - start)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: Arrays, rows: int) -> Arrays:
        queue = self._free[bisect_left(self.sizes, rows)]
        staging = queue.get()
        try:
            return staging.run(inputs, rows)
        finally:
            queue.put(staging)


def _warm_up(staging: Staging, rows: Arrays) -> None:
    for _ in range(WARM_UPS):
        staging.run(rows, staging.rows)
