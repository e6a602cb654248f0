"""Guidance: a prediction moved further away from that of a poorer model, poor + w (good - poor).

    classifier-free (arXiv 2207.12598)   the poorer model is the good one without a class
    autoguidance (arXiv 2406.02507)      the poorer model is another, smaller or trained for less, of the same class

Imports nothing but torch, so that it can be used without the rest.
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
        cfg_channels: the channels that classifier-free guidance works on, see `guided_channels` of the models.
        interval: (low, high); entries whose t lies in it are guided (arXiv 2404.07724). Where none does, the poorer
            prediction is not computed. A t of shape (N,) is one time for all entries of a batch.
        guide: the poorer model of autoguidance; None is classifier-free guidance.
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
    """poor + scale (good - poor), exactly good where the scale is 1 or both are equal.

    Channels that only the good one has, its log-variance, come back unchanged.
    """
    first, rest = good.split([poor.shape[1], good.shape[1] - poor.shape[1]], 1)
    weight = scale.to(poor.dtype) if isinstance(scale, Tensor) else scale
    return torch.cat([torch.lerp(poor, first, weight), rest], 1)
