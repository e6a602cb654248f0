"""Pictures of shapes, drawn by NumPy: seen from above and the front, shaded, each part in a colour of its own."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shapes.meshes import part_colours, shape_mesh
from shapes.sets import EXPONENTS, Shape

YAW, PITCH = math.radians(32), math.radians(24)  # of the camera: to the right of the front, above the ground
SAMPLES = 3  # supersampling of a pixel, along each side
LIGHT = np.array([-0.35, 0.8, 0.5]) / np.linalg.norm([-0.35, 0.8, 0.5])  # direction towards the light
AMBIENT, FULL = 0.52, 1.06  # brightness of surfaces that are turned away from the light, and that face it
CREASE = math.cos(math.radians(35))  # a triangle that is turned further from its neighbours has an edge there
BACKGROUND = np.array([247, 247, 249], np.float32)
SHADOW, OUTLINE = 0.78, 0.5  # brightness of the shadow, and of the lines around parts
GAP = 0.02  # a step in depth from which there is a line, as a share of the view


def camera() -> np.ndarray:
    """The camera's axes, as rows: to the right, up, and towards the camera."""
    right = [math.cos(YAW), 0.0, -math.sin(YAW)]
    near = [math.sin(YAW) * math.cos(PITCH), math.sin(PITCH), math.cos(YAW) * math.cos(PITCH)]
    return np.array([right, np.cross(near, right), near])


@dataclass(frozen=True)
class View:
    """The centre and the scale of a picture."""

    center: tuple[float, float, float]  # the point in the middle
    extent: float  # the length along the picture's side; 1 where all that is seen is a point

    @classmethod
    def of(cls, shapes: Iterable[Shape]) -> "View":
        """The view in which all of these shapes fit."""
        corners = np.concatenate([shape_mesh(shape)[0] for shape in shapes]) @ camera().T
        low, high = corners.min(0), corners.max(0)
        center = (low + high) / 2 @ camera()
        return cls(tuple(center.tolist()), 1.08 * float((high - low)[:2].max()) or 1.0)

    @classmethod
    def typical(cls, shapes: Sequence[Shape], whole: Sequence[Shape] = ()) -> "View":
        """The view in which nine in ten of these shapes fit, and all of `whole`.

        (Shapes that a model makes of noise may be anywhere.)
        """
        corners = [shape_mesh(shape)[0] @ camera().T for shape in (*whole, *shapes)]
        low, high = np.stack([c.min(0) for c in corners]), np.stack([c.max(0) for c in corners])
        middle = np.median((low + high) / 2, axis=0)
        reach = np.maximum(high - middle, middle - low)[:, :2].max(1)  # of each shape, from the middle
        extent = max(np.quantile(reach, 0.9), *reach[: len(whole)], 0)
        return cls(tuple((middle @ camera()).tolist()), 2.16 * float(extent) or 1.0)


FURNITURE = View((0.0, 0.5, 0.0), 1.46)  # where the embedded set fits


