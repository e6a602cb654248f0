"""From --data-path to the model's input: images or cached latents, and their batches on the way to the device."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data import workers
from data.autoencoder import (
    PUBLISHED,
    Autoencoder,
    LatentSpace,
    check_name,
    draw_posterior,
    latent_size,
    load_autoencoder,
)
from data.caches import Latents
from data.foreign_latents import ForeignLatents
from data.order import BatchOrder
from data.scaling import Known, Scaling, choose_scaling, rescaling, scaling_entry, scaling_lines
from data.sets import LOOKED_AT, ImageFolder, Items, load_dataset
from data.skipping import Skipping, collate
from runtime import distributed, signals
from runtime.errors import DataError, UsageError


class Space(Protocol):
    """The way from data to the model's input, and back."""

    def encode(self, x: Tensor, /, sample: bool = True) -> Tensor:
        """The model's inputs (N, ...) of data; `sample` draws from a posterior, where there is one."""
        ...

    def decode(self, x: Tensor, /) -> Tensor:
        """The data of inputs (N, ...), the inverse of `encode`."""
        ...


@dataclass
class Data:
    """A training set, and the way from an item to the model's input."""

    dataset: Items
    to_latents: Callable[[Tensor], Tensor]  # a batch of items, on the device
    input_shape: tuple[int, ...]  # of the model's input: (C, H, W), or (L, F) for shapes
    autoencoder: Space | None  # None where nothing needs it
    about: dict[str, Any] = field(default_factory=dict)  # entries for the checkpoint
    lines: list[str] = field(default_factory=list)  # lines for the log
    settings: dict[str, Any] = field(default_factory=dict)  # arguments of the run that the data decide, by name
    attributes: tuple[int, ...] | None = None  # for shapes, see `Transport`


def load_images(
    args: argparse.Namespace,
    process: distributed.Process,
    trained: int | None = None,
    saved: dict[str, Any] | None = None,
    source: str = "",
) -> Data:
    """Images, to be encoded in every step.

    Args:
        trained: channels of the model that is continued; a model of three goes on with them, also on grey pictures.
        saved, source: content and name of the checkpoint that is continued.

    Raises:
        UsageError: an argument is for an autoencoder, and there is none; or the sizes do not fit.
        DataError: images or autoencoder cannot be loaded.
    """
    if args.latent_stats and args.vae == "none":
        raise UsageError(f"--latent-stats {args.latent_stats} is for latents; --vae none has none")
    if args.encode_bf16 and args.vae == "none":
        raise UsageError("--encode-bf16 is for an autoencoder; --vae none encodes nothing")
    check_name(args.vae)
    channels = args.channels or (3 if args.vae != "none" or trained == 3 else None)
    dataset = load_dataset(args.data_path, args.image_size, channels)
    lines = []
    settings: dict[str, Any] = {}
    if channels is None and isinstance(dataset, ImageFolder) and dataset.channels == 1:
        settings["channels"] = 1  # which the checkpoint keeps, whatever is found later
        lines = [
            f"The pictures are grey (of {min(len(dataset), LOOKED_AT):,} looked at): one channel; --channels 3 is RGB"
        ]
    autoencoder = load_autoencoder(args.vae, process.device, dataset.channels)  # after the data: it may be fetched
    input_size = latent_size(args.image_size, autoencoder.factor, args.model)
    shape = autoencoder.channels, input_size, input_size
    kept: dict[str, Any] = {}
    if isinstance(autoencoder, LatentSpace):
        autoencoder.check_size(args.image_size)
        if args.encode_bf16:
            autoencoder.encode_precision = "bf16"
        known = Known(Scaling(autoencoder.scale, autoencoder.shift), autoencoder.is_scaled)
        settings["latent_stats"], scaling = choose_scaling(args, known, saved or {}, source, autoencoder.channels)
        autoencoder.scale, autoencoder.shift = scaling
        stats = settings["latent_stats"]
        kept, lines = scaling_entry(stats, scaling), lines + scaling_lines(stats, scaling, known)
    return Data(dataset, autoencoder.encode, shape, autoencoder, kept, lines, settings)


