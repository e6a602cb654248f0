"""What the readers of mesh files have in common: what they read, and how much of it."""

from typing import NamedTuple

import numpy as np

MAX_BYTES = 2**29  # of a file
MAX_FACES = 5_000_000
MAX_POINTS = 3 * MAX_FACES


class Piece(NamedTuple):
    """An object or a group of a file."""

    points: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int64, which points a triangle has

    def check(self) -> "Piece":
        """
        Raises:
            ValueError: a triangle has a point that is not there.
        """
        faces = self.faces
        if len(faces) and (faces.min() < 0 or faces.max() >= len(self.points)):
            wrong = faces.min() if faces.min() < 0 else faces.max()
            raise ValueError(f"a face has point {wrong:,}, of {len(self.points):,} (counted from 0)")
        return self
