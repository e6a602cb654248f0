"""The shift of times towards the noise, for samples of many numbers: t' = t / (A - (A - 1) t), 0 is noise, 1 is data.

A is the square root of a sample's size over that of the samples that unshifted times suit (Stable Diffusion 3, arXiv
2403.03206, section 5.3.2): the more numbers there are, the more noise it takes to hide what they have in common.
"""

import math
from collections.abc import Callable, Sequence

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


def grid_shift(a: float, t0: float, t1: float) -> Callable[[Tensor], Tensor] | None:
    """A function that moves times between t0 and t1 as `shifted` moves those in [0, 1]; None for A = 1."""
    low, high = sorted((t0, t1))
    if a == 1:
        return None
    return lambda t: (low + (high - low) * shifted((t - low) / (high - low), a)).clamp(low, high)
