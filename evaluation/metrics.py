"""Distances between two sets of images from their features: FID and its kin, in float64, and all of them in one report.

Each distance takes features of shape (N, D), of whichever network of `features.py`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.device import float64
from runtime.errors import DataError

SEED = 2020  # of permutations and subsets; torch-fidelity has this one, too, so that values agree
NEIGHBOURS = 3  # k of precision and recall
CHUNK = 4096  # rows that are computed at a time


@dataclass
class Moments:
    """Mean (D,) and covariance (D, D) of features, in float64."""

    mean: Tensor
    cov: Tensor


class RunningMoments:
    """Mean and covariance of features that come in parts, in float64, by the update of Chan, Golub and LeVeque."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    def add(self, features: Tensor) -> None:
        """Add features (N, D)."""
        features = features.to(float64(features.device)).double()
        mean = features.mean(0)
        self._join(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: "RunningMoments") -> None:
        """Add all features that another one has seen."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def to(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.mean, self.scatter = self.mean.to(device), self.scatter.to(device)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        self.to(mean.device)
        total = self.count + count
        delta = mean - self.mean
        self.scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """The mean and the unbiased covariance of all features so far.

        Raises:
            ValueError: they are of fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance takes two images or more, not {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))


def moments(features: Tensor) -> Moments:
    """The mean and the unbiased covariance of features (N, D).

    Raises:
        ValueError: N is less than 2.
    """
    running = RunningMoments(features.shape[1])
    for part in features.split(CHUNK):
        running.add(part)
    return running.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared distance between two Gaussians: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2.

    Heusel et al., arXiv 1706.08500, equation 6. The last trace is the sum of the singular values of C1^1/2 C2^1/2,
    which are real whatever rounding does; the root of C1 C2 turns complex when there are fewer images than features,
    and roots of eigenvalues that should be 0 add up.
    """
    cross = torch.linalg.svdvals(square_root(a.cov) @ square_root(b.cov)).sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def square_root(cov: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues, up to rounding."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) || p(y)): its mean over splits of the shuffled set, and their standard deviation.

    Salimans et al., arXiv 1606.03498. A set of fewer images than splits has a split for each image.

    Args:
        logits: (N, K) of a classifier.
    """
    n = len(logits)
    splits = min(splits, n)
    log_p = logits[np.random.RandomState(SEED).permutation(n)].double().log_softmax(1)
    scores = []
    for k in range(splits):
        part = log_p[k * n // splits : (k + 1) * n // splits]
        divergence = (part.exp() * (part - part.exp().mean(0).log())).sum(1).mean()
        scores.append(divergence.exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000) -> tuple[float, float]:
    """Unbiased squared MMD under the kernel (x . y / D + 1)^3: mean over random subsets, and standard deviation.

    KID of Binkowski et al., arXiv 1801.01401. Sets of fewer images than `size` are taken whole.

    Raises:
        ValueError: a set has fewer than two images.
    """
    size = min(size, len(a), len(b))
    if size == len(a) == len(b):
        subsets = 1  # there is but one
    if size < 2:
        raise ValueError(f"a kernel distance takes two images or more, not {size}")
    random = np.random.RandomState(SEED)

    def kernel_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        kernel = (x @ y.T / x.shape[1] + 1) ** 3
        return kernel.sum(), kernel.trace()

    distances = []
    for _ in range(subsets):
        x = a[random.choice(len(a), size, replace=False)].double()
        y = b[random.choice(len(b), size, replace=False)].double()
        (xx, xx_diagonal), (yy, yy_diagonal), (xy, _) = kernel_sum(x, x), kernel_sum(y, y), kernel_sum(x, y)
        within = (xx - xx_diagonal + yy - yy_diagonal) / (size * (size - 1))
        distances.append((within - 2 * xy / size**2).item())
    return float(np.mean(distances)), float(np.std(distances))


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """The share of samples among the references, and of references among the samples.

    A point is among a set when its distance to some point of the set is at most that point's distance to its k-th
    nearest neighbour in the set. Kynkaanniemi et al., arXiv 1904.06991.

    Raises:
        ValueError: a set has no more than k images.
    """
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"precision and recall take {k + 1} images or more of each set")
    return share_among(samples, reference, k), share_among(reference, samples, k)


def share_among(points: Tensor, members: Tensor, k: int) -> float:
    """The share of points (N, D) that are among members (M, D), see `precision_recall`."""
    members = members.double()
    rows = max(1, CHUNK * 8192 // len(members))  # at a time: 256 MB of distances
    # The first nearest neighbour of a member is itself.
    radii = torch.cat([torch.cdist(part, members).kthvalue(k + 1).values for part in members.split(rows)])
    inside = [(torch.cdist(part.double(), members) <= radii).any(1) for part in points.split(rows)]
    return torch.cat(inside).double().mean().item()


# ---- two sets ------------------------------------------------------------------------------------------------------


@dataclass
class Statistics:
    """The statistics of a set of images in a network's features, on the CPU.

    Attributes:
        extractor: the network's name.
        count: number of images, 0 where a file does not say.
        pooled, spatial: moments of the features; the spatial ones for inception only.
        features: (K, D), of all images or of some; None where a file has the moments alone.
        logits: (K, classes), None where they come from a file, or the network has none.
    """

    extractor: str
    count: int
    pooled: Moments
    spatial: Moments | None
    features: Tensor | None
    logits: Tensor | None


def compare(samples: Statistics, reference: Statistics, device: torch.device) -> dict[str, float]:
    """FD, sFD, IS, KD, precision and recall (see `report_name`), as far as the statistics have what they take.

    IS and KD have their standard deviation over subsets beside them, as IS_std and KD_std. Computed on the device if it
    has float64.

    Raises:
        DataError: the spatial features differ in number, as from another layer.
    """

    device = float64(device)

    def distance(a: Moments, b: Moments) -> float:
        a, b = (Moments(m.mean.to(device), m.cov.to(device)) for m in (a, b))
        return frechet_distance(a, b)

    results = {"FD": distance(samples.pooled, reference.pooled)}
    if samples.spatial is not None and reference.spatial is not None:
        counts = len(samples.spatial.mean), len(reference.spatial.mean)
        if counts[0] != counts[1]:
            raise DataError(f"the samples have {counts[0]} spatial features (mu_s), the reference {counts[1]}")
        results["sFD"] = distance(samples.spatial, reference.spatial)
    if samples.logits is not None:
        results["IS"], results["IS_std"] = inception_score(samples.logits.to(device))
    if samples.features is not None and reference.features is not None:
        pair = samples.features.to(device), reference.features.to(device)
        results["KD"], results["KD_std"] = kernel_distance(*pair)
        if min(map(len, pair)) > NEIGHBOURS:
            results["precision"], results["recall"] = precision_recall(*pair, NEIGHBOURS)
    return results


def report_name(name: str, extractor: str) -> str:
    """The name of a number: FID, sFID and KID with inception, else with the network's name in it."""
    if extractor == "inception":
        return {"FD": "FID", "sFD": "sFID", "KD": "KID", "KD_std": "KID_std"}.get(name, name)
    stem, _, std = name.partition("_")
    return f"{stem}-{extractor}" + "_std" * bool(std)
