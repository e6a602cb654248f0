"""The embedded set of shapes: furniture of six classes, put together from parts by a seeded generator.

Each part is an oriented box with a superquadric in it, whose two exponents say what it looks like. x is to the right,
y up and z to the front. A piece stands on the ground, y = 0; its box is centred at x = z = 0 and has a diagonal of
1.25, so its longest side is about 1. It has at most 20 parts, which touch.
All randomness is `Generator.random`, which gives the same numbers with every version of NumPy and on every machine;
differences of sines and roots are rounded off.
"""

from collections.abc import Callable

import numpy as np

from shapes.furniture.beds import bed
from shapes.furniture.lamps import lamp
from shapes.furniture.piece import Piece
from shapes.furniture.seats import chair, sofa
from shapes.furniture.shelves import shelf
from shapes.furniture.tables import table

MAKERS: dict[str, Callable[[Piece], None]] = {
    "chair": chair,
    "table": table,
    "shelf": shelf,
    "bed": bed,
    "sofa": sofa,
    "lamp": lamp,
}
CLASSES = list(MAKERS)


def pieces(seed: int, count: int) -> tuple[list[dict[str, np.ndarray]], list[int], list[str]]:
    """The first pieces of a seed, one of each class after the other: their attributes, labels, and split.

    Of every 20 of a class 17 are train, 1 is val and 2 are test.
    """
    random = np.random.Generator(np.random.PCG64(seed)).random
    shapes, labels, split = [], [], []
    for k in range(count):
        turn, label = divmod(k, len(CLASSES))
        piece = Piece(random)
        MAKERS[CLASSES[label]](piece)
        shapes.append(piece.finished())
        labels.append(label)
        split.append(("train", "val", "test", "test")[max(0, turn % 20 - 16)])
    return shapes, labels, split