def render(
    shape: Shape,
    size: int = 128,
    view: View = FURNITURE,
    faded: Sequence[bool] | np.ndarray | None = None,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """A picture of a shape.

    Args:
        shape: its parts.
        size: side in pixels.
        view: centre and scale of the picture.
        faded: (parts,) bool: parts that are pale grey, so that the others stand out.
        numbers: (parts,) the numbers by which parts are coloured; by default 0, 1, ...

    Returns:
        (size, size, 3) uint8.
    """
    vertices, faces, part = shape_mesh(shape)
    n = size * SAMPLES
    seen = (vertices - np.array(view.center)) @ camera().T  # right, up, near
    x, y = n * (0.5 + seen[:, 0] / view.extent), n * (0.5 - seen[:, 1] / view.extent)
    corners = np.stack([x, y, seen[:, 2]], axis=1)[faces]  # (F, 3 corners, 3)
    front = turn(corners) < 0  # y points down here
    corners, part = corners[front], part[front]
    light = brightness(vertices, faces, smooth=EXPONENTS in shape)[front]  # (F, 3)
    depth, shade = planes(corners, corners[..., 2]), planes(corners, light)
    face, near = nearest(corners, depth, n)

    there = face >= 0
    row, column = np.nonzero(there)
    at = face[there]
    lit = shade[at, 0] * (column + 0.5) + shade[at, 1] * (row + 0.5) + shade[at, 2]
    which = np.full((n, n), -1)
    which[there] = part[at]
    lit *= np.where(outlines(which, near, GAP * view.extent)[there], OUTLINE, 1)
    called = len(shape["box.center"]) if numbers is None else numbers
    colours = part_colours(called, faded).astype(np.float32)
    picture = np.repeat(np.repeat(ground(vertices, faces, view, size), SAMPLES, 0), SAMPLES, 1)
    picture[there] = colours[which[there]] * lit[:, None]
    pixels = np.zeros((size, size, 3), np.float32)
    for k in range(SAMPLES**2):
        pixels += picture[k // SAMPLES :: SAMPLES, k % SAMPLES :: SAMPLES]
    return np.clip(pixels / SAMPLES**2 + 0.5, 0, 255).astype(np.uint8)


def turn(corners: np.ndarray) -> np.ndarray:
    """Twice the area of each triangle (F, 3, 2 or 3) on the picture; negative where its corners go the other way."""
    (ax, ay), (bx, by), (cx, cy) = (corners[:, k, :2].T for k in range(3))
    return (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)


def planes(corners: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients p (F, 3) of planes p0 x + p1 y + p2 that have these values (F, 3) at the corners of triangles."""
    (ax, ay), (bx, by), (cx, cy) = (corners[:, k, :2].T for k in range(3))
    a, b, c = values.T
    area = turn(corners)
    area = np.where(np.abs(area) > 1e-9, area, np.inf)
    p0 = ((b - a) * (cy - ay) - (c - a) * (by - ay)) / area
    p1 = ((c - a) * (bx - ax) - (b - a) * (cx - ax)) / area
    return np.stack([p0, p1, a - p0 * ax - p1 * ay], axis=1)


def brightness(vertices: np.ndarray, faces: np.ndarray, smooth: bool) -> np.ndarray:
    """The brightness of each corner of each triangle, (F, 3), after Lambert.

    Args:
        smooth: interpolate between triangles that meet at no sharp angle.
    """
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)  # as long as twice the area
    flat = np.repeat(unit(normal)[:, None], 3, axis=1)  # (F, 3 corners, 3)
    if smooth:
        around = [np.bincount(faces.ravel(), np.repeat(normal[:, k], 3), minlength=len(vertices)) for k in range(3)]
        bent = unit(np.stack(around, axis=1))[faces]
        flat = np.where((bent * flat).sum(2, keepdims=True) > CREASE, bent, flat)
    return AMBIENT + (FULL - AMBIENT) * np.maximum(flat @ LIGHT, 0)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., n) scaled to length 1; those of length 0 stay 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def nearest(corners: np.ndarray, depth: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The z-buffer of n x n pixels: the nearest triangle of each, -1 where there is none, and how near it is.

    Args:
        corners: (F, 3, 2 or more) in pixels, all gone round clockwise on the picture.
        depth: their `planes`.
    """
    face, near = np.full(n * n, -1), np.full(n * n, -np.inf)
    # Rows of triangles, then the pixels from a row's first to its last.
    top = np.ceil(corners[..., 1].min(1) - 0.5).clip(0, n).astype(int)
    rows = (np.floor(corners[..., 1].max(1) - 0.5).clip(-1, n - 1).astype(int) - top + 1).clip(0)
    of, row = spread(rows)
    row += top[of]
    low, high = np.full(len(of), -np.inf), np.full(len(of), np.inf)
    for k in range(3):
        (ax, ay), (bx, by) = corners[of, k, :2].T, corners[of, (k + 1) % 3, :2].T
        rise = by - ay
        with np.errstate(divide="ignore", invalid="ignore"):
            cut = ax + (row + 0.5 - ay) * (bx - ax) / rise
        low = np.where(rise > 0, np.maximum(low, cut), low)
        high = np.where(rise < 0, np.minimum(high, cut), high)
    first = np.ceil(low - 0.5 - 1e-6).clip(0, n).astype(int)
    many = (np.floor(high - 0.5 + 1e-6).clip(-1, n - 1).astype(int) - first + 1).clip(0)
    line, column = spread(many)
    column += first[line]
    of, row = of[line], row[line]
    value = depth[of, 0] * (column + 0.5) + depth[of, 1] * (row + 0.5) + depth[of, 2]
    pixel = row * n + column
    np.maximum.at(near, pixel, value)
    wins = value == near[pixel]
    face[pixel[wins]] = of[wins]
    return face.reshape(n, n), near.reshape(n, n)


def spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each k repeated `counts[k]` times, and beside it 0, 1, ..., counts[k] - 1."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts)[of]


def outlines(part: np.ndarray, near: np.ndarray, gap: float) -> np.ndarray:
    """A mask of the pixels (n, n) at whose edge a part ends in front of another part or of nothing."""
    found = np.zeros(part.shape, bool)
    near = np.where(part < 0, -1e9, near)
    for here, there in (
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
    ):
        differs = (part[here] != part[there]) | (np.abs(near[here] - near[there]) > gap)
        found[here] |= differs & (near[here] >= near[there])
        found[there] |= differs & (near[here] < near[there])
    return found


def ground(vertices: np.ndarray, faces: np.ndarray, view: View, size: int) -> np.ndarray:
    """The background with the shadow on the ground: (size, size, 3)."""
    height = vertices[:, 1:2] - vertices[:, 1].min()
    flat = vertices - height * (LIGHT / LIGHT[1]) * np.array(
        [0.5, 1, 0.5]
    )  # the light is higher up than where it shades
    seen = (flat - np.array(view.center)) @ camera().T
    corners = (size * (0.5 + seen[:, :2] * [1, -1] / view.extent))[faces]
    corners = corners[turn(corners) < 0]
    shaded = (nearest(corners, np.zeros((len(corners), 3)), size)[0] >= 0).astype(np.float32)
    radius = max(1, size // 40)
    for axis in (0, 1):
        for _ in range(2):
            summed = np.cumsum(np.pad(shaded, [(radius + 1, radius) if k == axis else (0, 0) for k in (0, 1)]), axis)
            shaded = np.diff(np.stack([summed.take(range(k, k + size), axis) for k in (0, 2 * radius + 1)]), axis=0)[0]
            shaded = shaded / (2 * radius + 1)
    return BACKGROUND * (1 - (1 - SHADOW) * shaded[..., None])


SIDE = 192  # side in pixels of pictures of samples
