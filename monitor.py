"""Evaluation during training: samples of the averaged weights against a reference, on all processes."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import distributed
import progress
from autoencoder import Autoencoder
from data import Items
from errors import DataError, UsageError
from evaluation import (
    Statistics,
    compare,
    extract,
    is_statistics,
    joined,
    load_statistics,
    report_name,
    statistics_of,
    warnings_about_counts,
)
from features import EXTRACTORS, Extractor, Features, load_extractor
from feed import Data
from image_sets import open_images
from images import UnreadableImage
from latents import CachedLatents
from models import SiT
from pictures import to_uint8
from sampling import ImageNoise, guided
from train_utils import count, positive_int
from transport import Sampler, Transport

MAX_REFERENCE = 50_000  # training images that are looked at
BATCH = 64  # images at a time for the network that sees them


def add_eval_args(parser: argparse._ActionsContainer) -> None:
    """Add --eval-every and what belongs to it."""
    parser.add_argument("--eval-every", type=count, default=0, help="steps between evaluations; 0 is never")
    parser.add_argument("--eval-samples", type=positive_int, default=10_000, help="samples of the averaged weights")
    parser.add_argument(
        "--eval-sampling-steps", type=positive_int, default=250, help="time points of the Euler SDE, without guidance"
    )
    parser.add_argument("--eval-features", choices=EXTRACTORS, default="inception", help="network that sees the images")
    parser.add_argument("--eval-weights", type=Path, metavar="FILE", help="of inception; default: fetched once")
    parser.add_argument(
        "--eval-reference",
        metavar="FILE",
        help=f"what evaluate.py takes as REFERENCE; default: the training images, at most {MAX_REFERENCE:,}",
    )


class Monitor:
    """Evaluates a model as `sample_ddp.py SDE --balanced-labels` and `evaluate.py` would.

    Image i has the noise of (seed, i) every time, so that numbers of two steps differ by the model alone. All processes
    must call the same methods at the same time.

    Raises:
        UsageError: cached latents without a reference.
        DataError: weights or reference cannot be read.
    """

    def __init__(self, args: argparse.Namespace, process: distributed.Process, data: Data) -> None:
        self.args, self.process, self.data = args, process, data
        if isinstance(data.dataset, CachedLatents) and not args.eval_reference:
            raise UsageError(
                f"--eval-every {args.eval_every} with cached latents needs --eval-reference: images or statistics"
            )

        def load() -> Extractor:
            return load_extractor(args.eval_features, args.eval_weights, process.device)

        # The first process fetches what has to be fetched.
        self.extractor = distributed.on_main_first(load)
        self.reference: Statistics | None = None  # in the main process

    def prepare(self) -> list[str]:
        """Look at the reference; returns lines to log."""
        if self.args.eval_reference:
            self.reference = self.load_reference() if self.process.is_main else None
        else:
            self.reference = self.joined_statistics(extract(self.training_images(), self.extractor))
        if self.reference is None:
            return []
        counts = {"samples": self.args.eval_samples, "reference": self.reference.count}
        warnings = warnings_about_counts(self.extractor.dimensions, **counts)
        source = self.args.eval_reference or "the training data"
        name = report_name("FD", self.extractor.name)
        return [f"Evaluating: {name} and others against {source}", *(f"Warning: {line}" for line in warnings)]

    def load_reference(self) -> Statistics:
        source = self.args.eval_reference
        if Path(source).suffix == ".npz" and is_statistics(Path(source)):
            return load_statistics(Path(source), self.extractor, self.process.device)
        images = open_images(source, self.args.image_size)
        if len(images) < 2:
            raise DataError(f"{source} holds {len(images)} image; a distribution takes two or more")
        features = extract(progress.bar(images.batches(BATCH), desc=source), self.extractor)
        return statistics_of(features, self.extractor, self.process.device)

    def training_images(self) -> Iterator[Tensor]:
        """This process's share of the training images, or of evenly spaced ones: (n, 3, H, W) uint8."""
        dataset = self.data.dataset
        chosen = torch.linspace(0, len(dataset) - 1, min(len(dataset), MAX_REFERENCE)).round().long().tolist()
        mine = chosen[self.process.rank :: self.process.world_size]
        for start in progress.bar(range(0, len(mine), BATCH), desc="reference"):
            images = list(readable(dataset, mine[start : start + BATCH]))
            if images:
                yield torch.from_numpy(to_uint8(torch.stack(images))).permute(0, 3, 1, 2)

    @torch.no_grad()
    def samples(self, model: SiT, transport: Transport, autoencoder: Autoencoder) -> Iterator[Tensor]:
        """This process's share of the samples: (n, 3, H, W) uint8."""
        args, process, data = self.args, self.process, self.data
        field = guided(model, 1.0, precision_name=args.precision)
        mine = range(process.rank, args.eval_samples, process.world_size)
        batch_size = args.global_batch_size // process.world_size
        for start in progress.bar(range(0, len(mine), batch_size), desc="samples"):
            indices = mine[start : start + batch_size]
            noise = ImageNoise(args.global_seed, indices)
            noise.labels(len(data.dataset.class_names))  # drawn first by sample_ddp.py
            y = torch.tensor([i % len(data.dataset.class_names) for i in indices], device=process.device)
            z = noise.randn((data.channels, data.input_size, data.input_size), process.device)
            sample = Sampler(transport).sample_sde(
                diffusion_form="sigma", num_steps=args.eval_sampling_steps, randn=noise.randn_like
            )
            yield torch.from_numpy(to_uint8(autoencoder.decode(sample(z, field, y=y)[-1]))).permute(0, 3, 1, 2)

    def evaluate(self, model: SiT, transport: Transport) -> dict[str, float]:
        """The numbers of `evaluation.compare`, in the main process; {} in the others."""
        assert self.data.autoencoder is not None
        found = self.joined_statistics(extract(self.samples(model, transport, self.data.autoencoder), self.extractor))
        return {} if found is None or self.reference is None else compare(found, self.reference)

    def joined_statistics(self, features: Features) -> Statistics | None:
        """Statistics of all processes' features, in the main process, in the order that one process would have."""
        parts = distributed.gather(features)
        if not self.process.is_main:
            return None
        order = torch.cat([rank + len(parts) * torch.arange(len(part.pooled)) for rank, part in enumerate(parts)])
        pooled, spatial, logits = joined(parts)
        order = order.argsort()
        features = Features(pooled[order], None if spatial is None else spatial[order], logits[order])
        return statistics_of(features, self.extractor, self.process.device)


def readable(dataset: Items, indices: list[int]) -> Iterator[Tensor]:
    """Images as they are trained on, without those that cannot be read, which training names."""
    for i in indices:
        try:
            yield dataset[i, False][0]
        except UnreadableImage:
            continue
