"""A piece of furniture that is being built from parts, in metres."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

MAX_PARTS = 20
DIAGONAL = 1.25  # diagonal of the box around a finished piece
DECIMALS = 5  # decimals of centres, sizes and exponents; axes have two more

Point = tuple[float, float, float]
Exponents = tuple[float, float]
T = TypeVar("T")

ROUND = (0.1, 1.0)  # a cylinder along the part's own y
DOME = (0.6, 1.0)
SPINDLE = (1.6, 1.0)
BALL = (1.0, 1.0)
CUSHION = (0.35, 0.3)
PILLOW = (0.6, 0.4)


class Piece:
    """A piece of furniture that is being built, with its source of randomness."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.random = random
        self.parts: list[tuple[float, ...]] = []  # center 3, size 3, axes 6, exponents 2
        self.block = (edge := round(self.between(0.08, 0.2), 2), edge)  # how sharp the edges of this piece are

    # ---- chance ----

    def between(self, low: float, high: float) -> float:
        """A random number between two."""
        return low + (high - low) * self.random()

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.random() < p

    def one_of(self, *choices: T) -> T:
        """One of the choices, at random."""
        return choices[int(self.random() * len(choices))]

    # ---- parts ----

    def box(self, x: float, y: float, z: float, w: float, h: float, d: float, e: Exponents | None = None) -> None:
        """Add an upright part: the middle of its bottom, its width, height and depth, its exponents."""
        self.parts.append((x, y + h / 2, z, w, h, d, 1, 0, 0, 0, 1, 0, *(e or self.block)))

    def bar(self, a: Point, b: Point, width: float, depth: float = 0, e: Exponents | None = None) -> None:
        """Add a part along the line from a to b, which is its y axis; its x axis is the world's as far as can be."""
        e = e or self.block
        line = [end - start for start, end in zip(a, b, strict=True)]
        x, y, z = ((start + end) / 2 for start, end in zip(a, b, strict=True))
        length = math.hypot(*line)
        ux, uy, uz = (value / length for value in line)
        depth = depth or width
        if e[0] == e[1] and abs(ux) > 1 - 1e-9:  # a block that lies is not turned
            return self.box(x, y - width / 2, z, length, width, depth, e)
        if e[0] == e[1] and abs(uz) > 1 - 1e-9:
            return self.box(x, y - depth / 2, z, width, depth, length, e)
        across = (1 - ux * ux, -ux * uy, -ux * uz) if abs(ux) < 0.9 else (-uz * ux, -uz * uy, 1 - uz * uz)
        norm = math.hypot(*across)
        axes = (*(value / norm for value in across), ux, uy, uz)
        self.parts.append((x, y, z, width, length, depth, *axes, *e))

    def pair(self, x: float, y: float, z: float, w: float, h: float, d: float, e: Exponents | None = None) -> None:
        """Add a box on either side."""
        self.box(-x, y, z, w, h, d, e)
        self.box(x, y, z, w, h, d, e)

    def legs(self, x: float, z: float, top: float, thick: float, splay: float = 0, e: Exponents | None = None) -> None:
        """Add four legs, up to the height `top`; their feet are further out by `splay`."""
        for sx, sz in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
            foot = (sx * (x + splay), 0.0, sz * (z + splay))
            self.bar(foot, (sx * x, top, sz * z), thick, e=e)

    def sled(self, x: float, z: float, top: float, thick: float) -> None:
        """Add a frame on either side: two posts and a runner on the ground."""
        for sx in (-1, 1):
            self.box(sx * x, 0, 0, thick, thick, 2 * z + thick)
            for sz in (-1, 1):
                self.box(sx * x, thick * 0.8, sz * z, thick, top - thick * 0.8, thick)

    def pedestal(self, radius: float, top: float, thick: float) -> None:
        """Add a column on a foot: a disc, a plate, or three to five spokes."""
        foot = self.one_of("disc", "plate", "spokes", "spokes")
        low = thick * 0.6
        self.box(0, low * 0.8, 0, thick, top - low * 0.8, thick, ROUND)
        if foot == "spokes":
            n = self.one_of(3, 4, 5)
            for k in range(n):
                angle = 2 * math.pi * (k + 0.5 * (n % 2 == 0)) / n + math.pi / 2
                end = (radius * math.cos(angle), low / 2, radius * math.sin(angle))
                self.bar((0, low * 1.4, 0), end, low, e=self.block)
        else:
            self.box(0, 0, 0, 2 * radius, low, 2 * radius, ROUND if foot == "disc" else None)

    def drawers(
        self, x: float, y: float, w: float, h: float, d: float, n: int, columns: int = 1, spare: int = 4
    ) -> None:
        """Add a body, its middle at x and z = 0, with a front plate and a handle for each drawer.

        Handles are left out where fewer than `spare` parts would be left.
        """
        self.box(x, y, 0, w, h, d)
        gap, plate = 0.012, 0.03
        wide, high = (w - gap) / columns, (h - gap) / n
        grip = self.one_of("knob", "bar", "none")
        if len(self.parts) + 2 * n * columns > MAX_PARTS - spare:
            grip = "none"
        for k in range(n):
            for column in self.row(columns, w - gap):
                bottom, front = y + gap + k * high, d / 2 - 0.005
                self.box(x + column, bottom, front, wide - gap, high - gap, plate)
                middle, front = bottom + (high - gap) / 2, front + plate / 2
                if grip == "knob":
                    self.box(x + column, middle - 0.02, front + 0.018, 0.04, 0.04, 0.04, BALL)
                elif grip == "bar":
                    self.box(x + column, middle - 0.0125, front + 0.013, wide * 0.4, 0.025, 0.03)

    @staticmethod
    def row(n: int, width: float) -> list[float]:
        """The middles of n equal places across a width."""
        return [width * ((k + 0.5) / n - 0.5) for k in range(n)]

    def finished(self) -> dict[str, np.ndarray]:
        """The attributes of the piece, in the size and at the place of the embedded set."""
        rows = np.array(self.parts)
        center, size, axes = rows[:, :3], rows[:, 3:6], rows[:, 6:12]
        first, second = axes[:, :3], axes[:, 3:]
        turned = np.stack([first, second, np.cross(first, second)], axis=1)  # (P, 3, 3)
        reach = (np.abs(turned) * size[:, :, None]).sum(1) / 2  # of a part along the world's axes
        low, high = (center - reach).min(0), (center + reach).max(0)
        origin = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
        scale = DIAGONAL / np.linalg.norm(high - low)
        return {
            "box.center": np.round((center - origin) * scale, DECIMALS),
            "box.size": np.round(size * scale, DECIMALS),
            "box.axes": np.round(axes, DECIMALS + 2),
            "code.exponents": np.round(rows[:, 12:], DECIMALS),
        }
