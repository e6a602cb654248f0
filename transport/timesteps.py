"""Timesteps of a training batch: one per sample, per channel, per position, or per entry (ComboStoc, section 3.1).

The shape of the tensor says what the time may vary over; nothing in the package looks at its values to find out. How
the times are drawn, each entry's and those of a sample together, is one of `TIMES`: a function that takes an empty
tensor of that shape and returns times in [0, 1] that broadcast to it; 0 is noise and 1 is data.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .names import Blend, ComboStocType

Attributes = tuple[int, ...]  # the widths of a part's A attributes, F numbers in all


def timestep_shape(
    x_shape: torch.Size | tuple[int, ...], combostoc_type: ComboStocType, attributes: Attributes | None = None
) -> tuple[int, ...]:
    """The shape of the timesteps of a batch.

    Args:
        x_shape: (N, C, ...), with any number of trailing dimensions, or of shapes (N, L, F).
        combostoc_type: the unit with its own timestep.
        attributes: of shapes: the widths of a part's attributes. `over_attributes` gives each number the time of its
            attribute.
    """
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
    """Times per attribute (N, ..., A) repeated to times per number (N, ..., F); times of other types come back as t."""
    one_an_attribute = combostoc_type in (ComboStocType.UNSYNC_ATT, ComboStocType.UNSYNC_ATT_PART)
    if attributes is None or not one_an_attribute or t.shape[-1] == 1:
        return t
    return t.repeat_interleave(torch.tensor(attributes, device=t.device), dim=-1, output_size=sum(attributes))


def count_async(n: int, async_fraction: float) -> int:
    """The number of asynchronous samples in a half-mixed batch of n > 1, in which they come first."""
    return int(n * async_fraction)


def are_async(t: Tensor, async_fraction: float) -> Tensor:
    """A mask of the asynchronous samples of a half-mixed batch: bool, (N, 1, ...).

    A batch of one is asynchronous with probability async_fraction.
    """
    n = t.shape[0]
    if n == 1 and 0 < async_fraction < 1:
        chosen = torch.rand(1, device=t.device, dtype=t.dtype) < async_fraction
    else:
        chosen = torch.arange(n, device=t.device) < count_async(n, async_fraction)
    return chosen.reshape(one_each(t).shape)


# ---- draws -------------------------------------------------------------------------------------------------------

Draw = Callable[[Tensor], Tensor]  # an empty tensor of `timestep_shape` -> times that broadcast to it


def one_each(t: Tensor) -> Tensor:
    """The first time of each sample: (N, 1, ...)."""
    return t[(slice(None),) + (slice(0, 1),) * (t.ndim - 1)]


def diffusion_forcing(t: Tensor) -> Tensor:
    """t_i = u_i: independent uniform times (Diffusion Forcing, arXiv 2407.01392)."""
    return torch.rand_like(t)


def logit_normal(t: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """t = sigmoid(loc + scale n), one time per sample (Stable Diffusion 3, arXiv 2403.03206, equation 19)."""
    return torch.sigmoid(loc + scale * torch.randn_like(one_each(t)))


def blend(t: Tensor) -> Tensor:
    """t_i = (1 - p) u + p u_i, with one u and one p per sample: ComboStoc's blend, drawn anew for each sample."""
    p, u = torch.rand_like(one_each(t)), torch.rand_like(one_each(t))
    return (1 - p) * u + p * torch.rand_like(t)


