"""One step of training: loss, gradients (accumulated), AdamW, the moving average. Nothing in it waits for a GPU."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime import precision
from transport import Transport

FUSED = ("cpu", "cuda")  # devices


class Step(NamedTuple):
    """The outcome of a step, as scalars on the device."""

    loss: Tensor  # the mean over this process's share of the batch
    bad: Tensor  # bool: loss or gradients were not finite in some process, and nothing was updated


def build_optimizer(
    model: nn.Module, lr: float, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """AdamW, by default the published one, without weight decay.

    It is fused where the device allows: one kernel for all parameters, which can skip a bad step on a CPU or with CUDA.
    """
    fused = next(model.parameters()).device.type in FUSED
    first, second = betas
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(first, second), weight_decay=weight_decay, fused=fused)


def ema_decay(step: int, *, decay: float, warmup: bool) -> float:
    """The EMA decay of step 0, 1, ... of a run: `decay`, or with warm-up min(decay, (1 + step) / (10 + step)).

    Warm-up forgets the initialisation soon.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


def ema_lines(total_steps: int, *, decay: float, warmup: bool) -> list[str]:
    """Warnings for a fresh run that ends before its averaged weights have forgotten the initialisation."""
    left = decay**total_steps  # of the initialisation
    if warmup or left < 0.01:
        return []
    return [
        f"Warning: after {total_steps:,} steps with --ema-decay {decay:g}, {left:.0%} of the averaged weights, which "
        "samples are drawn with, are still the initialisation: give --ema-warmup, or a lower --ema-decay"
    ]


def learning_rate(step: int, total_steps: int, *, peak: float, warmup_steps: int, decay_steps: int) -> float:
    """The learning rate of step 0, 1, ... of a run: from 0 to the peak, constant, and to 0 over the last steps.

    It is a function of the step alone, so that a continued run has the rates of one that was never stopped.
    """
    rising = (step + 1) / (warmup_steps + 1)
    falling = (total_steps - step) / (decay_steps + 1)
    return peak * min(1.0, rising, falling)


def training_step(
    model: nn.Module,
    ema: nn.Module,
    opt: torch.optim.Optimizer,
    transport: Transport,
    x1: Tensor,
    y: Tensor,
    *,
    ema_decay: float,
    lr: float | None = None,
    precision_name: str = "fp32",
    grad_accum: int = 1,
    max_grad_norm: float | None = None,
) -> Step:
    """Update model and average by one batch, unless a loss or a gradient is not finite.

    All processes decide alike: each spoils its own gradients where its loss is not finite, and the gradients' average
    over processes, which DistributedDataParallel makes, is then spoilt in every one.

    Args:
        model: a `SiT`, or one in DistributedDataParallel, which averages gradients once a step.
        x1, y: (N, C, H, W) latents and (N,) labels.
        ema_decay: averaged weights <- ema_decay averaged weights + (1 - ema_decay) weights.
        lr: the learning rate of this step; None is the optimiser's own.
        precision_name: one of `runtime.precision.PRECISIONS`; parameters, gradients and loss stay float32.
        grad_accum: gradient accumulation: micro-batches per step, for less memory. Each is half-mixed.
        max_grad_norm: gradient-norm clipping threshold; None is no clipping.

    Returns:
        The loss, and whether the step was bad.
    """
    loss = compute_gradients(model, opt, transport, x1, y, precision_name=precision_name, grad_accum=grad_accum)
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    bad = ~norm.isfinite()
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
    if lr is not None:
        for group in opt.param_groups:
            group["lr"] = lr
    if opt.defaults["fused"]:
        # 1: the fused kernel leaves parameters and moments alone, as GradScaler has it
        opt.found_inf = bad.float()  # type: ignore[attr-defined]
        opt.step()
    elif not bad:  # waits for the device
        opt.step()
    update_ema(ema, model, ema_decay, bad)
    return Step(loss, bad)


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
    """Add the gradients of the batch's mean loss to the parameters, in grad_accum micro-batches; returns that loss.

    Raises:
        ValueError: the batch cannot be divided into grad_accum equal micro-batches.
    """
    if len(x1) % grad_accum:
        raise ValueError(f"a batch of {len(x1)} cannot be computed in {grad_accum} equal parts")
    opt.zero_grad(set_to_none=True)
    losses = []
    parts = list(zip(x1.chunk(grad_accum), y.chunk(grad_accum), strict=True))
    for k, (x1_part, y_part) in enumerate(parts):
        is_last = k == len(parts) - 1
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with precision.autocast(precision_name, x1.device):
                terms = transport.training_losses(model, x1_part, {"y": y_part})
            loss = terms["loss"].mean() / len(parts)
            loss.backward(torch.where(loss.isfinite(), 1.0, torch.nan))
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def settle(model: nn.Module, opt: torch.optim.Optimizer, transport: Transport, x1: Tensor, precision_name: str) -> None:
    """Make one backward pass and drop its gradients, on latents of the shape that training has.

    DistributedDataParallel rearranges its buckets after the first backward pass. With three processes or more, the
    order in which gradients are summed depends on the buckets: without this pass, the first step after a restart would
    be rounded differently.
    """
    y = torch.zeros(len(x1), dtype=torch.int64, device=x1.device)
    compute_gradients(model, opt, transport, x1, y, precision_name=precision_name, grad_accum=1)
    opt.zero_grad(set_to_none=True)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float = 0.9999, bad: Tensor | None = None) -> None:
    """Update averaged weights: ema <- decay ema + (1 - decay) model, or nothing after a bad step."""
    averages, parameters = list(ema.parameters()), list(model.parameters())
    bad = torch.zeros((), dtype=torch.bool, device=averages[0].device) if bad is None else bad
    weight = torch.where(bad, 0.0, 1 - decay)  # on the device: to branch would be to wait for it
    if weight.device.type == "cuda":
        lerp_together(averages, parameters, weight)
    else:  # no launch to save, and one pass over memory in place of three
        for average, parameter in zip(averages, parameters, strict=True):
            average.lerp_(parameter, weight)


def lerp_together(start: Sequence[Tensor], end: Sequence[Tensor], weight: Tensor) -> None:
    """Interpolate tensors in place: start <- start + weight (end - start), in a few kernels for all of them.

    (foreach has no lerp with a weight on a GPU.)
    """
    change = torch._foreach_sub(list(end), list(start))
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(list(start), change)
