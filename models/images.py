"""SiT and ComboStoc: diffusion transformers over the patches of an image or a latent (DiT, arXiv 2212.09748).

`SiT` takes one timestep per sample. `ComboStoc` takes a timestep per sample, channel, position or entry; its timesteps
are embedded like an image of times, so that the conditioning has one vector a token.

    N samples, C channels, H x W latent, p patch size, T = (H / p)(W / p) tokens, D width
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from models.layers import (
    Conditioning,
    FinalLayer,
    LabelEmbedder,
    PatchTimestepEmbedder,
    SiTBlock,
    TimestepEmbedder,
    Tokens,
    recomputed,
    split,
)


def get_2d_sincos_pos_embed(embed_dim: int, grid_size: int) -> np.ndarray:
    """Fixed sine-cosine embedding of a grid, the column first, then the row: (grid_size^2, embed_dim)."""
    rows, columns = np.meshgrid(np.arange(grid_size), np.arange(grid_size), indexing="ij")
    return np.concatenate(
        [get_1d_sincos_pos_embed(embed_dim // 2, columns), get_1d_sincos_pos_embed(embed_dim // 2, rows)], axis=1
    )


def get_1d_sincos_pos_embed(embed_dim: int, positions: np.ndarray) -> np.ndarray:
    """Sines then cosines of the positions at embed_dim / 2 frequencies: (M, embed_dim)."""
    frequencies = 10000.0 ** (-np.arange(embed_dim // 2, dtype=np.float64) / (embed_dim / 2))
    angles = positions.reshape(-1)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class SiT(nn.Module):
    """Scalable Interpolant Transformer: one timestep per sample.

    Args:
        input_size: H = W of the input.
        patch_size: p.
        in_channels: C.
        hidden_size, depth, num_heads, mlp_ratio: D, blocks, attention heads, MLP width over D.
        class_dropout_prob: probability of dropping a label in training.
        num_classes: classes; label num_classes is the null class.
        learn_sigma: predict 2C channels. The second half is discarded, as DiT's checkpoints have it, or is the
            log-variance of the prediction's error, where it was trained to be (`Transport`, difficulty).
        grad_checkpointing: K recomputes every K-th block in the backward pass of training instead of keeping its
            activations; 1 (or True) is every block, 0 none.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        grad_checkpointing: int = 0,
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input size {input_size} is not a multiple of the patch size {patch_size}")
        self.input_size = input_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_heads = num_heads
        self.num_classes = num_classes
        self.learn_sigma = learn_sigma
        self.grad_checkpointing = grad_checkpointing

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size, bias=True)
        self.t_embedder = self.make_t_embedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        num_tokens = (input_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList([SiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    def make_t_embedder(self, hidden_size: int) -> nn.Module:
        return TimestepEmbedder(hidden_size)

    def initialize_weights(self) -> None:
        """DiT's initialisation; a patch convolution counts as the linear layer it is."""
        grid_size = self.input_size // self.patch_size
        pos_embed = get_2d_sincos_pos_embed(self.pos_embed.shape[-1], grid_size)
        self.pos_embed.data.copy_(torch.from_numpy(pos_embed))
        for name, p in self.named_parameters():
            if name == "pos_embed":
                continue
            elif name.endswith(".bias") or "adaLN_modulation" in name or name == "final_layer.linear.weight":
                nn.init.zeros_(p)
            elif name in ("y_embedder.embedding_table.weight", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
                nn.init.normal_(p, std=0.02)
            else:
                nn.init.xavier_uniform_(p.data.flatten(1))

    def compile_blocks(self) -> None:
        """Compile the blocks, in which nearly all the time goes; one compilation serves all of them."""
        torch._dynamo.config.optimize_ddp = False  # would cut a block into DDP's buckets; blocks are small enough
        for block in self.blocks:
            block.compile(dynamic=False)

    def embed_timesteps(self, t: Tensor, x: Tensor) -> Tensor:
        """(N,), or (N, 1, 1, 1) which says the same, -> (N, 1, D)."""
        if t.shape not in ((x.shape[0],), (x.shape[0], 1, 1, 1)):
            raise ValueError(f"SiT takes one timestep per sample, (N,), got t of shape {tuple(t.shape)}")
        return self.t_embedder(t.reshape(-1), x.dtype)[:, None]

    def embed(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, T, D)."""
        return (self.x_embedder(x) + self.pos_embed).contiguous()

    def unpatchify(self, x: Tensor) -> Tensor:
        """(N, T, p * p * C) -> (N, C, H, W)."""
        n, num_tokens, _ = x.shape
        p, c, side = self.patch_size, self.out_channels, math.isqrt(num_tokens)
        x = x.reshape(n, side, side, p, p, c).permute(0, 5, 1, 3, 2, 4)  # (N, C, rows, p, columns, p)
        return x.reshape(n, c, side * p, side * p)

    def forward(self, x: Tensor, t: Tensor | Sequence[Tensor], y: Tensor, log_variance: bool = False) -> Tensor:
        """Predict velocity, score, noise or data at x.

        Args:
            x: (N, C, H, W).
            t: timesteps, see `embed_timesteps`; or a sequence of them, for consecutive segments of the batch, which
                then cost what their own shapes ask for (see `Transport.training_losses`).
            y: (N,) class labels.
            log_variance: return the second half of the channels, too, of a model that has it (learn_sigma).

        Returns:
            (N, C, H, W), or (N, 2C, H, W) with the log-variance.
        """
        if log_variance and not self.learn_sigma:
            raise ValueError("a model without learn_sigma predicts no log-variance")
        times = [t] if isinstance(t, Tensor) else t
        c = self.condition(x, times, self.y_embedder(y, self.training))
        embedded = self.embed(x)
        tokens: Tokens = embedded
        if len(times) > 1:  # a list, as a block returns: one compilation serves all
            tokens = list(split(embedded, [n for n, _ in c.parts]))
        every = self.grad_checkpointing if self.training else 0
        for i, block in enumerate(self.blocks):
            tokens = recomputed(block, tokens, c) if every and i % every == 0 else block(tokens, c)
        output = self.unpatchify(self.final_layer(tokens, c))
        return output[:, : self.in_channels] if self.learn_sigma and not log_variance else output

    forward.takes_segments = True  # type: ignore[attr-defined]  # `Transport.training_losses` asks

    def condition(self, x: Tensor, parts: Sequence[Tensor], y_emb: Tensor) -> Conditioning:
        """From the timesteps of consecutive parts of the batch and its embedded labels (N, D)."""
        sizes = [t.shape[0] for t in parts]
        embedded = zip(split(x, sizes), parts, split(y_emb, sizes), strict=True)
        vectors = [self.embed_timesteps(t, x_part) + y_part[:, None] for x_part, t, y_part in embedded]  # (n, k, D)
        # Flat and so contiguous: a patch embedding leaves positions last in memory, and every block would pay for it.
        c = F.silu(torch.cat([v.flatten(0, 1) for v in vectors]))
        if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
            c = c.to(torch.get_autocast_dtype(x.device.type))  # here, or every block would do it, and keep its copy
        return Conditioning(c, tuple((v.shape[0], v.shape[1]) for v in vectors))

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        cfg_scale: float | Tensor,
        cfg_channels: int | None = 3,
        *,
        log_variance: bool = False,
    ) -> Tensor:
        """Classifier-free guidance: uncond + cfg_scale (cond - uncond), both from one batch.

        Args:
            x: (2N, C, H, W), of which the first N samples are used.
            t: timesteps of the 2N samples.
            y: (2N,) labels, the second N being the null class.
            cfg_scale: 1 is no guidance. A tensor that broadcasts to the guided channels of N samples is for each entry.
            cfg_channels: guide the first so many channels. The default 3 of a latent's 4 is a slip of the original
                DiT that published numbers depend on; None guides all.
            log_variance: see `forward`; it is not guided.
        """
        half = x[: x.shape[0] // 2]
        settings = {"log_variance": True} if log_variance else {}  # a subclass need not know of it
        output = self.forward(torch.cat([half, half]), t, y, **settings)
        channels = self.in_channels if cfg_channels is None else min(cfg_channels, self.in_channels)
        guided, rest = output[:, :channels], output[:, channels:]
        cond, uncond = guided.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)


class ComboStoc(SiT):
    """SiT whose timesteps may differ between channels, positions and entries. Arguments as for `SiT`."""

    def make_t_embedder(self, hidden_size: int) -> nn.Module:
        return PatchTimestepEmbedder(self.input_size, self.patch_size, self.in_channels, hidden_size)

    def embed_timesteps(self, t: Tensor, x: Tensor) -> Tensor:
        """(N,), (N, 1, 1, 1), (N, C, 1, 1) -> (N, 1, D);  (N, 1, H, W), (N, C, H, W) -> (N, T, D)."""
        n, c, h, w = x.shape
        if t.ndim == 1:
            t = t[:, None, None, None]
        if t.ndim != 4 or t.shape[0] != n or t.shape[1] not in (1, c) or t.shape[2:] not in ((1, 1), (h, w)):
            raise ValueError(
                f"t of shape {tuple(t.shape)} does not fit x of shape {tuple(x.shape)}; "
                "it must be (N,), (N, 1, 1, 1), (N, C, 1, 1), (N, 1, H, W) or (N, C, H, W)"
            )
        return self.t_embedder(t, x.dtype)
