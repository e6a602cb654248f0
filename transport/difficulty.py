"""The log-variance of the error that a model expects of its own velocity: the second half of its output's channels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .names import ComboStocType
from .path import expand_t_like_x
from .timesteps import timestep_shape
from .utils import mean_flat

SHARE = 0.4  # the share of a sample's entries that counts as easy


def call_with_log_variance(
    model: Callable[..., Tensor], x: Tensor, t: Tensor | list[Tensor], model_kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """A model's velocity, and the log-variance of its error: two tensors like x.

    Raises:
        ValueError: the output has not twice the channels of x.
    """
    output = model(x, t, log_variance=True, **model_kwargs)
    if output.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        raise ValueError(
            f"the model returned shape {tuple(output.shape)} for input of shape {tuple(x.shape)}; velocity and "
            "log-variance have twice the channels"
        )
    velocity, log_variance = output.chunk(2, dim=1)
    return velocity, log_variance


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """The Gaussian negative log-likelihood -log N(target; mean, exp(log_variance)), without its constant.

    Tensors (N, ...) -> (N,), a mean over entries.
    """
    return mean_flat(0.5 * (log_variance + (target - mean) ** 2 * torch.exp(-log_variance)))


def easy_entries(log_variance: Tensor, combostoc_type: ComboStocType) -> Tensor:
    """A mask of the entries whose log-variance lies below the quantile `SHARE` of their sample.

    Entries that share a time are judged by their mean. The mask is bool, of the shape of the type's timesteps.
    """
    shape = timestep_shape(log_variance.shape, combostoc_type)
    shared = [d for d in range(1, len(shape)) if shape[d] < log_variance.shape[d]]
    difficulty = log_variance.mean(shared, keepdim=True) if shared else log_variance
    quantile = difficulty.flatten(1).quantile(SHARE, dim=1)
    return difficulty < expand_t_like_x(quantile, difficulty)
