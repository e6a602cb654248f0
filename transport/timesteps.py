"""Timesteps of a training batch: one per sample, per channel, per position, or per entry (ComboStoc, section 3.1).

The shape of the tensor says what the time may vary over; nothing in the package looks at its values to find out. How
the times are drawn, each entry's and those of a sample together, is one of `TIMES`: a function that takes an empty
tensor of that shape and returns times in [0, 1] that broadcast to it; 0 is noise and 1 is data.
"""

import enum
from collections.abc import Callable
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
    UNSYNC_PART = enum.auto()  # (N, L, 1)        of shapes, (N, L, F): one per part
    UNSYNC_ATT = enum.auto()  #  (N, 1, A)        one per attribute, the same for all parts
    UNSYNC_ATT_PART = enum.auto()  # (N, L, A)    one per attribute of a part


OF_SHAPES = ("UNSYNC_PART", "UNSYNC_ATT", "UNSYNC_ATT_PART")
Attributes = tuple[int, ...]  # the widths of a part's A attributes, F numbers in all


def timestep_shape(
    x_shape: torch.Size | tuple[int, ...], combostoc_type: ComboStocType, attributes: Attributes | None = None
) -> tuple[int, ...]:
    """Shape of the timesteps for samples of shape (N, C, ...), with any number of trailing dimensions, or of shapes,
    (N, L, F), whose parts have attributes; `over_attributes` gives each number the time of its attribute."""
    if attributes is not None:
        n, parts, numbers = x_shape
        return {
            ComboStocType.UNSYNC_NONE: (n,),
            ComboStocType.UNSYNC_PART: (n, parts, 1),
            ComboStocType.UNSYNC_ATT: (n, 1, len(attributes)),
            ComboStocType.UNSYNC_ATT_PART: (n, parts, len(attributes)),
            ComboStocType.UNSYNC_VEC: (n, 1, numbers),
            ComboStocType.UNSYNC_ALL: (n, parts, numbers),
        }[combostoc_type]
    n, c, *rest = x_shape
    ones = [1] * len(rest)
    return {
        ComboStocType.UNSYNC_NONE: (n,),
        ComboStocType.UNSYNC_VEC: (n, c, *ones),
        ComboStocType.UNSYNC_PATCH: (n, 1, *rest),
        ComboStocType.UNSYNC_ALL: (n, c, *rest),
    }[combostoc_type]


def over_attributes(t: Tensor, combostoc_type: ComboStocType, attributes: Attributes | None) -> Tensor:
    """Times of attributes, (N, ..., A), as times of numbers, (N, ..., F); those of other types stay as they are."""
    one_an_attribute = combostoc_type in (ComboStocType.UNSYNC_ATT, ComboStocType.UNSYNC_ATT_PART)
    if attributes is None or not one_an_attribute or t.shape[-1] == 1:
        return t
    return t.repeat_interleave(torch.tensor(attributes, device=t.device), dim=-1, output_size=sum(attributes))


def count_async(n: int, async_fraction: float) -> int:
    """How many samples of a half-mixed batch of n > 1 are asynchronous: the first ones."""
    return int(n * async_fraction)


def are_async(t: Tensor, async_fraction: float) -> Tensor:
    """Which samples of a half-mixed batch are asynchronous: (N, 1, ...)."""
    n = t.shape[0]
    if n == 1 and 0 < async_fraction < 1:
        chosen = torch.rand(1, device=t.device, dtype=t.dtype) < async_fraction
    else:
        chosen = torch.arange(n, device=t.device) < count_async(n, async_fraction)
    return chosen.reshape(one_each(t).shape)


# ---- ways of drawing -----------------------------------------------------------------------------------------------

Draw = Callable[[Tensor], Tensor]  # an empty tensor of `timestep_shape` -> times that broadcast to it


def one_each(t: Tensor) -> Tensor:
    """The first time of each sample: (N, 1, ...)."""
    return t[(slice(None),) + (slice(0, 1),) * (t.ndim - 1)]


def uniform(t: Tensor) -> Tensor:
    """t_i = u_i (Diffusion Forcing, arXiv 2407.01392)."""
    return torch.rand_like(t)


