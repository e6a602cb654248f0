"""The predecessor's settings: a step and a model evaluation as in the published ComboStoc code.

Its conditioning always has one vector per token and goes through a SiLU in every block. It keeps the timestep features
of all entries at once, recomputes every block in the backward pass, runs eagerly in TF32 or float32, updates the
average one parameter after the other, and waits for the loss in every step. The model is this project's, so that
nothing else differs. (It also evaluates the model twice in a step of the SDE, which is not counted here.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import PatchTimestepEmbedder, SiT
from transport import Transport


def condition_every_token(model: SiT) -> None:
    """Make a ComboStoc model treat every timestep as a map that varies over all entries. A SiT stays as it is."""
    embedder, embed = model.t_embedder, model.embed_timesteps
    for block in model.blocks:
        block.adaLN_modulation.register_forward_pre_hook(repeat_silu)
    if isinstance(embedder, PatchTimestepEmbedder):
        embedder.codes_in_chunks = embedder.codes  # the whole map at once, and kept  # type: ignore[method-assign]

        def embed_map(t: Tensor, x: Tensor) -> Tensor:
            return embed(t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).expand(x.shape), x)

        model.embed_timesteps = embed_map  # type: ignore[method-assign]


def repeat_silu(module: nn.Module, inputs: tuple[Tensor]) -> None:
    """Spend the forward cost of the SiLU of the conditioning, which the model has applied already."""
    F.silu(inputs[0])


def training_step(
    model: nn.Module, ema: nn.Module, opt: torch.optim.Optimizer, transport: Transport, x1: Tensor, y: Tensor
) -> float:
    """Make one step; returns the loss when it is known."""
    loss = transport.training_losses(model, x1, {"y": y})["loss"].mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    with torch.no_grad():
        for average, p in zip(ema.parameters(), model.parameters(), strict=True):
            average.mul_(0.9999).add_(p, alpha=0.0001)
    return loss.item()
