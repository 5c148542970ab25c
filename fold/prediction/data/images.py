"""Images as rows: decoded on several threads, as the model's preprocessing says."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fold.artifact import DTYPES, Preprocessing
from fold.errors import BnfoldError
from fold.inputs import read_image
from fold.prediction.data.chunk import Chunk, Column, Wanted
from fold.prediction.model import image_input


class ImageRows:
    """Images, a row each, decoded on several threads."""

    id_type = None

    def __init__(self, paths: Sequence[Path], wanted: Wanted, pool: ThreadPoolExecutor) -> None:
        self.paths, self.rows = paths, len(paths)
        self._manifest, self._pool = wanted.manifest, pool
        wanted.refuse_id(str(paths[0]))
        self._how, self._datatype = image_input(wanted.manifest, str(paths[0]))
        if len(wanted.manifest.inputs) > 1:
            raise BnfoldError(f"{paths[0]}: is an image, and the model takes {', '.join(wanted.columns)}")

    def read(self, start: int, stop: int) -> Chunk:
        paths = self.paths[start:stop]
        column = image_column(self._pool, [(path, str(path)) for path in paths], self._how, self._datatype)
        rows = np.zeros(len(paths), np.int64)
        return Chunk.of([str(path) for path in paths], rows, None, {self._how.input: column}, self._manifest)


def image_column(
    pool: ThreadPoolExecutor, images: Sequence[tuple[Path | bytes, str]], how: Preprocessing, datatype: str
) -> Column:
    """The tensors of images, which are files or encoded, each with what an error about it begins with."""

    def read(image: tuple[Path | bytes, str]) -> np.ndarray | str:
        try:
            return read_image(image[0], how, datatype, image[1])
        except BnfoldError as error:
            return str(error)

    found = list(pool.map(read, images))
    tensors = [one for one in found if isinstance(one, np.ndarray)]
    errors = {position: one for position, one in enumerate(found) if isinstance(one, str)}
    return Column(np.concatenate(tensors) if tensors else np.empty(0, DTYPES[datatype]), errors)
