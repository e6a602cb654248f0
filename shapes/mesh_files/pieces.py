"""Common ground of the readers of mesh files: the pieces that they return, limits, and encodings of text."""

import codecs
from typing import NamedTuple

import numpy as np

MAX_BYTES = 2**29  # of a file, at most
MAX_FACES = 5_000_000
MAX_POINTS = 3 * MAX_FACES
MARKS = {  # byte order marks at a file's beginning; UTF-32's begins with UTF-16's, so it comes first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class MeshPiece(NamedTuple):
    """An object or a group of a mesh file."""

    points: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int64, the points of each triangle

    def check(self) -> "MeshPiece":
        """The piece itself, whose triangles have points that are there.

        Raises:
            ValueError: a triangle has a point that is not there.
        """
        faces = self.faces
        if len(faces) and (faces.min() < 0 or faces.max() >= len(self.points)):
            wrong = faces.min() if faces.min() < 0 else faces.max()
            raise ValueError(f"a face has point {wrong:,}, of {len(self.points):,} (counted from 0)")
        return self


def strip(corners: np.ndarray) -> np.ndarray:
    """The triangles (F, 3) of a strip of corners (C,), in which -1 begins another strip.

    Triangles that have a corner twice are left out: they lead from one surface to the next, and connect nothing.
    """
    if len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    triangles = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1).astype(np.int64)
    place = np.arange(len(triangles))
    begins = np.maximum.accumulate(np.where(corners[:-2] == -1, place + 1, 0))
    turned = (place - begins) % 2 == 1  # each second one is gone round the other way
    triangles[turned] = triangles[turned][:, [1, 0, 2]]
    a, b, c = triangles.T
    return triangles[(triangles != -1).all(1) & (a != b) & (b != c) & (c != a)]


def encoding_of(head: bytes) -> str:
    """The encoding of a text file by its first bytes: UTF-8 with a mark, UTF-16, UTF-32; ASCII for all else.

    Bytes that are not ASCII are in names, of which only matters whether they are equal: decode with "backslashreplace".
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) > 3 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    if len(head) > 3 and not head[0] and head[1] and not head[2] and head[3]:
        return "utf-16-be"
    return "ascii"
