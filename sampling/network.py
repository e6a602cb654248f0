"""Sampling's common ground: a network ready to use, guidance, and randomness by image."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.autoencoder import Autoencoder
from data.feed import Space
from models import GuidedChannels, SiT
from runtime import precision
from runtime.distributed import seed_for
from runtime.errors import UsageError
from sampling import guidance
from train_utils import ModelConfig, build_graded_sampler, build_sampler
from transport import Transport


def say(lines: Sequence[str]) -> None:
    """Print lines that a program has to say beside its results, to stderr."""
    for line in lines:
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)


@dataclass
class Network:
    """A trained model in inference mode, and all that belongs to it."""

    model: SiT
    config: ModelConfig
    autoencoder: Space
    input_shape: tuple[int, ...]  # of a sample: (C, h, w), or (L, F) for shapes
    transport: Transport
    image_size: int  # side of a picture in pixels
    class_names: list[str] | None
    path: Path
    step: int
    notes: list[str]  # on what the checkpoint holds, to be said
    settings: dict[str, Any]  # arguments of sampling as the checkpoint has them, by name
    guide: SiT | None = None  # a poorer model, for autoguidance
    guide_path: Path | None = None

    @property
    def images(self) -> Autoencoder:
        """The autoencoder, of a model of images.

        Raises:
            UsageError: the model does not make images.
        """
        if not isinstance(self.autoencoder, Autoencoder):
            raise UsageError(f"{self.config.name} does not make images; this is for images")
        return self.autoencoder

    @property
    def num_labels(self) -> int:
        """The number of classes in the data, which may be fewer than the model has room for."""
        return len(self.class_names) if self.class_names else self.config.num_classes

    def class_name(self, k: int) -> str:
        """The name of class k, for captions."""
        if k == self.config.num_classes:
            return "no class"
        return self.class_names[k] if self.class_names and k < len(self.class_names) else str(k)


# ---- sampling ------------------------------------------------------------------------------------------------------


def guided(
    model: SiT,
    cfg_scale: float,
    cfg_channels: GuidedChannels = "usual",
    interval: tuple[float, float] = (0.0, 1.0),
    precision_name: str = "fp32",
    guide: SiT | None = None,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The model under guidance, see `guidance.guided`, in one of `runtime.precision.PRECISIONS`."""
    field = guidance.guided(model, cfg_scale, cfg_channels, interval, guide)

    def computed(x: Tensor, t: Tensor, y: Tensor, **kwargs: bool) -> Tensor:
        with precision.autocast(precision_name, x.device):
            return field(x, t, y, **kwargs)

    return computed


class ImageNoise:
    """The randomness of each image as a function of (seed, its index) alone.

    Each image has a generator on the CPU: its numbers are the same in any batch, on any process, on any device.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed_for(seed, "image", i)) for i in indices]

    def labels(self, num_classes: int) -> Tensor:
        """A uniform class label for each image: (N,)."""
        return torch.cat([torch.randint(num_classes, (1,), generator=g) for g in self.generators])

    def randn(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal numbers (N, *shape)."""
        noise = torch.stack([torch.randn(*shape, generator=g) for g in self.generators])
        if device.type == "cuda":
            return noise.pin_memory().to(device, non_blocking=True)  # or every step would wait for the copy
        return noise.to(device)

    def randn_like(self, x: Tensor) -> Tensor:
        """The noise of one step of an SDE: standard normal, like x."""
        return self.randn(x.shape[1:], x.device).to(x.dtype)

    def rand_like(self, x: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), like x."""
        return torch.stack([torch.rand(*x.shape[1:], generator=g) for g in self.generators]).to(x)


def guided_by(args: argparse.Namespace, network: Network) -> Callable[..., Tensor]:
    """The model under guidance and in the precision of a sampling program's arguments."""
    choices: dict[str | None, GuidedChannels] = {"3": 3, "all": None, None: "usual"}
    channels, interval = choices[args.cfg_channels], tuple(args.guidance_interval)
    return guided(network.model, args.cfg_scale, channels, interval, args.precision, vars(network).get("guide"))


def draw(
    args: argparse.Namespace,
    network: Network,
    noise: ImageNoise,
    y: Tensor,
    model: Callable[..., Tensor],
    keep: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Decoded samples of the classes y, and the number of model evaluations.

    Images (N, C, H, W), or the numbers of shapes (N, L, F); each depends on its own randomness alone.

    Args:
        keep: for graded control, references as latents (N, C, h, w), and their preservation map.
    """
    z = noise.randn(network.input_shape, y.device)
    randn: dict[str, Any] = {"randn": noise.randn_like} if args.mode == "SDE" else {}
    if keep is None:
        sampler = build_sampler(args, network.transport, **randn)
    else:
        sampler = build_graded_sampler(args, network.transport, *keep, **randn)
    return network.autoencoder.decode(sampler(z, model, y=y)[-1]), sampler.nfe


def with_progress(model: Callable[..., Tensor], bar: tqdm) -> Callable[..., Tensor]:
    """The model, advancing a progress bar with every evaluation."""

    def evaluated(*args: Any, **kwargs: Any) -> Tensor:
        output = model(*args, **kwargs)
        bar.update()
        return output

    return evaluated
