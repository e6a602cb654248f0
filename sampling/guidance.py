"""Guidance: a prediction taken further away from that of a poorer model. Nothing but tensors, so that it can be used
without the rest.

    classifier-free (arXiv 2207.12598)   the poorer model is the same one, without a class
    autoguidance (arXiv 2406.02507)      it is another one, smaller or trained for less, of the same class
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def guided(
    model: Any,
    cfg_scale: float,
    cfg_channels: Any = "usual",
    interval: tuple[float, float] = (0.0, 1.0),
    guide: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """A model under guidance as a function of a plain batch (x, t, y), and of log_variance, see `SiT.forward`.

    Args:
        model: see `SiT`.
        cfg_scale: w of poor + w (good - poor): 1 is no guidance. 0 is the null class in place of y, without guidance.
        cfg_channels: of classifier-free guidance, see `guided_channels` of the models.
        interval: guide where t is in it (arXiv 2404.07724); when it is nowhere, the poorer prediction is not computed.
            Entries with times of their own are guided by these; a t of shape (N,) is one time.
        guide: the poorer model of autoguidance, which then is used in place of the classifier-free one.
    """
    low, high = interval
    always = low <= 0 and high >= 1

    def field(x: Tensor, t: Tensor, y: Tensor, **kwargs: bool) -> Tensor:
        if cfg_scale == 1:
            return model(x, t, y, **kwargs)
        if cfg_scale == 0:
            return model(x, t, torch.full_like(y, model.num_classes), **kwargs)
        scale: float | Tensor = cfg_scale
        if not always:
            inside = (low <= t) & (t <= high)
            if not inside.any():
                return model(x, t, y, **kwargs)
            if t.ndim > 1:  # each entry by its own time
                scale = torch.where(inside, cfg_scale, 1.0)
        if guide is not None:
            return away_from(guide(x, t, y), model(x, t, y, **kwargs), scale)
        labels = torch.cat([y, torch.full_like(y, model.num_classes)])
        x, t = torch.cat([x, x]), torch.cat([t, t])
        return model.forward_with_cfg(x, t, labels, scale, cfg_channels, **kwargs)[: len(y)]

    return field


def away_from(poor: Tensor, good: Tensor, scale: float | Tensor) -> Tensor:
    """poor + scale (good - poor): exactly good for scale 1, and where both are the same. Channels that only the good
    one has, its log-variance, stay."""
    first, rest = good.split([poor.shape[1], good.shape[1] - poor.shape[1]], 1)
    weight = scale.to(poor.dtype) if isinstance(scale, Tensor) else scale
    return torch.cat([torch.lerp(poor, first, weight), rest], 1)
