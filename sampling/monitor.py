"""The judge of samples during training, against a reference and on all processes: its interface, and that of images."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from data.autoencoder import Autoencoder
from data.caches import Latents
from data.feed import Data
from data.images import UnreadableImage
from data.pictures import to_uint8
from data.sets import Items
from evaluation.features import DIMENSIONS, load_extractor
from evaluation.image_sets import Batch, shares
from evaluation.metrics import Statistics, compare, report_name
from evaluation.statistics import (
    evenly_spaced,
    joined,
    look,
    open_source,
    statistics_of,
    warnings_about_counts,
    warnings_about_sizes,
)
from models import SiT
from runtime import distributed, progress
from runtime.errors import UsageError
from sampling.network import ImageNoise, guided
from transport import PUBLISHED_SDE, Sampler, Transport

MAX_REFERENCE = 50_000  # training images that an evaluation during training looks at
BATCH = 64  # images at a time for the network of features

T = TypeVar("T")


# ---- of any kind ---------------------------------------------------------------------------------------------------


class Evaluator(Protocol):
    """A judge of samples. All processes must call the same methods at the same time."""

    def prepare(self) -> list[str]:
        """Compute the statistics of the reference; returns lines to log."""
        ...

    def evaluate(self, model: SiT, transport: Transport, stop: Callable[[], bool]) -> dict[str, float]:
        """The numbers, in the first process; {} in the others, or if asked to stop.

        Args:
            stop: called between batches, in all processes at the same time, with one answer in all.

        Raises:
            FloatingPointError: in all processes, if samples of any are not finite; in the first, if the decoded
                samples cannot be judged.
        """
        ...


@torch.no_grad()
def samples(
    args: argparse.Namespace,
    process: distributed.Process,
    data: Data,
    model: SiT,
    transport: Transport,
    decode: Callable[[Tensor], T],
    stop: Callable[[], bool],
) -> Iterator[tuple[Sequence[int], T]]:
    """This process's share of the samples and their indices, until all processes are asked to stop.

    Args:
        decode: makes of a batch of the model's outputs what is returned.

    Raises:
        FloatingPointError: in all processes, if samples of any are not finite.
    """
    field = guided(model, 1.0, precision_name=args.precision)
    classes = len(data.dataset.class_names)
    for start in progress.bar(range(0, args.eval_samples, args.global_batch_size), desc="samples"):
        if stop():  # as often in every process
            return
        in_round = range(start, min(start + args.global_batch_size, args.eval_samples))
        indices = in_round[process.rank :: process.world_size]
        trouble = ""
        if indices:
            noise = ImageNoise(args.global_seed, indices)
            noise.labels(classes)  # drawn first by sample_ddp.py
            y = torch.tensor([i % classes for i in indices], device=process.device)
            z = noise.randn(data.input_shape, process.device)
            sde = replace(PUBLISHED_SDE, num_steps=args.eval_sampling_steps)
            sample = Sampler(transport).sample_sde(**vars(sde), randn=noise.randn_like)
            try:
                decoded = decode(sample(z, field, y=y)[-1])
            except FloatingPointError as error:
                trouble = str(error)
        if any(found := distributed.gather(trouble)):
            raise FloatingPointError(next(filter(None, found)))
        if indices:
            yield indices, decoded


# ---- of images -----------------------------------------------------------------------------------------------------


class Monitor:
    """The judge of images: numbers as from `sample_ddp.py SDE --balanced-labels` and `evaluate.py`.

    Image i has the noise of (seed, i) every time, so that numbers of two steps differ by the model alone. All processes
    must call the same methods at the same time.

    Raises:
        UsageError: cached latents without a reference.
        DataError: weights or reference cannot be read.
    """

    def __init__(self, args: argparse.Namespace, process: distributed.Process, data: Data) -> None:
        self.args, self.process, self.data = args, process, data
        if isinstance(data.dataset, Latents) and not args.eval_reference:
            raise UsageError(
                f"--eval-every {args.eval_every} with cached latents needs --eval-reference: images or statistics"
            )
        name, device = args.eval_features, process.device
        self.source = open_source(args.eval_reference, name, args.image_size) if args.eval_reference else None
        # The first process fetches what has to be fetched.
        self.extractor = distributed.on_main_first(lambda: load_extractor(name, args.eval_weights, device))
        self.reference: Statistics | None = None  # in the first process

    def prepare(self) -> list[str]:
        """Compute the statistics of the reference; returns lines to log, in the first process."""
        if self.source is None:
            count = min(len(self.data.dataset), MAX_REFERENCE)
            self.reference = statistics_of(self.training_images(), count, self.extractor)
        else:
            self.reference = self.source.statistics(self.extractor, self.process, BATCH)
        if self.reference is None:
            return []
        counts = {"samples": self.args.eval_samples, "reference": self.reference.count}
        warnings = [*warnings_about_counts(DIMENSIONS[self.extractor.name], **counts)]
        if self.source is not None and self.source.images is not None:
            warnings += warnings_about_sizes((self.args.image_size,) * 2, self.source.images.size)
        source = self.args.eval_reference or "the training data"
        name = report_name("FD", self.extractor.name)
        return [f"Evaluating: {name} and others against {source}", *(f"Warning: {line}" for line in warnings)]

    def training_images(self) -> Iterator[Batch]:
        """This process's share of the training images, or of `MAX_REFERENCE` evenly spaced ones."""
        dataset = self.data.dataset
        chosen = evenly_spaced(len(dataset), MAX_REFERENCE)
        for part in shares(len(chosen), BATCH, self.process.rank, self.process.world_size):
            images = {k: image for k in part if (image := readable(dataset, chosen[k])) is not None}
            if images:
                yield list(images), as_bytes(torch.stack(list(images.values())))

    def samples(
        self, model: SiT, transport: Transport, autoencoder: Autoencoder, stop: Callable[[], bool]
    ) -> Iterator[Batch]:
        """This process's share of the samples as images, see `samples`."""
        return samples(
            self.args, self.process, self.data, model, transport, lambda x: as_bytes(autoencoder.decode(x)), stop
        )

    def evaluate(self, model: SiT, transport: Transport, stop: Callable[[], bool]) -> dict[str, float]:
        """The numbers of `evaluation.statistics.compare`; see `Evaluator`."""
        autoencoder = self.data.autoencoder
        assert isinstance(autoencoder, Autoencoder)
        seen = look(self.samples(model, transport, autoencoder, stop), self.args.eval_samples, self.extractor)
        found = None
        if not stop():
            found = joined(distributed.gather_to_main(seen), self.extractor)
        if found is None or self.reference is None:
            return {}
        return compare(found, self.reference, self.process.device)


def as_bytes(images: Tensor) -> Tensor:
    """Images (N, 1 or 3, H, W) in [-1, 1] to (N, 3, H, W) uint8."""
    return torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)


def readable(dataset: Items, index: int) -> Tensor | None:
    """A training image (C, H, W) without flip, or None if it cannot be read, which training reports."""
    try:
        return dataset[index, False][0]
    except UnreadableImage:
        return None