def load_latents(
    args: argparse.Namespace,
    process: distributed.Process,
    dataset: Latents,
    saved: dict[str, Any] | None = None,
    source: str = "",
) -> Data:
    """Cached latents.

    The autoencoder only decodes samples, and is not loaded for a run without any; but where latents of another program
    are given with a folder, it is loaded for its scale.

    Args:
        saved, source: content and name of the checkpoint that is continued.

    Raises:
        UsageError: an argument is for images, or does not fit the latents.
        DataError: the latents are damaged, or the autoencoder cannot be loaded.
    """
    if args.encode_bf16:
        raise UsageError(f"--encode-bf16 is for images; {args.data_path} holds latents that are encoded already")
    if args.flip and not dataset.flip:
        raise UsageError(f"{args.data_path} holds no mirror images: give --no-flip")
    needs_pictures = bool(args.sample_every or args.eval_every)
    lines, image_size = [], args.image_size
    if isinstance(dataset, ForeignLatents):
        autoencoder = autoencoder_of_foreign(args, process, needs_pictures)
        image_size = dataset.image_size(args, autoencoder)
        known = dataset.known(args.vae, autoencoder)
        lines.append(dataset.described())
    else:
        dataset.check_known(args.image_size, args.vae)
        try:
            autoencoder = load_autoencoder(args.vae, process.device) if needs_pictures else None
        except DataError as error:
            raise DataError(f"{error}; it is for --sample-every and --eval-every only, 0 is never") from error
        dataset.check_fits(args.image_size, args.vae, autoencoder)
        known = dataset.known
    dataset.verify(process.rank, process.world_size)
    channels, side, _ = dataset.latent_shape
    input_size = latent_size(image_size, image_size // side, args.model)
    stats, scaling = choose_scaling(args, known, saved or {}, source, channels)
    if isinstance(autoencoder, LatentSpace):
        autoencoder.check_size(image_size)
        autoencoder.scale, autoencoder.shift = scaling
    rescaled = rescaling(known.stored, scaling, channels)
    return Data(
        dataset,
        lambda moments: rescaled(draw_posterior(moments)),
        (channels, input_size, input_size),
        autoencoder,
        scaling_entry(stats, scaling),
        lines + scaling_lines(stats, scaling, known),
        {"image_size": image_size, "latent_stats": stats},
    )


def autoencoder_of_foreign(
    args: argparse.Namespace, process: distributed.Process, needs_pictures: bool
) -> Autoencoder | None:
    """The autoencoder of another program's latents, which do not name it; a folder is loaded for its scale, too.

    Raises:
        UsageError: no autoencoder is given, and pictures are to be made.
    """
    if args.vae == "none":
        if needs_pictures:
            raise UsageError(
                f"--vae none decodes no latents, as those in {args.data_path} are: give --vae FOLDER, their "
                "autoencoder, or --sample-every 0 and no --eval-every"
            )
        return None
    return load_autoencoder(args.vae, process.device) if needs_pictures or args.vae not in PUBLISHED else None


@contextmanager
def load_batches(
    dataset: Items,
    order: BatchOrder,
    num_workers: int,
    device: torch.device,
    unreadable: dict[int, str] | None = None,
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Items and labels in the order given, loaded by workers, which start now and are stopped at the end.

    Args:
        unreadable: is filled, when a batch is taken, with the images that could not be read, by index, and the reasons;
            the next readable ones are in their place.

    Raises:
        DataError: workers cannot be started, or one has died.
    """
    loader = DataLoader(
        Skipping(dataset),
        batch_sampler=order,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
        # Python 3.14's own choice would leave them behind when this process is killed. Elsewhere than on Linux a fork
        # does not exist, or breaks the system's libraries.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    with signals.blocked():
        loaded = workers.start(loader)  # draws a random number

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y, reasons in workers.loaded_by(loaded):
            if unreadable is not None:
                unreadable.update(reasons)
            yield x, y

    try:
        yield batches()
    finally:
        # They ignore the signal by which Python would end them at exit, where it then waits for them.
        if num_workers:
            loaded._shutdown_workers()
            for worker in loaded._workers:
                worker.kill()  # one that is stuck in a read


def feed(
    batches: Iterator[tuple[Tensor, Tensor]], to_latents: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents and labels of each batch, on the device.

    On a GPU, copies and encoder run on a stream of their own. The host runs ahead of the GPU, so that they run beside
    the step before, and the step that needs their results does not wait.

    Args:
        batches: pairs of tensors on the CPU, best in pinned memory.
        to_latents: encodes what was loaded, on the device.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for data, y in batches:
        with torch.cuda.stream(stream):  # does nothing for None
            x1 = to_latents(data.to(device, non_blocking=stream is not None))
            y = y.to(device, non_blocking=stream is not None)
        if stream is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_stream(stream)
            for tensor in (x1, y):
                tensor.record_stream(consumer)  # its memory is not reused before the consumer is done
        yield x1, y
