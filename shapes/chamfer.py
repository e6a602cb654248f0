"""The Chamfer distance of point clouds, and measures of two sets of shapes by their distances.

The distance of two clouds is the mean squared distance from a point of one to the nearest of the other, and back, both
means added: that of PointFlow (arXiv 1906.12320) and of most tables of MMD and coverage since. It is in squared units
of the coordinates. Two clouds drawn from one surface are not at distance 0, but at twice the mean squared distance that
the spacing of points makes.
"""

import torch
from torch import Tensor

from runtime import precision, progress
from runtime.errors import DataError

CELLS = 2**18  # distances between points that are computed at a time: 1 MB, which stays in a core's cache
CUDA_CELLS = 2**27  # on a GPU
TIE = 1e-5  # relative difference up to which distances count as equal


# ---- distances -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def chamfer_distances(a: Tensor, b: Tensor | None = None, desc: str | None = None) -> Tensor:
    """Distances of all pairs of two sets of clouds: (N, P, 3) and (M, P, 3) -> (N, M), of their dtype and device.

    Squared distances of points are |x|^2 - 2 x y + |y|^2, by one matrix product, in which small distances are lost to
    rounding. So pairs of nearly equal clouds are computed again from differences, and equal clouds are at 0.

    Args:
        b: the other set; by default a itself, of which half the pairs are computed.
        desc: label of a progress bar.

    Raises:
        DataError: a set is empty, is not of this shape, has another number of points, or is not finite.
    """
    itself, b = b is None, a if b is None else b
    check_clouds(a, b)
    origin = torch.cat([a, b]).flatten(0, 1).median(0).values  # the smaller numbers are, the less is lost
    a, b = a - origin, b - origin
    square_a, square_b = a.square().sum(2, keepdim=True), b.square().sum(2, keepdim=True)
    left = torch.cat([a, square_a, torch.ones_like(square_a)], dim=2)  # (N, P, 5)
    right = torch.cat([-2 * b, torch.ones_like(square_b), square_b], dim=2)

    points = a.shape[1]
    cells = CUDA_CELLS if a.is_cuda else CELLS
    rows = min(points, max(1, cells // points))
    group = max(1, cells // (rows * points))  # clouds of b at a time
    groups = [part.flatten(0, 1).T.contiguous() for part in right.split(group)]  # (5, group P) each
    space = a.new_empty(rows, group * points)  # made once: new memory costs more than what is computed in it
    found = a.new_zeros(len(a), len(b))
    with precision.exact():  # ten bits are too few for differences of squares
        for i, cloud in enumerate(progress.bar(left, desc=desc) if desc else left):
            for k in range((i + 1) // group if itself else 0, len(groups)):
                found[i, k * group : (k + 1) * group] = to_each(cloud, groups[k], points, space)

    if itself:
        found = found.triu(1) + found.triu(1).T
    lost = 64 * torch.finfo(a.dtype).eps * (square_a.mean((1, 2))[:, None] + square_b.mean((1, 2)))  # of each pair
    for i, j in (found < lost).nonzero().tolist():
        if not itself or i < j:
            found[i, j] = by_differences(a[i], b[j])
            if itself:
                found[j, i] = found[i, j]
    return found


def to_each(cloud: Tensor, others: Tensor, points: int, space: Tensor) -> Tensor:
    """The distances from one cloud (P, 5) to each of a group: (5, group P) -> (group,).

    As many points at a time are computed as have space.
    """
    there, back = [], []
    for part in cloud.split(len(space)):
        squares = torch.mm(part, others, out=space[: len(part), : others.shape[1]]).unflatten(1, (-1, points))
        there.append(squares.amin(2))  # (rows, group)
        back.append(squares.amin(0))  # (group, P)
    return torch.cat(there).clamp_min(0).mean(0) + torch.stack(back).amin(0).clamp_min(0).mean(1)


def by_differences(x: Tensor, y: Tensor) -> Tensor:
    """The distance of two clouds (P, 3), to the last digit."""
    there, back = [], []
    for part in x.split(256):
        squares = (part[:, None] - y).square().sum(2)
        there.append(squares.amin(1))
        back.append(squares.amin(0))
    return torch.cat(there).mean() + torch.stack(back).amin(0).mean()


def check_clouds(*sets: Tensor) -> None:
    """See that sets of clouds can be compared.

    Raises:
        DataError: one is empty, not (N, P, 3), not finite, or the sets differ in P.
    """
    for clouds in sets:
        if clouds.ndim != 3 or clouds.shape[2] != 3 or not clouds.is_floating_point():
            raise DataError(f"point clouds are {clouds.dtype} of shape {tuple(clouds.shape)}; (N, P, 3) is needed")
        if 0 in clouds.shape:
            raise DataError(f"no shapes, or no points: point clouds of shape {tuple(clouds.shape)}")
        if not (finite := clouds.isfinite().flatten(1).all(1)).all():
            raise DataError(f"point cloud {int(finite.int().argmin())} of {len(clouds)} is not finite")
    if len(counts := {clouds.shape[1] for clouds in sets}) > 1:
        raise DataError(f"point clouds of {' and '.join(map(str, sorted(counts)))} points cannot be compared")


# ---- of sets -------------------------------------------------------------------------------------------------------


def nearest_means(between: Tensor) -> tuple[float, float]:
    """The mean distance from a test shape to the nearest sample, and from a sample to the nearest test shape.

    The first is MMD in most tables; public notes suggest that it is called COV in ComboStoc's Table 4. It grows where
    samples miss test shapes. The second grows with samples that look like no test shape.

    Args:
        between: distances, (samples, test shapes).
    """
    return between.double().amin(0).mean().item(), between.double().amin(1).mean().item()


def coverage(between: Tensor) -> float:
    """The share of test shapes that are the nearest to some sample, in percent (Achlioptas et al., arXiv 1707.02392).

    Where several are equally near, as copies are, a sample covers them all. The share depends on the number of samples.
    """
    return 100 * (between <= between.amin(1, keepdim=True) * (1 + TIE)).any(0).double().mean().item()


def nearest_neighbour_accuracy(samples: Tensor, between: Tensor, test: Tensor) -> float:
    """The share of shapes whose nearest other shape is of their own set, in percent; 50 is best.

    Leave-one-out over the union (Lopez-Paz and Oquab, arXiv 1610.06545). Near 100 the sets are apart; near 0 each
    shape has a copy in the other set, as when samples are the test shapes. A tie counts half.

    Args:
        samples, between, test: distances within the samples, (N, N), from samples to test shapes, (N, N), and within
            the test shapes, (N, N).

    Raises:
        ValueError: the sets differ in size, with which 50 would not be best, or have fewer than two shapes.
    """
    n, m = between.shape
    if n != m or n < 2:
        raise ValueError(f"1-NN accuracy takes two sets of one size of at least 2, not {n} and {m} shapes")
    own = torch.cat([within.clone().fill_diagonal_(torch.inf).amin(1) for within in (samples, test)])
    other = torch.cat([between.amin(1), between.amin(0)])
    tied = (own - other).abs() <= TIE * own.maximum(other)
    right = torch.where(tied, 0.5, (own < other).double())
    return 100 * right.mean().item()
