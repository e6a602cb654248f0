"""A small classifier of a data set, to judge samples by: their classes, and the features of its last hidden layer."""

import argparse
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import UnreadableImage
from data.sets import ImageDataset
from evaluation.metrics import frechet_distance, moments
from sampling.arguments import sampling_parser
from sampling.network import ImageNoise, Network, draw, guided_by

SIDE = 32  # larger pictures are averaged down to this
FEATURES = 32
MAX_IMAGES = 20_000
BATCH = 250  # samples that are drawn at a time


class Judge:
    """A classifier trained on four fifths of a data set's images; `accuracy` is its accuracy on the other fifth.

    Args:
        dataset: images in [-1, 1] with labels; if there are more than `MAX_IMAGES`, `MAX_IMAGES` of them are used.
        mirror: take mirror images for images, too, in training and in the data's features, as the samples' model does.
        seed: seed of the split, the initialisation and the order.
    """

    def __init__(self, dataset: ImageDataset, *, mirror: bool, seed: int = 0, epochs: int = 30) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(dataset), generator=generator)[:MAX_IMAGES].tolist()
        items = [(shrunk(x[None])[0], y) for x, y in readable(dataset, chosen)]
        images, labels = torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])
        channels, side = images.shape[1], -(-images.shape[2] // 4)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1, stride=2),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, padding=1, stride=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * side * side, FEATURES),
                nn.ReLU(),
            )
            self.head = nn.Linear(FEATURES, len(dataset.class_names))
            held_out = len(images) // 5
            self._train(images[held_out:], labels[held_out:], mirror=mirror, epochs=epochs)
        self.accuracy = (self.classes(images[:held_out]) == labels[:held_out]).double().mean().item()
        whole = torch.cat([images, images.flip(-1)]) if mirror else images
        self.moments = moments(self.features(whole))

    def _train(self, images: Tensor, labels: Tensor, *, mirror: bool, epochs: int) -> None:
        parameters = [*self.body.parameters(), *self.head.parameters()]
        opt = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
        batches = -(-len(images) // 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for part in torch.randperm(len(images)).split(128):
                x = images[part] + 0.1 * torch.randn(len(part), *images.shape[1:])
                if mirror:
                    x = torch.where(torch.rand(len(part), 1, 1, 1) < 0.5, x, x.flip(-1))
                loss = F.cross_entropy(self.head(self.body(x)), labels[part])
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The features of images (N, C, H, W) in [-1, 1]: (N, FEATURES)."""
        return torch.cat([self.body(shrunk(part)) for part in images.clamp(-1, 1).split(1000)])

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """The predicted classes of images (N, C, H, W) in [-1, 1]: (N,)."""
        return self.head(self.features(images)).argmax(1)

    def distance(self, images: Tensor) -> float:
        """The Frechet distance between samples and data, in units of the data's total variance."""
        between = frechet_distance(moments(self.features(images)), self.moments)
        return between / self.moments.cov.trace().item()


def readable(dataset: ImageDataset, indices: Iterable[int]) -> Iterator[tuple[Tensor, int]]:
    """Images and labels, without those that cannot be read."""
    for i in indices:
        try:
            yield dataset[i, False]
        except UnreadableImage:
            continue


def shrunk(images: Tensor) -> Tensor:
    """Images (N, C, H, W), averaged down to `SIDE` where they are wider."""
    return F.adaptive_avg_pool2d(images, SIDE) if images.shape[-1] > SIDE else images


def unguided(mode: str, *flags: str) -> argparse.Namespace:
    """The arguments of sample.py, without guidance."""
    parser = sampling_parser("", lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False)
    return parser.parse_args([mode, *flags, "--cfg-scale", "1"])


def balanced_labels(network: Network, samples: int) -> Tensor:
    """Labels in which all classes are equally often: (samples,)."""
    return torch.arange(samples) % network.num_labels


def drawn(args: argparse.Namespace, network: Network, labels: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Batches of samples from the noise of seed 0, each with the number of evaluations that it took."""
    device, model = next(network.model.parameters()).device, guided_by(args, network)
    for part in torch.arange(len(labels)).split(BATCH):
        yield draw(args, network, ImageNoise(0, part.tolist()), labels[part].to(device), model)


def judge_samples(args: argparse.Namespace, network: Network, judge: Judge, samples: int) -> tuple[float, float, int]:
    """The distance of samples, the share in the class asked for, and the model evaluations of a batch.

    The samples have each class equally often, the noise of seed 0, and the settings of sample.py's arguments.
    """
    images, labels, evaluations = [], balanced_labels(network, samples), 0
    for x, taken in drawn(args, network, labels):
        images.append(shrunk(x.clamp(-1, 1)).cpu())
        evaluations = taken
    x = torch.cat(images)
    return judge.distance(x), (judge.classes(x) == labels).double().mean().item(), evaluations
