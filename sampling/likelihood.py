"""Likelihood of images under the ODE, in bits per dimension, on one process or several."""

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from data.autoencoder import Autoencoder, PixelSpace
from data.caches import is_latents
from data.sets import ImageDataset, check_path, check_same_everywhere, load_dataset
from runtime import distributed, progress
from runtime.device import float64
from runtime.errors import UsageError
from sampling.network import ImageNoise, Network
from train_utils import build_sampler


def check_arguments(args: argparse.Namespace, job: str) -> None:
    """See that the arguments fit a job that starts from images.

    Raises:
        UsageError: there are no images; or guidance is asked for, which changes the field that is integrated.
    """
    if not args.data_path:
        raise UsageError(f"{job} takes images: give --data-path FOLDER (or 'digits')")
    if args.cfg_scale not in (None, 1):
        raise UsageError(f"{job} uses the model without guidance, not --cfg-scale {args.cfg_scale}")
    if args.precision == "bf16":
        raise UsageError(f"{job} needs more digits than --precision bf16 has; give tf32 or fp32")
    check_path(args.data_path)
    if is_latents(args.data_path):
        raise UsageError(f"{job} takes images; --data-path {args.data_path} holds cached latents")


def images_of(args: argparse.Namespace, network: Network) -> ImageDataset:
    """The images of --data-path, with the class numbers that the model was trained with.

    Raises:
        UsageError: their classes cannot be those of the model.
    """
    space = network.images
    channels = space.channels if args.vae == "none" else 3
    dataset = load_dataset(args.data_path, network.image_size, channels, flat=True, class_names=network.class_names)
    if distributed.is_main():
        for note in dataset.notes:
            print(f"Warning: {note}", file=sys.stderr)
    classes, model_classes = len(dataset.class_names), network.config.num_classes
    if classes > model_classes or (0 < classes < model_classes and not network.class_names):
        raise UsageError(
            f"--data-path {args.data_path} has {classes} classes, the model {model_classes}, and the checkpoint does "
            "not name them: give a folder with all classes, or one of images without sub-folders"
        )
    return dataset


def load_batch(dataset: ImageDataset, indices: Sequence[int], network: Network) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,); an image without a class gets the null class."""
    device = next(network.model.parameters()).device
    items = [dataset[i, False] for i in indices]
    labels = [network.config.num_classes if k < 0 else k for _, k in items]
    return torch.stack([image for image, _ in items]).to(device), torch.tensor(labels, device=device)


def to_latents(images: Tensor, autoencoder: Autoencoder, noise: ImageNoise) -> tuple[Tensor, float]:
    """The tensors that are scored, and a number of bits per dimension to add for their unit of density.

    In pixel space the 8-bit values are spread uniformly over their bins, which are 1 / 127.5 wide, so that bits per
    dimension bound those of the discrete picture from above. With an autoencoder the posterior mean is scored, in bits
    per latent dimension.
    """
    if not isinstance(autoencoder, PixelSpace):
        return autoencoder.encode(images, sample=False), 0.0
    return images + (noise.rand_like(images) - 0.5) / 127.5, math.log2(127.5)


def bits_per_dim(logp: Tensor, dimensions: int, offset: float = 0.0) -> Tensor:
    """Bits per dimension, -log2 p / dimensions + offset, of log p in nats."""
    return -logp / (math.log(2) * dimensions) + offset


def score(
    args: argparse.Namespace, network: Network, process: distributed.Process, *, seed: int, batch_size: int
) -> None:
    """Print the mean bits per dimension of the images of --data-path, with its standard error.

    Raises:
        FloatingPointError: a likelihood is not finite.
    """
    dataset = images_of(args, network)
    check_same_everywhere(dataset, args.data_path)
    mine = range(process.rank, len(dataset), process.world_size)
    total = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
    starts = range(0, len(mine), batch_size)
    for start in progress.bar(starts, desc="batches"):
        indices = mine[start : start + batch_size]
        images, y = load_batch(dataset, indices, network)
        noise = ImageNoise(seed, indices)
        x, offset = to_latents(images, network.images, noise)
        probe = (noise.rand_like(x) < 0.5).to(x.dtype) * 2 - 1
        logp, _ = build_sampler(args, network.transport, probe=probe)(x, network.model, y=y)
        bits = bits_per_dim(logp, x[0].numel(), offset).cpu().double()
        if not bits.isfinite().all():
            bad = int((~bits.isfinite()).sum())
            raise FloatingPointError(
                f"the likelihoods of {bad} of {len(bits)} images are not finite: the model's weights are not, or the "
                "solver diverges with these settings"
            )
        total += torch.stack([torch.tensor(float(len(bits))), bits.sum(), bits.square().sum()])
    count, first, second = distributed.sum_over_processes(total.to(float64(process.device))).tolist()
    mean = first / count
    error = math.sqrt(max(second / count - mean**2, 0) / max(count - 1, 1))
    unit = "bits per dimension" if isinstance(network.images, PixelSpace) else "bits per latent dimension"
    if process.is_main:
        print(f"{mean:.4f} +- {error:.4f} {unit}, mean of {int(count)} images ({args.sampling_method})")
