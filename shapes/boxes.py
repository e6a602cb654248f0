"""The oriented box of a part: exact where the part is a box, small where it is not, its axes in one order."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull, QhullError

FLAT = 1e-6  # share of the longest side below which a part is a plane, or a line
FULL = 0.99  # share of its box that a part fills if it is a box
SLACK = 0.5  # by how much another box may be larger than the smallest, as a share of the empty part of the smallest
MOST_SLACK = 0.08  # by how much at most, as a share of the smallest box
NORMALS = 32  # the largest faces of the hull are tried, this many
EDGES = 256  # and the longest edges, this many
ALIKE = 1 - 1e-6  # cosine from which directions count as equal
TIE = 1e-7  # relative difference up to which volumes count as equal

# The 24 orders and signs in which the axes of a box can be named.
TURNS = np.array(
    [
        turn
        for order in itertools.permutations(range(3))
        for signs in itertools.product([1.0, -1.0], repeat=3)
        if np.linalg.det(turn := np.diag(signs)[list(order)]) > 0
    ]
)


class OrientedBox(NamedTuple):
    """An oriented box."""

    center: np.ndarray  # (3,)
    size: np.ndarray  # (3,) along its own axes
    axes: np.ndarray  # (3, 3), the rows of a rotation


def oriented_box(points: np.ndarray) -> OrientedBox:
    """A box that contains the points, of nearly the smallest volume.

    Of all boxes of about that volume it is the one nearest to the world's axes. A part that fills its box has this box
    only; a round part has many, and gets the upright, aligned one. The axes are named after the nearest of the world's:
    an aligned box has the identity.

    Args:
        points: (P, 3), finite.
    """
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    middle, scale = low + (high - low) / 2, (high - low).max()
    if scale == 0:
        return OrientedBox(middle, np.zeros(3), np.eye(3))
    points = (points - middle) / scale
    axes = named_axes(best_frame(points))
    along = points @ axes.T
    low, high = along.min(0), along.max(0)
    return OrientedBox(middle + scale * ((low + high) / 2) @ axes, scale * (high - low), axes)


def best_frame(points: np.ndarray) -> np.ndarray:
    """The axes of the box, in any order and with any signs: (3, 3)."""
    directions = np.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    if len(directions) < 3:  # two points
        return frame_with(directions[0])
    _, second, third = np.ptp(points @ directions.T, axis=0)
    if second < FLAT:
        return frame_with(directions[0])
    try:
        if third < FLAT:
            return nearest_frame(*rectangles(points, directions[2]), filled=plane_area(points @ directions[:2].T))
        hull = ConvexHull(points)
    except QhullError:  # it is too thin for the library's precision
        return frame_with(directions[2])
    points, filled = points[hull.vertices], hull.volume
    if filled >= np.prod(np.ptp(points, axis=0)) * (1 - TIE):
        return np.eye(3)  # an aligned box, as most are
    tried = [rectangles(points, normal) for normal in [*np.eye(3), *face_normals(hull)]]
    frames = np.concatenate([frames for frames, _ in tried])
    volumes = [areas * np.ptp(points @ frames[0, 2]) for frames, areas in tried]
    return nearest_frame(frames, np.concatenate(volumes), filled)


def nearest_frame(frames: np.ndarray, volumes: np.ndarray, filled: float) -> np.ndarray:
    """The frame nearest to the world's axes, of those whose boxes are small enough."""
    least = volumes.min()
    slack = min(MOST_SLACK, SLACK * max(0.0, FULL - filled / least))
    frames, volumes = (values[volumes <= least * (1 + slack + TIE)] for values in (frames, volumes))
    nearness = np.einsum("tij,nji->tn", TURNS, frames).max(0).round(6)
    frames, volumes = (values[nearness == nearness.max()] for values in (frames, volumes))
    small = frames[volumes <= volumes.min() * (1 + TIE)]
    # mirror images of each other are equally good: take the same one whatever the rounding
    return max(small, key=lambda frame: tuple(named_axes(frame).round(6).ravel()))


def named_axes(frame: np.ndarray) -> np.ndarray:
    """The axes of a frame in the order and with the signs that are nearest to the world's: (3, 3)."""
    turned = TURNS @ frame + 0.0  # no -0
    nearness = np.trace(turned, axis1=1, axis2=2).round(6)
    nearest = turned[nearness == nearness.max()]
    return max(nearest, key=lambda axes: tuple(axes.round(6).ravel()))


def frame_with(axis: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) that is nearest to the identity and has this axis as its last row."""
    axis = np.where(np.abs(axis) < 1e-12, 0, axis)
    size = np.abs(axis).round(6)
    k = int(size.argmax())
    axis = axis / np.linalg.norm(axis) * (1 if axis[k] > 0 else -1)
    a, b = axis[(k + 1) % 3], axis[(k + 2) % 3]
    one = 1 / (1 + axis[k])
    # the world's next two axes, turned as its k-th is turned to the axis
    u, v = np.zeros(3), np.zeros(3)
    u[k], u[(k + 1) % 3], u[(k + 2) % 3] = -a, 1 - a * a * one, -a * b * one
    v[k], v[(k + 1) % 3], v[(k + 2) % 3] = -b, -a * b * one, 1 - b * b * one
    return np.stack([u, v, axis])


def rectangles(points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames with a normal, flush with an edge of the projection or nearest to the world's axes, and areas.

    Returns:
        Frames (E, 3, 3), the normal last, and the areas (E,) of the rectangles around the projection.
    """
    u, v, normal = frame_with(normal)
    seen = points @ np.stack([u, v]).T
    try:
        outline = seen[ConvexHull(seen).vertices]
    except QhullError:
        outline = seen
    edges = np.roll(outline, -1, axis=0) - outline
    lengths = np.linalg.norm(edges, axis=1)
    longest = np.argsort(-lengths, kind="stable")[:EDGES]
    edges = edges[longest] / np.maximum(lengths[longest], 1e-300)[:, None]
    edges = np.concatenate([[[1.0, 0.0]], edges[lengths[longest] > 0]])
    across = edges @ [[0.0, 1.0], [-1.0, 0.0]]
    areas = np.ptp(edges @ outline.T, axis=1) * np.ptp(across @ outline.T, axis=1)
    first, second = edges @ np.stack([u, v]), across @ np.stack([u, v])
    return np.stack([first, second, np.broadcast_to(normal, first.shape)], axis=1), areas


def face_normals(hull: ConvexHull) -> list[np.ndarray]:
    """The directions of the largest faces of a hull; all triangles in one plane, or in opposite ones, are one face."""
    a, b, c = (hull.points[hull.simplices[:, k]] for k in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    order = np.argsort(-areas, kind="stable")
    normals, areas = hull.equations[order, :3], areas[order]
    found: list[np.ndarray] = []
    while len(normals) and len(found) < NORMALS:
        cosines = normals @ normals[0]
        alike = np.abs(cosines) > ALIKE
        alike[0] = True  # whatever the rounding
        mean = (np.sign(cosines) * areas)[alike] @ normals[alike]
        length = np.linalg.norm(mean)
        found.append(mean / length if length > 0 else normals[0])
        normals, areas = normals[~alike], areas[~alike]
    return found


def plane_area(points: np.ndarray) -> float:
    """The area of the hull of points (P, 2) in a plane."""
    return float(ConvexHull(points).volume)
