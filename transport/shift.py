"""The shift of times towards the noise, for samples of many numbers: t' = t / (A - (A - 1) t), 0 is noise, 1 is data.

A is the square root of a sample's size over that of the samples that unshifted times suit (Stable Diffusion 3, arXiv
2403.03206, section 5.3.2): the more numbers there are, the more noise it takes to hide what they have in common.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from .names import TimeShift

USUAL_SIZE = 4096  # numbers in the latents of 256 x 256 pixels, 4 x 32 x 32


def shift_for(setting: TimeShift, shape: Sequence[int]) -> float:
    """A for samples of a shape, (C, H, W) for instance: the setting, and sqrt(C H W / 4096) where it is "auto"."""
    return math.sqrt(math.prod(shape) / USUAL_SIZE) if isinstance(setting, str) else setting


def shifted(t: Tensor, a: float) -> Tensor:
    """Times in [0, 1] moved by A: t / (A - (A - 1) t), increasing, with 0 and 1 fixed.

    A > 1 moves towards 0, the noise. A = 1 gives t itself.
    """
    return t if a == 1 else t / (t + a * (1 - t))


class GridShift:
    """`shifted` of the interval between t0 and t1, in place of [0, 1], as a function of times."""

    def __init__(self, a: float, t0: float, t1: float) -> None:
        self.a = a
        self.low, self.high = sorted((t0, t1))

    def __call__(self, s: Tensor) -> Tensor:
        return (self.low + (self.high - self.low) * shifted(self._share(s), self.a)).clamp(self.low, self.high)

    def rate(self, s: Tensor) -> Tensor:
        """Its derivative dt/ds, A / (u + A (1 - u))^2 where u is s's share of the interval."""
        u = self._share(s)
        return self.a / (u + self.a * (1 - u)) ** 2

    def _share(self, s: Tensor) -> Tensor:
        return (s - self.low) / (self.high - self.low)


def grid_shift(a: float, t0: float, t1: float) -> GridShift | None:
    """The shift of the interval between t0 and t1; None for A = 1."""
    return None if a == 1 else GridShift(a, t0, t1)
