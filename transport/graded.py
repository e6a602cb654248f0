"""Graded control: every entry of a sample starts at a time of its own, and all reach the data together.

Given a reference x1 and a preservation map m in [0, 1] (1 keeps, 0 regenerates), an entry starts at t = m on the path
from noise to the reference and runs to t = 1 (ComboStoc's asynchronous generation). One scalar s from 0 to 1 drives all
of them, so that what is solved is an ordinary problem in s, for any integrator:

    dx = dt/ds [velocity(x, t(s)) + w score(x, t(s))] ds + sqrt(2 w dt/ds) dW_s

    schedule   t(s)             dt/ds
    number     m + s (1 - m)    1 - m: every entry takes the same number of steps
    size       min(m + s, 1)    1, then 0: every entry takes steps of the same size until it is done
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .path import ICPlan

LAST_TIME = 1 - 1e-6  # for entries that come from the reference: a score or a path may be infinite at 1


def preservation_map(preserve: Tensor | float, reference: Tensor) -> Tensor:
    """The preservation map of a reference, checked, in the smallest shape that timesteps may have.

    Args:
        preserve: a number, or a tensor that broadcasts to the reference.
        reference: (N, C, ...).

    Returns:
        (N, 1 or C, ...), the trailing dimensions all 1 or all the reference's. A map that happens to be constant over
        channels or positions gets 1 there, and costs the model as little as a synchronous time does.

    Raises:
        ValueError: it has another shape, is not finite or leaves [0, 1].
    """
    m = torch.as_tensor(preserve).to(reference.device, torch.promote_types(reference.dtype, torch.float32))
    try:
        m = m.expand(reference.shape)
    except RuntimeError:
        raise ValueError(
            f"a preservation map of shape {tuple(m.shape)} does not broadcast to the reference's "
            f"{tuple(reference.shape)}"
        ) from None
    if m.isnan().any():
        raise ValueError("the preservation map holds NaN; its values must lie in [0, 1]")
    if m.numel() and (m.amin() < 0 or m.amax() > 1):
        raise ValueError(
            f"the preservation map runs from {m.amin().item():g} to {m.amax().item():g}; its values must lie in [0, 1]"
        )
    one_position = m[(slice(None), slice(None)) + (slice(0, 1),) * (m.ndim - 2)]
    m = one_position if (m == one_position).all() else m
    return m[:, :1] if (m == m[:, :1]).all() else m


@dataclass(frozen=True)
class Grading:
    """A reference (N, C, ...), its `preservation_map`, and how samples keep of it: one of `names.SCHEDULES`."""

    reference: Tensor
    preserve: Tensor
    schedule: str


class Synchronous:
    """The course of plain sampling: every entry at t = s."""

    def begin(self, z: Tensor) -> Tensor:
        """The state at the first s, from noise (N, ...)."""
        return z

    def times(self, s: Tensor) -> Tensor:
        """t, as the model takes it, at s (N,)."""
        return s

    def rate(self, s: Tensor) -> Tensor | float:
        """dt/ds at s (N,)."""
        return 1.0

    def last(self, size: float) -> Tensor | float:
        """The step in t that is left when s ends `size` short of 1."""
        return size

    def end(self, x: Tensor) -> Tensor:
        """The sample, of the state at the last s."""
        return x


class Graded:
    """The course of graded control, in which each entry has a time of its own.

    It has the methods of `Synchronous`, with times and rates in the shape of the map.

    Args:
        path: the interpolant.
        grading: reference, map and schedule.
        z: (N, C, ...) noise, of the reference's shape, for its dtype.
        s0, s1, num_steps: s runs from s0 to s1 in num_steps time points, both ends included.

    Raises:
        ValueError: noise and reference differ in shape.
    """

    def __init__(self, path: ICPlan, grading: Grading, z: Tensor, s0: float, s1: float, num_steps: int) -> None:
        if z.shape != grading.reference.shape:
            raise ValueError(
                f"the noise has shape {tuple(z.shape)}, the reference {tuple(grading.reference.shape)}; "
                "they must be the same"
            )
        self.path = path
        self.reference, self.m = grading.reference.to(z), grading.preserve.to(z)
        self.same_size = grading.schedule == "size"
        self.s0, self.s1 = s0, s1
        self.step = (s1 - s0) / (num_steps - 1)

    def begin(self, z: Tensor) -> Tensor:
        """The state at s0 (N, ...): noise mixed with the reference as each entry's first time says."""
        s = torch.full(z.shape[:1], self.s0, device=z.device, dtype=z.dtype)
        x = self.path.compute_xt(self.times(s), z, self.reference)
        return torch.where(self.m == 0, z, self.end(x))  # a path may leave a trace of the reference at t = 0

    def times(self, s: Tensor) -> Tensor:
        """The time of each entry at s (N,), in the shape of the map."""
        t = self._time(s)
        return torch.where(self.m > 0, t.clamp_max(LAST_TIME), t)

    def rate(self, s: Tensor) -> Tensor:
        """dt/ds of each entry at s (N,), in the shape of the map."""
        if self.same_size:  # of an Euler step from here; an entry's last one is shorter
            rate = (self._time(s + self.step) - self._time(s)) / self.step
            return torch.where(self.m == 0, 1, rate)  # exactly: no entry from the reference, no rounding
        return 1 - self.m

    def last(self, size: float) -> Tensor:
        """The step in t that each entry has left when s ends `size` short of 1, in the shape of the map."""
        return (1 - self.m).clamp_max(size) if self.same_size else (1 - self.m) * size

    def end(self, x: Tensor) -> Tensor:
        """The sample, of the state at the last s: entries kept at 1 are the reference's, bit for bit."""
        return torch.where(self.m == 1, self.reference, x)

    def _time(self, s: Tensor) -> Tensor:
        s = s.reshape(-1, *[1] * (self.m.ndim - 1))
        if self.same_size:
            return torch.minimum(self.m + s, self.m.clamp_min(self.s1))
        return self.m + s * (1 - self.m)
