"""One step of training: loss and gradients in parts, AdamW, the moving average. Nothing in it waits for a GPU."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

import precision
from transport import Transport


def build_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """The published optimiser: AdamW without weight decay. Fused: one kernel for all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0, fused=True)


def training_step(
    model: nn.Module,
    ema: nn.Module,
    opt: torch.optim.Optimizer,
    transport: Transport,
    x1: Tensor,
    y: Tensor,
    *,
    ema_decay: float,
    precision_name: str = "fp32",
    grad_accum: int = 1,
    max_grad_norm: float | None = None,
) -> Tensor:
    """Update model and average by one batch.

    Args:
        model: a `SiT`, or one in DistributedDataParallel, which averages gradients once a step.
        x1, y: (N, C, H, W) latents and (N,) labels.
        precision_name: one of `precision.PRECISIONS`; parameters, gradients and loss are float32 in all of them.
        grad_accum: parts the batch is computed in, one after the other, for less memory. Each is half-mixed.
        max_grad_norm: scale longer gradients down to this norm.

    Returns:
        The mean loss, a scalar on the device.
    """
    loss = compute_gradients(model, opt, transport, x1, y, precision_name=precision_name, grad_accum=grad_accum)
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    opt.step()
    update_ema(ema, model, ema_decay)
    return loss


def compute_gradients(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    transport: Transport,
    x1: Tensor,
    y: Tensor,
    *,
    precision_name: str,
    grad_accum: int,
) -> Tensor:
    """The gradients of the batch's mean loss, and that loss."""
    if len(x1) % grad_accum:
        raise ValueError(f"a batch of {len(x1)} cannot be computed in {grad_accum} equal parts")
    opt.zero_grad(set_to_none=True)
    losses = []
    parts = list(zip(x1.chunk(grad_accum), y.chunk(grad_accum), strict=True))
    for k, (x1_part, y_part) in enumerate(parts):
        is_last = k == len(parts) - 1
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with precision.autocast(precision_name, x1.device):
                terms = transport.training_losses(model, x1_part, {"y": y_part}, in_segments=True)
            loss = terms["loss"].mean() / len(parts)
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) model, for all parameters at once."""
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(model.parameters()), None)
