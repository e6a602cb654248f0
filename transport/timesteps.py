"""Timesteps of a training batch: one per sample, per channel, per position, or per entry (ComboStoc, section 3.1).

The shape of the tensor says what the time may vary over; nothing in the package looks at its values to find out.
"""

import enum
from typing import Literal

import torch
from torch import Tensor

Blend = bool | Literal["sample"]


class ComboStocType(enum.Enum):
    """What gets a timestep of its own."""

    UNSYNC_NONE = enum.auto()  # (N,)             one per sample: SiT
    UNSYNC_VEC = enum.auto()  #  (N, C, 1, 1)     one per feature channel
    UNSYNC_PATCH = enum.auto()  # (N, 1, H, W)    one per latent position
    UNSYNC_ALL = enum.auto()  #  (N, C, H, W)     one per entry


def timestep_shape(x_shape: torch.Size | tuple[int, ...], combostoc_type: ComboStocType) -> tuple[int, ...]:
    """Shape of the timesteps for samples of shape (N, C, ...), with any number of trailing dimensions."""
    n, c, *rest = x_shape
    ones = [1] * len(rest)
    return {
        ComboStocType.UNSYNC_NONE: (n,),
        ComboStocType.UNSYNC_VEC: (n, c, *ones),
        ComboStocType.UNSYNC_PATCH: (n, 1, *rest),
        ComboStocType.UNSYNC_ALL: (n, c, *rest),
    }[combostoc_type]


def count_async(n: int, async_fraction: float) -> int:
    """How many samples of a half-mixed batch of n > 1 are asynchronous: the first ones."""
    return int(n * async_fraction)


def draw_timesteps(
    x1: Tensor,
    combostoc_type: ComboStocType,
    *,
    use_halfmixing: bool = True,
    async_fraction: float = 0.5,
    use_blend: Blend = True,
) -> Tensor:
    """Draw timesteps in [0, 1) for a batch, on x1's device.

    Args:
        x1: (N, C, ...) data, for its shape, device and dtype; half precisions draw in float32.
        combostoc_type: what gets a timestep of its own.
        use_halfmixing: only the first floor(N * async_fraction) samples are asynchronous, the others have one time
            each. A batch of one is asynchronous with probability async_fraction.
        async_fraction: the share of asynchronous samples.
        use_blend: t = (1 - p) t_sync + p t_async with one p ~ U(0, 1) for the batch, as published, or, for "sample",
            one for each sample. False is p = 1.

    Returns:
        A tensor of `timestep_shape(x1.shape, combostoc_type)`.
    """
    device, dtype = x1.device, torch.promote_types(x1.dtype, torch.float32)
    n = x1.shape[0]
    shape = timestep_shape(x1.shape, combostoc_type)
    if combostoc_type is ComboStocType.UNSYNC_NONE:
        return torch.rand(shape, device=device, dtype=dtype)

    t_sync = torch.rand((n,) + (1,) * (x1.ndim - 1), device=device, dtype=dtype)
    t_async = torch.rand(shape, device=device, dtype=dtype)
    p = None
    if use_blend:
        p_shape = t_sync.shape if use_blend == "sample" else (1,)
        p = torch.rand(p_shape, device=device, dtype=dtype)

    if use_halfmixing:
        n_async = count_async(n, async_fraction)
        if n == 1 and 0 < async_fraction < 1:
            is_async = torch.rand((), device=device, dtype=dtype) < async_fraction
            t_async = torch.where(is_async, t_async, t_sync)
        else:
            t_async = torch.cat([t_async[:n_async], t_sync[n_async:].expand(n - n_async, *shape[1:])])
    return t_async if p is None else (1 - p) * t_sync + p * t_async
