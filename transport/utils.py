"""Reductions of a batch."""

from torch import Tensor


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first: (N, ...) -> (N,)."""
    return x.flatten(1).mean(1)


def sum_flat(x: Tensor) -> Tensor:
    """Sum over all dimensions but the first, kept for broadcasting: (N, ...) -> (N, 1, ...)."""
    return x.sum(dim=tuple(range(1, x.ndim)), keepdim=True)
