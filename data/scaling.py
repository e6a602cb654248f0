"""Scale and shift of latents: the configuration's, standardising by the data, or none; a checkpoint carries which."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.tokenizers import Factor
from runtime import checkpoint
from runtime.errors import DataError, UsageError


class Scaling(NamedTuple):
    """The scaling from an autoencoder's own z to a model's input: (z - shift) scale, for all channels or each one."""

    scale: Factor
    shift: Factor

    def standardising(self, mean: Sequence[float], std: Sequence[float]) -> "Scaling":
        """This scaling followed by one that brings latents of this mean and deviation per channel to 0 and 1."""
        scale, shift = each(self.scale, len(mean)), each(self.shift, len(mean))
        return Scaling(
            [k / (s or 1.0) for k, s in zip(scale, std, strict=True)],  # a channel that is constant stays one
            [b + m / k for k, b, m in zip(scale, shift, mean, strict=True)],
        )

    @classmethod
    def load(cls, content: Any, channels: int, source: str) -> "Scaling":
        """The scaling in a checkpoint.

        Raises:
            DataError: it is no scaling of this number of channels.
        """

        def is_factor(value: Any, accepts: Callable[[float], bool]) -> bool:
            values = value if isinstance(value, list) else [value]
            numbers = all(type(v) in (int, float) and math.isfinite(v) and accepts(v) for v in values)
            return numbers and (not isinstance(value, list) or len(value) == channels)

        if not (
            isinstance(content, dict)
            and is_factor(content.get("scale"), lambda v: v != 0)
            and is_factor(content.get("shift"), lambda v: True)
        ):
            raise DataError(
                f"checkpoint {source}: its {KEY!r} is {content!r:.80}; a scale and a shift are needed, each a "
                f"number or one for each of {channels} channels"
            )
        return cls(content["scale"], content["shift"])


PLAIN = Scaling(1.0, 0.0)
KEY = "latent_scale"  # the name of a scaling in a checkpoint


def each(factor: Factor, channels: int) -> list[float]:
    """A factor for each channel."""
    return factor if isinstance(factor, list) else [factor] * channels


def rescaling(stored: Scaling, wanted: Scaling, channels: int) -> Callable[[Tensor], Tensor]:
    """A function that takes latents (N, C, h, w) from one scaling to another; it changes nothing between equal ones."""
    if stored == wanted:
        return lambda latents: latents
    old, new = (torch.tensor([each(f, channels) for f in scaling], dtype=torch.float64) for scaling in (stored, wanted))
    factor = (new[0] / old[0]).float().view(-1, 1, 1)
    offset = ((old[1] - new[1]) * new[0]).float().view(-1, 1, 1)

    def rescaled(latents: Tensor) -> Tensor:
        nonlocal factor, offset
        factor, offset = factor.to(latents), offset.to(latents)  # copied once: a GPU would wait for it in every step
        return latents * factor + offset

    return rescaled


class Known(NamedTuple):
    """The scalings that a run can choose from."""

    of_config: Scaling | None  # of the autoencoder's configuration; None without an autoencoder
    is_scaled: bool  # whether that is more than a placeholder
    stored: Scaling = PLAIN  # of cached latents
    statistics: tuple[list[float], list[float]] | None = None  # mean and deviation of cached latents in each channel


def choose_scaling(
    args: argparse.Namespace, known: Known, saved: dict[str, Any], source: str, channels: int
) -> tuple[str, Scaling]:
    """The scaling of a run, and the value of --latent-stats that stands for it.

    Args:
        saved: content of the checkpoint that is continued, {} without one; its scaling is the run's, unless another is
            asked for.
        source: its name.

    Raises:
        UsageError: there is no scaling of the kind that is asked for.
        DataError: the checkpoint's cannot be.
    """
    typed = args.latent_stats
    if KEY in saved and typed in (None, checkpoint.training_args(saved).get("latent_stats")):
        return typed or "data", Scaling.load(saved[KEY], channels, source)
    had_config = known.of_config is not None and (source or known.is_scaled or known.statistics is None)
    stats = typed or ("config" if had_config else "data" if known.statistics else "none")
    if stats == "config":
        if known.of_config is None:
            raise UsageError("--latent-stats config needs an autoencoder, whose configuration it is: give --vae")
        return stats, known.of_config
    if stats == "none":
        return stats, PLAIN
    if known.statistics is None:
        raise UsageError(
            f"--latent-stats data: no mean and deviation come with {args.data_path}; extract_latents.py computes them"
        )
    return stats, known.stored.standardising(*known.statistics)


def scaling_entry(stats: str, scaling: Scaling) -> dict[str, Any]:
    """The scaling as an entry of a checkpoint; {} where it is the configuration's."""
    return {} if stats == "config" else {KEY: scaling._asdict()}


def scaling_lines(stats: str, scaling: Scaling, known: Known) -> list[str]:
    """Lines for the log about a scaling that is not the usual one.

    Args:
        stats: source of the scaling, see `choose_scaling`.
    """
    if stats == "data":
        return [f"Latents: (z - shift) scale, shift {shown(scaling.shift)}, scale {shown(scaling.scale)}, of the data"]
    if stats == "none":
        return ["Latents: as the autoencoder gives them"]
    if not known.is_scaled:
        return [
            "Warning: the autoencoder's configuration has no scale: latents are as it gives them; of those that "
            "extract_latents.py makes mean and deviation are known"
        ]
    return []


def shown(factor: Factor) -> str:
    """A factor in words; of many channels, the first eight."""
    values = factor if isinstance(factor, list) else [factor]
    return " ".join(f"{v:.4g}" for v in values[:8]) + (f" ... ({len(values)} channels)" if len(values) > 8 else "")