def blend_logit_normal(t: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """t_i = (1 - p) sigmoid(loc + scale n) + p sigmoid(loc + scale n_i), with one n and one uniform p per sample."""
    return blended(t, torch.rand_like(one_each(t)), loc, scale)


def blend_logit_normal_async(t: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """`blend_logit_normal` with p the square root of a uniform number, 2/3 in the mean: less synchronous."""
    return blended(t, torch.rand_like(one_each(t)).sqrt(), loc, scale)


def blended(t: Tensor, p: Tensor, loc: float, scale: float) -> Tensor:
    """(1 - p) times one logit-normal time per sample, plus p times one per entry."""
    together = logit_normal(t, loc, scale)
    return (1 - p) * together + p * torch.sigmoid(loc + scale * torch.randn_like(t))


def srm(t: Tensor, sharpness: float = 1.0) -> Tensor:
    """Times whose mean over a sample is uniform (SRM, arXiv 2502.21075, appendix C.1)."""
    n, d = t.shape[0], t[0].numel()
    shares = split_total(torch.rand_like(t.reshape(n, -1)[:, 0]) * d, d, sharpness)  # (N, d)
    order = torch.rand_like(shares).argsort(1)
    return shares.gather(1, order).reshape(t.shape)


def split_total(total: Tensor, d: int, sharpness: float) -> Tensor:
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
        return torch.cat(split_total(torch.cat([left, total - left]), first, sharpness).chunk(2), 1)
    return torch.cat([split_total(left, first, sharpness), split_total(total - left, second, sharpness)], 1)


def asyncpatch(t: Tensor) -> Tensor:
    """t_i uniform in [m - delta, m + delta], m = u, delta = min(m, 1 - m) (AsyncPatch, arXiv 2606.07079)."""
    m = torch.rand_like(one_each(t))
    delta = torch.minimum(m, 1 - m)
    return m + delta * (2 * torch.rand_like(t) - 1)


def patch_forcing(t: Tensor) -> Tensor:
    """t_i = m - |n_i| min(m / 2, 0.6), m = sigmoid(0.7 + n): no time is beyond m (Patch Forcing, arXiv 2604.19141).

    Times that would be negative are drawn uniformly from [0, m].
    """
    m = torch.sigmoid(0.7 + torch.randn_like(one_each(t)))
    drawn = m - torch.randn_like(t).abs() * (m / 2).clamp_max(0.6)
    return torch.where(drawn < 0, m * torch.rand_like(t), drawn)


def self_flow(t: Tensor) -> Tensor:
    """Two times u and u' per sample; an entry has the second with probability 1/4 (Self-Flow, arXiv 2603.06507)."""
    first, second = torch.rand_like(one_each(t)), torch.rand_like(one_each(t))
    return torch.where(torch.rand_like(t) < 0.25, second, first)


TIMES: dict[str, Callable[..., Tensor] | None] = {
    "combostoc": None,  # the draw of the ComboStoc paper, which `draw_timesteps` makes itself
    "diffusion-forcing": diffusion_forcing,
    "logit-normal": logit_normal,
    "blend": blend,
    "blend-logit-normal": blend_logit_normal,
    "blend-logit-normal-async": blend_logit_normal_async,
    "srm": srm,
    "asyncpatch": asyncpatch,
    "patch-forcing": patch_forcing,
    "self-flow": self_flow,
}
DRAWS = tuple(TIMES)
WITH_NUMBERS = ("logit-normal", "blend-logit-normal", "blend-logit-normal-async")  # which take :LOC,SCALE
OLD_NAMES = {  # accepted, and found in checkpoints
    "uniform": "diffusion-forcing",
    "lognormal": "logit-normal",
    "blend-lognormal": "blend-logit-normal",
    "blend-lognormal-async": "blend-logit-normal-async",
    "mean": "srm",
    "spread": "asyncpatch",
    "below": "patch-forcing",
    "two": "self-flow",
}


def parse_times(text: str) -> tuple[str, tuple[float, ...]]:
    """The present name of a draw, and its numbers (LOC, SCALE), () where none are given: "lognormal:-0.8,0.8".

    Raises:
        ValueError: there is no such draw, or the numbers are not for it or cannot be.
    """
    given, colon, rest = text.partition(":")
    name = OLD_NAMES.get(given, given)
    if name not in DRAWS:
        raise ValueError(f"unknown times {text!r}; choose from {', '.join(DRAWS)}")
    if not colon:
        return name, ()
    if name not in WITH_NUMBERS:
        raise ValueError(f"times {text!r}: numbers are for {', '.join(WITH_NUMBERS)}, not for {name}")
    try:
        loc, scale = map(float, rest.split(","))
    except ValueError:
        loc = scale = math.nan
    if not (math.isfinite(loc) and 0 < scale < math.inf):
        raise ValueError(f"times {text!r}: after the colon come LOC,SCALE, two numbers, the second positive")
    return name, (loc, scale)


def times_of_today(text: str) -> str:
    """A draw's setting under its present name, with its numbers as they are written.

    Raises:
        ValueError: see `parse_times`.
    """
    name, _ = parse_times(text)
    return name + text[len(text.partition(":")[0]) :]


def draw_of(times: str | Draw) -> Draw | None:
    """The function that draws times, of a name of `TIMES` with or without LOC,SCALE, or of a user's function, checked.

    None is the published draw, which `draw_timesteps` makes itself.

    Raises:
        ValueError: there is no such name, see `parse_times`.
    """
    if not isinstance(times, str):
        return _checked(times)
    name, numbers = parse_times(times)
    draw = TIMES[name]
    return partial(draw, loc=numbers[0], scale=numbers[1]) if draw is not None and numbers else draw


def halfmixes(times: str | Draw, attributes: Attributes | None) -> bool:
    """The default of half-mixing: True for the published draw of images, False otherwise."""
    return attributes is None and times == "combostoc"


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
        combostoc_type: the unit with its own timestep.
        attributes: of shapes, for which x1 is (N, L, F).
        times: a name of `TIMES`, with :LOC,SCALE where it is logit-normal, or a function like those.
        use_halfmixing: only the first floor(N * async_fraction) samples are asynchronous, the others have one time
            each, drawn as one entry's. A batch of one is asynchronous with probability async_fraction. None is True for
            the published draw of images and False otherwise, see `halfmixes`.
        async_fraction: the share of asynchronous samples.
        use_blend: the published draw is t = (1 - p) t_sync + p t_async. True: one p ~ U(0, 1) for the batch, as
            published; "sample": one for each sample; False: p = 1.

    Returns:
        A tensor that broadcasts to x1: of `timestep_shape(x1.shape, combostoc_type)`, or one that broadcasts to it, or
        for attributes to all of their numbers.

    Raises:
        ValueError: a function for times returned no tensor of times, or one of another shape.
    """
    use_halfmixing = halfmixes(times, attributes) if use_halfmixing is None else use_halfmixing
    t = _draw(x1, combostoc_type, attributes, times, use_halfmixing, async_fraction, use_blend)
    return over_attributes(t, combostoc_type, attributes)


def _checked(draw: Draw) -> Draw:
    """A user's own draw, whose times are checked. (A GPU is waited for, as it is not with names of `TIMES`.)"""

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
        positions = (empty.shape[2:], (1,) * len(empty.shape[2:]))
        as_models_take_them = t.ndim == empty.ndim and len(t) == len(empty) and t.shape[2:] in positions
        return t if as_models_take_them else t.expand(empty.shape)

    return checked


def _draw(
    x1: Tensor,
    combostoc_type: ComboStocType,
    attributes: Attributes | None,
    times: str | Draw,
    use_halfmixing: bool,
    async_fraction: float,
    use_blend: Blend,
) -> Tensor:
    device, dtype = x1.device, torch.promote_types(x1.dtype, torch.float32)
    n = x1.shape[0]
    shape = timestep_shape(x1.shape, combostoc_type, attributes)
    draw = draw_of(times)
    if draw is not None:
        empty = torch.empty(shape, device=device, dtype=dtype)
        if not use_halfmixing or combostoc_type is ComboStocType.UNSYNC_NONE:
            return draw(empty)
        return torch.where(are_async(empty, async_fraction), draw(empty), draw(one_each(empty)))
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
