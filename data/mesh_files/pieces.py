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
