"""A small network of point clouds, trained on a set of shapes, to judge samples by the features of its last layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.metrics import frechet_distance, moments
from runtime.errors import DataError
from shapes.chamfer import check_clouds

FEATURES = 32
CELLS = 4  # cells along an edge of the grid
SEEN = 256  # points of a cloud in a step of training
POINTS = 1024  # points of a cloud, at most, from which its features are computed
STEPS, BATCH = 400, 64
NOISE = 0.02  # noise of the points in training, in standard deviations of the coordinates


class PointNetwork:
    """A small PointNet (arXiv 1612.00593), trained on four fifths of a set of clouds.

    From 32 features it predicts the class, and the share of the surface in each cell of a 4 x 4 x 4 grid over the set.
    The second makes the features follow the shape also in sets of one class, where the first teaches nothing. Its
    Frechet distance is of use within a set only. It is not the FPD of publications, whose network has seen other data.

    Args:
        clouds: (N, P, 3), N of at least 2, on any device.
        labels: (N,) of classes below num_classes.
        seed: seed of the split, the initialisation and the order.

    Attributes:
        accuracy: share of right classes on the other fifth; 1 where there is one class.
        explained: share of the variance of the other fifth's cells that it predicts.
        moments: moments of the features of all clouds.

    Raises:
        DataError: there are fewer than two clouds, or they are not finite.
    """

    def __init__(self, clouds: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> None:
        check_clouds(clouds)
        if len(clouds) < 2:
            raise DataError(f"a network cannot be trained on {len(clouds)} shape; two or more are needed")
        clouds = clouds.float()
        self.low, self.high = clouds.amin((0, 1)), clouds.amax((0, 1))
        self.center, self.scale = clouds.mean((0, 1)), clouds.std()
        with torch.random.fork_rng(devices=[clouds.device] if clouds.is_cuda else []):
            torch.manual_seed(seed)
            order = torch.randperm(len(clouds))
            held_out, others = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
            self.pointwise = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU())
            self.body = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, FEATURES), nn.GELU())
            self.head = nn.Linear(FEATURES, num_classes + CELLS**3)
            for part in (self.pointwise, self.body, self.head):
                part.to(clouds.device)
            labels, cells = labels.long().to(clouds.device), self._cells(clouds)
            mean, std = cells[others].mean(0), cells[others].std(0, correction=0).square().mean().sqrt() + 1e-6
            cells = (cells - mean) / std
            self._train(clouds[others], labels[others], cells[others], num_classes)
        with torch.no_grad():
            told = self.head(self.features(clouds[held_out]))
        self.num_classes = num_classes
        self.accuracy = (told[:, :num_classes].argmax(1) == labels[held_out]).double().mean().item()
        wrong = (told[:, num_classes:] - cells[held_out]).square().mean()
        self.explained = 1 - (wrong / (cells[held_out].square().mean() + 1e-12)).item()
        self.moments = moments(self.features(clouds))

    def _cells(self, clouds: Tensor) -> Tensor:
        """Square roots of the shares of points in each cell, (N, CELLS^3); roots, so that few points count, too."""
        index = ((clouds - self.low) / (self.high - self.low).clamp_min(1e-6) * CELLS).long().clamp(0, CELLS - 1)
        index = (index[..., 0] * CELLS + index[..., 1]) * CELLS + index[..., 2]
        counts = clouds.new_zeros(len(clouds), CELLS**3)
        counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))
        return (counts / clouds.shape[1]).sqrt()

    def _train(self, clouds: Tensor, labels: Tensor, cells: Tensor, num_classes: int) -> None:
        parameters = [p for part in (self.pointwise, self.body, self.head) for p in part.parameters()]
        opt = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(len(clouds), (min(BATCH, len(clouds)),))
            seen = torch.randperm(clouds.shape[1])[:SEEN]
            x = clouds[chosen][:, seen]
            x = x + NOISE * self.scale * torch.randn_like(x)
            told = self.head(self._features(x))
            loss = F.cross_entropy(told[:, :num_classes], labels[chosen])
            loss = loss + F.mse_loss(told[:, num_classes:], cells[chosen])
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()

    def _features(self, clouds: Tensor) -> Tensor:
        return self.body(self.pointwise((clouds - self.center) / self.scale).amax(1))

    @torch.no_grad()
    def features(self, clouds: Tensor) -> Tensor:
        """The features of clouds: (N, P, 3) -> (N, FEATURES), from their first 1,024 points."""
        return torch.cat([self._features(part.float()) for part in clouds[:, :POINTS].split(100)])

    @torch.no_grad()
    def classes(self, clouds: Tensor) -> Tensor:
        """The predicted classes of clouds: (N, P, 3) -> (N,)."""
        return self.head(self.features(clouds))[:, : self.num_classes].argmax(1)

    def distance(self, clouds: Tensor, reference: Tensor | None = None) -> float:
        """The Frechet distance between samples and data, or another reference, over the reference's total variance."""
        of_reference = self.moments if reference is None else moments(self.features(reference))
        between = frechet_distance(moments(self.features(clouds)), of_reference)
        return between / of_reference.cov.trace().item()
