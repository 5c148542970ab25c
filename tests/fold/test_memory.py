"""What a proof took goes back to the system, and nobody looks for cycles where there is little to find."""

import gc
import weakref

import numpy as np

from fold.memory import GROWN, release_memory


class Holder:
    """Holds itself, as graphs do, so that only a collection frees it."""

    def __init__(self, size: int) -> None:
        self.content = np.ones(size, np.uint8)
        self.itself = self


def test_memory_is_given_back_where_there_is_some() -> None:
    gc.disable()
    try:
        release_memory()
        large, small = Holder(3 * GROWN), Holder(8)
        lost_large, lost_small = weakref.ref(large), weakref.ref(small)
        del large
        release_memory()
        assert lost_large() is None
        del small
        release_memory()
        assert lost_small() is not None, "too little to look for"
    finally:
        gc.enable()
        gc.collect()
