"""The divergence of a model's output by autograd, also where the caller has switched autograd off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def outside_inference(value: Any) -> Any:
    """The value itself, or a copy that autograd accepts where it is a tensor made in torch.inference_mode()."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def autograd_in_words() -> Iterator[None]:
    """A context in which a model that autograd cannot derive ends in one line that says why.

    Raises:
        RuntimeError: the model cannot be derived.
    """
    try:
        yield
    except RuntimeError as error:
        if "nference tensor" in str(error):
            why = "weights, or another tensor that it uses, were made in torch.inference_mode()"
        elif "does not require grad" in str(error) or "not have been used in the graph" in str(error):
            why = "output does not depend on x as autograd sees it, which torch.no_grad() or detach() in it may cause"
        else:
            raise
        raise RuntimeError(f"a likelihood needs the derivative of the model, but the model's {why}") from None


def hutchinson_divergence(u: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T (du/dx) v for each sample, an unbiased estimate of div u when v has unit covariance: (N, ...) -> (N,)."""
    (vjp,) = torch.autograd.grad(u, x, grad_outputs=v)
    return (vjp * v).flatten(1).sum(1)


def exact_divergence(u: Tensor, x: Tensor) -> Tensor:
    """tr du/dx for each sample, one backward pass per dimension: (N, ...) -> (N,)."""
    divergence = torch.zeros(x.shape[0], device=x.device, dtype=x.dtype)
    basis = torch.zeros_like(x).flatten(1)
    for i in range(basis.shape[1]):
        basis.zero_()[:, i] = 1
        (row,) = torch.autograd.grad(u, x, grad_outputs=basis.view_as(x), retain_graph=True)
        divergence = divergence + row.flatten(1)[:, i]
    return divergence
