"""Embeddings of images that are read once, in a temporary file: 2 bytes a value, 1 kB an image at 512 dimensions.

Shapes: N images of a call, D embedding size, S image side.
"""

import errno
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_core.data.preprocess import Pixels
from clip_core.network import Preprocessing

FloatArray = NDArray[np.float32]


class ImageEmbedder(NamedTuple):
    """The image tower of a model: uint8 (N, S, S, 3), prepared as it wants them -> float32 (N, D), L2-normalised."""

    preprocessing: Preprocessing
    encode: Callable[[Pixels], FloatArray]


class EmbeddingFile:
    """Rows that are added one after the other, and read in any order afterwards; the file goes with the object.

    Attributes:
        problem: why there was no room for all rows; None where there was.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (it goes with the object)
        self._size = self._count = 0
        self.problem: str | None = None

    def add(self, embedding: FloatArray) -> int:
        """Write a row, (D,); returns its number, or -1 from the first one on for which there was no room."""
        if self.problem is not None:
            return -1
        row = embedding.astype(np.float16).tobytes()
        try:
            if self._file.write(row) != len(row):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.problem = (
                f"after {self._count:,} images there was no room for embeddings in {tempfile.gettempdir()} "
                f"({error.strerror}); set TMPDIR to a folder with {len(row):,} bytes for each image"
            )
            self._file.close()
            return -1
        self._size = len(embedding)
        self._count += 1
        return self._count - 1

    def rows(self, numbers: NDArray[np.int64]) -> FloatArray:
        """(N,) -> (N, D), L2-normalised."""
        stored = np.memmap(self._file, np.float16, "r", shape=(self._count, self._size))
        found = stored[numbers].astype(np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


class EmbeddingModel(NamedTuple):
    """A model that embeds the images of one or more streams, and the file of their embeddings."""

    embedder: ImageEmbedder
    file: EmbeddingFile
