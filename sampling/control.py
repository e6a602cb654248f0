"""Graded control of any kind of data: samples that keep of a reference what its preservation map says."""

import argparse
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from runtime.errors import UsageError
from sampling.network import ImageNoise, Network, draw


class Control(Protocol):
    """R references, and how much of each entry is kept."""

    keep: Tensor  # (R, ...) in [0, 1], broadcastable to the latents

    def latents(self, network: Network, device: torch.device) -> Tensor:
        """The references as the model sees them: (R, ...)."""
        ...

    def untrained_times(self, network: Network) -> str | None:
        """A sentence that names times of the map which the model was not trained with; None where there are none."""
        ...

    def finish(self, x: Tensor, rows: Tensor) -> Callable[[], np.ndarray]:
        """Decoded samples (N, ...) of the references `rows`, as arrays, on their way from the GPU.

        Raises:
            FloatingPointError: from the function returned, if a sample is not finite.
        """
        ...

    def sheet(self, samples: np.ndarray, captions: Sequence[str], size: int) -> Image.Image:
        """A picture with a row for each reference: itself, its map, and its samples.

        Args:
            samples: V of each reference, one reference after the other, as `finish` gives them.
            captions: one for each reference.
            size: side of a picture in pixels.
        """
        ...


def check_arguments(args: argparse.Namespace) -> None:
    """See that the arguments of graded control are complete.

    Raises:
        UsageError: something is missing, or has no reference to work on.
    """
    if not args.reference:
        for name in ("preserve", "preserve_channels", "preserve_schedule", "preserve_pixels", "variations"):
            if getattr(args, name):
                raise UsageError(f"--{name.replace('_', '-')} works on a picture: give --reference IMG")
        return
    if not args.preserve and not args.preserve_channels:
        raise UsageError("how much is kept of --reference? Give --preserve SPEC, --preserve-channels F,F,... or both")
    labels = len(args.class_labels or [])
    if labels not in (0, 1, len(args.reference)):
        raise UsageError(
            f"{labels} --class-labels for {len(args.reference)} references: give one for each, one or none"
        )


def generate(
    args: argparse.Namespace,
    network: Network,
    control: Control,
    labels: Sequence[int],
    model: Callable[..., Tensor],
    device: torch.device,
    *,
    seed: int,
    variations: int,
    batch_size: int,
) -> tuple[np.ndarray, int]:
    """V variations of each of R references, (R V, ...) as `Control.finish` gives them, and the evaluations of a batch.

    Args:
        args: the settings of a mode, as `build_sampler` takes them, and `preserve_schedule`.
        labels: a class for each reference.
        model: see `guided_by`.
        seed: sample i has the noise of (seed, i).
    """
    references, keep, classes = control.latents(network, device), control.keep.to(device), torch.tensor(labels)
    which = torch.arange(len(references)).repeat_interleave(variations)
    finished: list[Callable[[], np.ndarray]] = []
    nfe = 0
    for part in torch.arange(len(which)).split(batch_size):
        rows = which[part]
        on_device = rows.to(device)
        noise = ImageNoise(seed, part.tolist())
        kept = references[on_device], keep[on_device]
        x, nfe = draw(args, network, noise, classes[rows].to(device), model, kept)
        finished.append(control.finish(x, rows))
    return np.concatenate([wait() for wait in finished]), nfe