def lognormal(t: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """t = sigmoid(loc + scale n), one a sample (Stable Diffusion 3, arXiv 2403.03206, equation 19)."""
    return torch.sigmoid(loc + scale * torch.randn_like(one_each(t)))


def blend(t: Tensor) -> Tensor:
    """t_i = (1 - p) u + p u_i, with u and p one a sample: ComboStoc's blend, drawn anew for each sample."""
    p, u = torch.rand_like(one_each(t)), torch.rand_like(one_each(t))
    return (1 - p) * u + p * torch.rand_like(t)


def blend_lognormal(t: Tensor) -> Tensor:
    """The same of lognormal times: t_i = (1 - p) sigmoid(n) + p sigmoid(n_i)."""
    return blended_lognormal(t, torch.rand_like(one_each(t)))


def blend_lognormal_async(t: Tensor) -> Tensor:
    """The same, less synchronous: p is the square root of a uniform number, 2/3 in the mean."""
    return blended_lognormal(t, torch.rand_like(one_each(t)).sqrt())


def blended_lognormal(t: Tensor, p: Tensor) -> Tensor:
    n = torch.randn_like(one_each(t))
    return (1 - p) * torch.sigmoid(n) + p * torch.sigmoid(torch.randn_like(t))


def mean(t: Tensor, sharpness: float = 1.0) -> Tensor:
    """The mean of a sample's times is uniform (SRM, arXiv 2502.21075, appendix C.1)."""
    n, d = t.shape[0], t[0].numel()
    shares = split(torch.rand_like(t.reshape(n, -1)[:, 0]) * d, d, sharpness)  # (N, d)
    order = torch.rand_like(shares).argsort(1)
    return shares.gather(1, order).reshape(t.shape)


def split(total: Tensor, d: int, sharpness: float) -> Tensor:
    """d numbers in [0, 1] of a given sum, halved again and again: (M,) -> (M, d).

    The first half's share of what both halves can take is Beta(a, a), a = (d - 1 - d mod 2)^1.05 sharpness.
    """
    if d == 1:
        return total[:, None]
    first, second = d // 2, d - d // 2
    low, high = (total - second).clamp_min(0), total.clamp_max(first)
    a = torch.full_like(total, (d - 1 - d % 2) ** 1.05 * sharpness)
    left = low + (high - low) * torch.distributions.Beta(a, a).sample()
    if first == second:
        return torch.cat(split(torch.cat([left, total - left]), first, sharpness).chunk(2), 1)
    return torch.cat([split(left, first, sharpness), split(total - left, second, sharpness)], 1)


def spread(t: Tensor) -> Tensor:
    """t_i uniform in [m - delta, m + delta], m = u, delta = min(m, 1 - m, 1/2) (AsyncPatch, arXiv 2606.07079)."""
    m = torch.rand_like(one_each(t))
    delta = torch.minimum(m, 1 - m)
    return m + delta * (2 * torch.rand_like(t) - 1)


def below(t: Tensor) -> Tensor:
    """t_i = m - |n_i| min(m / 2, 0.6), m = sigmoid(0.7 + n); where negative, uniform in [0, m] (Patch Forcing,
    arXiv 2604.19141): no entry knows more than m."""
    m = torch.sigmoid(0.7 + torch.randn_like(one_each(t)))
    drawn = m - torch.randn_like(t).abs() * (m / 2).clamp_max(0.6)
    return torch.where(drawn < 0, m * torch.rand_like(t), drawn)


def two(t: Tensor) -> Tensor:
    """Two times a sample, u and u'; an entry has the second with probability 1/4 (Self-Flow, arXiv 2603.06507)."""
    first, second = torch.rand_like(one_each(t)), torch.rand_like(one_each(t))
    return torch.where(torch.rand_like(t) < 0.25, second, first)


TIMES: dict[str, Draw | None] = {
    "combostoc": None,  # the published one, see `draw_timesteps`
    "uniform": uniform,
    "lognormal": lognormal,
    "blend": blend,
    "blend-lognormal": blend_lognormal,
    "blend-lognormal-async": blend_lognormal_async,
    "mean": mean,
    "spread": spread,
    "below": below,
    "two": two,
}


def draw_timesteps(
    x1: Tensor,
    combostoc_type: ComboStocType,
    *,
    attributes: Attributes | None = None,
    times: str | Draw = "combostoc",
    use_halfmixing: bool | None = None,
    async_fraction: float = 0.5,
    use_blend: Blend = True,
) -> Tensor:
    """Draw timesteps in [0, 1] for a batch, on x1's device.

    Args:
        x1: (N, C, ...) data, for its shape, device and dtype; half precisions draw in float32.
        combostoc_type: what gets a timestep of its own.
        attributes: of shapes, for which x1 is (N, L, F).
        times: a name of `TIMES`, or a function like those.
        use_halfmixing: only the first floor(N * async_fraction) samples are asynchronous, the others have one time
            each, drawn as one entry's. A batch of one is asynchronous with probability async_fraction. None is True for
            the published draw and False for the others.
        async_fraction: the share of asynchronous samples.
        use_blend: t = (1 - p) t_sync + p t_async with one p ~ U(0, 1) for the batch, as published, or, for "sample",
            one for each sample. False is p = 1. Of the published draw only.

    Returns:
        A tensor that broadcasts to x1: of `timestep_shape(x1.shape, combostoc_type)`, or one that broadcasts to it, or
        for attributes to all of their numbers.

    Raises:
        ValueError: a function for times returned what is no tensor of times, or not of that shape.
    """
    t = _draw(x1, combostoc_type, attributes, times, use_halfmixing, async_fraction, use_blend)
    return over_attributes(t, combostoc_type, attributes)


def _checked(draw: Draw) -> Draw:
    """A user's way of drawing, whose times are looked at. (A GPU is waited for, as it is not with names of `TIMES`.)"""

    def checked(empty: Tensor) -> Tensor:
        t = draw(empty)
        name = getattr(draw, "__name__", type(draw).__name__)
        if not isinstance(t, Tensor):
            raise ValueError(f"times by {name}: it returned {type(t).__name__}, not a tensor of times in [0, 1]")
        try:
            t.expand(empty.shape)
        except RuntimeError:
            raise ValueError(
                f"times by {name}: they are of shape {tuple(t.shape)}, which does not broadcast to {tuple(empty.shape)}"
            ) from None
        if t.isnan().any():
            raise ValueError(f"times by {name}: they hold NaN; times lie in [0, 1]")
        if t.numel() and not (t.amin() >= 0 and t.amax() <= 1):
            raise ValueError(f"times by {name}: they run from {t.amin():g} to {t.amax():g}; times lie in [0, 1]")
        return t

    return checked


def _draw(
    x1: Tensor,
    combostoc_type: ComboStocType,
    attributes: Attributes | None,
    times: str | Draw,
    use_halfmixing: bool | None,
    async_fraction: float,
    use_blend: Blend,
) -> Tensor:
    device, dtype = x1.device, torch.promote_types(x1.dtype, torch.float32)
    n = x1.shape[0]
    shape = timestep_shape(x1.shape, combostoc_type, attributes)
    draw = TIMES[times] if isinstance(times, str) else times
    if draw is not None:
        empty = torch.empty(shape, device=device, dtype=dtype)
        if not isinstance(times, str):
            draw = _checked(draw)
        if not use_halfmixing or combostoc_type is ComboStocType.UNSYNC_NONE:
            return draw(empty)
        return torch.where(are_async(empty, async_fraction), draw(empty), draw(one_each(empty)))
    use_halfmixing = use_halfmixing is None or use_halfmixing
    if combostoc_type is ComboStocType.UNSYNC_NONE:
        return torch.rand(shape, device=device, dtype=dtype)

    t_sync = torch.rand((n,) + (1,) * (x1.ndim - 1), device=device, dtype=dtype)
    t_async = torch.rand(shape, device=device, dtype=dtype)
    p = None
    if use_blend:
        p_shape = t_sync.shape if use_blend == "sample" else (1,)
        p = torch.rand(p_shape, device=device, dtype=dtype)

    if use_halfmixing:
        t_async = torch.where(are_async(t_async, async_fraction), t_async, t_sync)
    return t_async if p is None else (1 - p) * t_sync + p * t_async
