"""Mean and standard deviation of each channel over a set of latents, in one pass that may be shared out."""

import math
from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np


class ChannelMoments(NamedTuple):
    """The number of values in a channel, their mean, and the sum of squared differences from it."""

    numbers: int
    mean: list[float]
    squares: list[float]

    def with_others(self, other: "ChannelMoments") -> "ChannelMoments":
        """The moments of both sets together (Chan, Golub, LeVeque)."""
        total, change = self.numbers + other.numbers, np.subtract(other.mean, self.mean)
        return ChannelMoments(
            total,
            (np.array(self.mean) + change * (other.numbers / total)).tolist(),
            (np.add(self.squares, other.squares) + change**2 * (self.numbers * other.numbers / total)).tolist(),
        )

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel."""
        return [math.sqrt(s / self.numbers) for s in self.squares]


def moments_of(latents: np.ndarray) -> ChannelMoments:
    """The moments of latents: of draws from posteriors (..., 2, C, h, w), or of latents themselves (..., 1, C, h, w).

    A draw varies with its mean and by its own variance, so that the squares of both add up.
    """
    channels = latents.shape[-3]
    parts = np.moveaxis(latents, (-4, -3), (0, 1)).reshape(latents.shape[-4], channels, -1)  # (1 or 2, C, numbers)
    mean = parts[0].mean(1, dtype=np.float64)
    squares = np.square(parts[0] - mean[:, None]).sum(1)
    if len(parts) > 1:
        squares += np.square(parts[1], dtype=np.float64).sum(1)
    return ChannelMoments(parts.shape[2], mean.tolist(), squares.tolist())


def joined_moments(parts: Iterable[ChannelMoments]) -> ChannelMoments:
    """The moments of all sets together, added in their order, so that the bits do not depend on who computed which."""
    return reduce(ChannelMoments.with_others, parts)
