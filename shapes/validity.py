"""The validity of a shape, judged by its boxes: whether its parts hold together, and whether it stands.

Superquadrics are judged by the boxes around them.
"""

import numpy as np

from shapes.meshes import rotations
from shapes.sets import Shape, ShapeSet

TOLERANCE = 0.02  # as a share of the diagonal of a shape's bounding box; see docs/evaluation.md
SIGNS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
LEVELS = (0.005, 0.995)  # quantiles of the lowest points of a set's shapes, between which the ground is


def corners(shape: Shape) -> np.ndarray:
    """The corners of a shape's boxes: (P, 8, 3)."""
    edges = SIGNS * shape["box.size"][:, None].astype(np.float64)
    return shape["box.center"][:, None] + edges @ rotations(shape["box.axes"].astype(np.float64))


def diagonal(points: np.ndarray) -> float:
    """The diagonal of the bounding box of points (..., 3)."""
    return float(np.linalg.norm(np.ptp(points.reshape(-1, 3), axis=0)))


def gaps(shape: Shape) -> np.ndarray:
    """The gaps between a shape's boxes, (P, P); negative where they overlap, and 0 from a box to itself.

    A gap is the widest along the 15 directions of the separating axis test: the normals of both boxes' faces and the
    cross products of their edges. That is the distance where a face or two crossing edges come nearest; corner to
    corner or to an edge the distance is longer, by at most a factor of sqrt(3).
    """
    axes = rotations(shape["box.axes"].astype(np.float64))  # rows
    center, half = shape["box.center"].astype(np.float64), shape["box.size"].astype(np.float64) / 2
    found = np.zeros((len(center), len(center)))
    i, j = np.triu_indices(len(center), 1)
    crossed = np.cross(axes[i][:, :, None], axes[j][:, None]).reshape(-1, 9, 3)
    length = np.linalg.norm(crossed, axis=2, keepdims=True)
    parallel = length < 1e-6  # edges that say nothing that the faces do not
    crossed = np.where(parallel, axes[i][:, :1], crossed / np.where(parallel, 1, length))
    directions = np.concatenate([axes[i], axes[j], crossed], axis=1)  # (pairs, 15, 3)

    def reach(k: np.ndarray) -> np.ndarray:
        return (np.abs(directions @ axes[k].transpose(0, 2, 1)) * half[k][:, None]).sum(2)

    between = np.abs((directions @ (center[i] - center[j])[:, :, None])[:, :, 0])
    found[i, j] = found[j, i] = (between - reach(i) - reach(j)).max(1)
    return found


def is_connected(shape: Shape, tolerance: float = TOLERANCE) -> bool:
    """Whether all parts are connected by parts that touch, within a share of the shape's size."""
    touching = gaps(shape) <= tolerance * diagonal(corners(shape))
    reached = touching[0]
    while (further := touching[reached].any(0)).sum() > reached.sum():
        reached = further
    return bool(reached.all())


def ground_level(shapes: ShapeSet) -> tuple[float, float]:
    """The heights between which the lowest points of a set's shapes are, but for one in a hundred."""
    low, high = np.quantile([corners(shapes[k])[..., 1].min() for k in range(len(shapes))], LEVELS)
    return float(low), float(high)


def stands(shape: Shape, ground: tuple[float, float], tolerance: float = TOLERANCE) -> bool:
    """Whether a shape's lowest corner is at the ground's level and it does not fall over, within a share of its size.

    It does not fall when the centre of mass of its boxes, taken as massive, is above the polygon that its lowest
    corners span.
    """
    points = corners(shape)
    slack = tolerance * diagonal(points)
    edges = np.maximum(shape["box.size"].astype(np.float64), 1e-6 * diagonal(points) + 1e-12)  # so that panels weigh
    volume = edges.prod(1)
    mass = np.average(shape["box.center"].astype(np.float64), axis=0, weights=volume)
    points = points.reshape(-1, 3)
    lowest = points[:, 1].min()
    support = points[points[:, 1] <= lowest + slack][:, [0, 2]] - mass[[0, 2]]
    support = (support[:, None] + slack * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])).reshape(-1, 2)
    # The centre is inside of the polygon unless all of it lies to one side.
    angles = np.sort(np.arctan2(support[:, 1], support[:, 0]))
    steady = np.diff(angles, append=angles[0] + 2 * np.pi).max() < np.pi
    return bool(ground[0] - slack <= lowest <= ground[1] + slack and steady)


def validity(shapes: ShapeSet, ground: tuple[float, float]) -> dict[str, float]:
    """The shares of shapes that are connected, that stand, and that do both, in percent.

    Args:
        ground: `ground_level` of real shapes.
    """
    connected = np.array([is_connected(shapes[k]) for k in range(len(shapes))])
    standing = np.array([stands(shapes[k], ground) for k in range(len(shapes))])
    shares = {"connected": connected, "standing": standing, "valid": connected & standing}
    return {f"{name}_percent": 100 * float(share.mean()) for name, share in shares.items()}
