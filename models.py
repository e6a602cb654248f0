"""The transformers of images: SiT, ComboStoc, and their sizes, after DiT (arXiv 2212.09748).

`SiT` takes one timestep per sample. `ComboStoc` takes a timestep per sample, channel, position or entry; its timesteps
are embedded like an image of times, so that the conditioning has one vector a token.

    N samples, C channels, H x W latent, p patch size, T = (H / p)(W / p) tokens, D width
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")

# --------------------------------------------------------------------------------------------------------------------
# Embeddings of timesteps and labels
# --------------------------------------------------------------------------------------------------------------------


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000) -> Tensor:
    """Sinusoidal features of every entry of t, cosines then sines, in at least float32: (...) -> (..., dim)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[..., None].to(torch.promote_types(t.dtype, torch.float32)) * frequencies
    features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return F.pad(features, (0, 1)) if dim % 2 else features


def input_dtype(layer: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The floating dtype that a layer takes: its weight's. Quantised weights, and those kept in float8, do not say."""
    weight = getattr(layer, "weight", None)  # of dynamically quantised layers, a method
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize > 1:
        return weight.dtype
    return otherwise


class TimestepEmbedder(nn.Module):
    """An embedding of one timestep per sample by one vector each: (N,) -> (N, D)."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.frequency_embedding_size = frequency_embedding_size

    def forward(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Timesteps (N,) -> vectors (N, D), in the precision of the weights, or in dtype, see `input_dtype`."""
        with without_autocast(t.device):  # bfloat16 cannot tell t = 0.998 from 1
            features = timestep_embedding(t, self.frequency_embedding_size)
            return self.mlp(features.to(input_dtype(self.mlp[0], dtype)))


class PatchTimestepEmbedder(nn.Module):
    """One vector a token for a map of timesteps (ComboStoc, section 3.2).

    Every entry of t becomes a code of 4 numbers; the map of codes, channel c's code k at channel 4 c + k, goes through
    a patch embedding of its own. A map that is constant over positions gives the same vector for every token, so one
    patch of it is embedded and serves all tokens. The features, 64 times the size of the codes, exist for `chunk_size`
    entries at a time; where there are more, they are computed again in the backward pass.
    """

    code_size = 4
    chunk_size = 2**16  # 64 MiB of features

    def __init__(
        self, input_size: int, patch_size: int, in_channels: int, hidden_size: int, frequency_embedding_size: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, self.code_size), nn.SiLU(), nn.Linear(self.code_size, self.code_size)
        )
        self.patchEmb = PatchEmbed(input_size, patch_size, in_channels * self.code_size, hidden_size, bias=True)
        self.frequency_embedding_size = frequency_embedding_size
        self.in_channels = in_channels
        self.patch_size = patch_size

    def forward(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Maps of timesteps (N, 1 or C, 1, 1) -> (N, 1, D), and (N, 1 or C, H, W) -> (N, T, D).

        Computed in the precision of the weights, or in dtype, see `input_dtype`.
        """
        n, c, h, w = t.shape
        with without_autocast(t.device):  # bfloat16 cannot tell t = 0.998 from 1
            codes = self.codes_in_chunks(t.flatten(), dtype)
            codes = codes.view(n, c, h, w, self.code_size).permute(0, 1, 4, 2, 3)
            codes = codes.reshape(n, c * self.code_size, h, w)  # code k of channel c at 4c + k
            if c == 1:
                codes = codes.repeat(1, self.in_channels, 1, 1)
            if h == w == 1:
                codes = codes.expand(-1, -1, self.patch_size, self.patch_size)  # one patch of a constant map
            return self.patchEmb.proj(codes).flatten(2).transpose(1, 2)

    def codes_in_chunks(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes of timesteps (M,) -> (M, 4), `chunk_size` at a time; all at once in a graph, which serves any M."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or t.shape[0] <= self.chunk_size:
            return self.codes(t, dtype)
        return torch.cat([recomputed(self.codes, chunk, dtype) for chunk in t.split(self.chunk_size)])

    def codes(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes of timesteps: (M,) -> (M, 4)."""
        features = timestep_embedding(t, self.frequency_embedding_size)
        return self.mlp(features.to(input_dtype(self.mlp[0], dtype)))


class LabelEmbedder(nn.Module):
    """An embedding of class labels that drops them to the null class num_classes, for classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)
        self.num_classes = num_classes
        self.dropout_prob = dropout_prob

    def token_drop(self, labels: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """The labels (N,) with some replaced by the null class: at random, or where force_drop_ids is 1."""
        if force_drop_ids is None:
            drop = torch.rand(labels.shape[0], device=labels.device) < self.dropout_prob
        else:
            drop = force_drop_ids == 1
        return labels.masked_fill(drop, self.num_classes)

    def forward(self, labels: Tensor, train: bool, force_drop_ids: Tensor | None = None) -> Tensor:
        """Labels (N,) -> vectors (N, D); labels are dropped in training, or where force_drop_ids (N,) is 1."""
        if (train and self.dropout_prob > 0) or force_drop_ids is not None:
            labels = self.token_drop(labels, force_drop_ids)
        return self.embedding_table(labels)


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


# --------------------------------------------------------------------------------------------------------------------
# Blocks
# --------------------------------------------------------------------------------------------------------------------


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context that computes in the parameters' own precision, also where the caller has chosen autocast."""
    available = torch.amp.is_autocast_available(device.type)  # not so on "meta"
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def recomputed(function: Callable[..., T], *args: Any) -> T:
    """function(*args), which keeps nothing but the arguments for the backward pass.

    The function must not draw random numbers. Under the transforms of torch.func, which do not allow it, all is kept.
    """
    compiling = torch.compiler.is_compiling()  # asked first: it cannot look at the other
    if not torch.is_grad_enabled() or (not compiling and torch._C._are_functorch_transforms_active()):
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


Tokens = Tensor | Sequence[Tensor]  # (N, T, D), or consecutive segments of it


def as_segments(x: Tokens) -> Sequence[Tensor]:
    """A batch as the list of its segments."""
    return (x,) if isinstance(x, Tensor) else x


class Conditioning(NamedTuple):
    """The vectors that condition the tokens of a batch, after their SiLU.

    Consecutive segments of a batch may differ: one has a vector a token, another one vector a sample.
    """

    vectors: Tensor  # (M, D), segment after segment, sample after sample
    segments: tuple[tuple[int, int], ...]  # of each segment: n samples with k vectors each, k = 1 or T

    def modulation(self, layer: nn.Module, count: int) -> Iterator[Sequence[Tensor]]:
        """The `count` modulations that a layer of adaLN computes, each as a list of (n, k, D), one per segment."""
        made = split(layer(self.vectors), [n * k for n, k in self.segments])  # one product for all segments
        chunks = [m.view(n, k, m.shape[-1]).chunk(count, -1) for m, (n, k) in zip(made, self.segments, strict=True)]
        return zip(*chunks, strict=True)


def split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The consecutive segments of a batch, of these sizes."""
    return x.split(sizes) if len(sizes) > 1 else (x,)


def modulate(x: Iterable[Tensor], shift: Sequence[Tensor], scale: Sequence[Tensor]) -> Tensor:
    """x (1 + scale) + shift, from segments (n, T, D) and (n, 1 or T, D) to the batch (N, T, D)."""
    segments = [torch.addcmul(b, segment, 1 + a) for segment, b, a in zip(x, shift, scale, strict=True)]
    return torch.cat(segments) if len(segments) > 1 else segments[0]


def gated_sum(x: Sequence[Tensor], gate: Sequence[Tensor], branch: Tensor) -> list[Tensor]:
    """x + gate branch for each segment of a batch, with gate (n, 1 or T, D) and branch (N, T, D)."""
    branches = split(branch, [segment.shape[0] for segment in x])
    return [torch.addcmul(segment, g, b) for segment, g, b in zip(x, gate, branches, strict=True)]


def adaln_modulation(hidden_size: int, out_features: int) -> nn.Sequential:
    """The linear layer of adaLN, under the key 1 that published checkpoints give it.

    Their key 0 is a SiLU, the same in every block, which `SiT` applies once.
    """
    return nn.Sequential(OrderedDict({"1": nn.Linear(hidden_size, out_features)}))


class SiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the conditioning (adaLN-Zero).

    Takes and returns a batch (N, T, D), or a list of its segments where these are conditioned differently. Each matrix
    product is made once, for the whole batch.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, **block_kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True, **block_kwargs)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]
        self.adaLN_modulation = adaln_modulation(hidden_size, 6 * hidden_size)

    def forward(self, x: Tokens, c: Conditioning) -> Tokens:
        """Tokens (N, T, D), or the list of their segments, -> tokens of the same form."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = c.modulation(self.adaLN_modulation, 6)
        segments = as_segments(x)
        segments = gated_sum(segments, gate_msa, self.attn(modulate(map(self.norm1, segments), shift_msa, scale_msa)))
        segments = gated_sum(segments, gate_mlp, self.mlp(modulate(map(self.norm2, segments), shift_mlp, scale_mlp)))
        return segments[0] if isinstance(x, Tensor) else segments


class FinalLayer(nn.Module):
    """The last layer: tokens, as a block returns them, to patches."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = adaln_modulation(hidden_size, 2 * hidden_size)

    def forward(self, x: Tokens, c: Conditioning) -> Tensor:
        """Tokens (N, T, D), or the list of their segments, -> patches (N, T, p * p * out_channels)."""
        shift, scale = c.modulation(self.adaLN_modulation, 2)
        with without_autocast(c.vectors.device):  # guidance takes differences of what comes out
            return self.linear(modulate(map(self.norm_final, as_segments(x)), shift, scale))


# --------------------------------------------------------------------------------------------------------------------
# The transformers
# --------------------------------------------------------------------------------------------------------------------


GuidedChannels = int | None | Literal["usual"]  # first channels to guide; None for all


def guided_channels(cfg_channels: GuidedChannels, in_channels: int) -> int:
    """The number of channels that guidance works on.

    "usual" is all, but 3 of 4: a slip of the original DiT, in latents of four channels, that published numbers depend
    on.
    """
    if cfg_channels == "usual":
        cfg_channels = 3 if in_channels == 4 else None
    return in_channels if cfg_channels is None else min(cfg_channels, in_channels)


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

    Raises:
        ValueError: the input size is not a multiple of the patch size.
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
        """The embedder of timesteps, of width hidden_size."""
        return TimestepEmbedder(hidden_size)

    def initialize_weights(self) -> None:
        """Initialise all weights as DiT does; a patch convolution counts as the linear layer it is."""
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
        """Timesteps (N,), or (N, 1, 1, 1) with the same meaning, -> (N, 1, D).

        Raises:
            ValueError: t has another shape.
        """
        if t.shape not in ((x.shape[0],), (x.shape[0], 1, 1, 1)):
            raise ValueError(f"SiT takes one timestep per sample, (N,), got t of shape {tuple(t.shape)}")
        return self.t_embedder(t.reshape(-1), x.dtype)[:, None]

    def embed(self, x: Tensor) -> Tensor:
        """Inputs (N, C, H, W) -> tokens (N, T, D), with their positions."""
        return (self.x_embedder(x) + self.pos_embed).contiguous()

    def unpatchify(self, x: Tensor) -> Tensor:
        """Patches (N, T, p * p * C) -> outputs (N, C, H, W)."""
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

        Raises:
            ValueError: log_variance is asked for of a model without learn_sigma.
        """
        if log_variance and not self.learn_sigma:
            raise ValueError("a model without learn_sigma predicts no log-variance")
        times = [t] if isinstance(t, Tensor) else t
        c = self.condition(x, times, self.y_embedder(y, self.training))
        embedded = self.embed(x)
        tokens: Tokens = embedded
        if len(times) > 1:  # a list, as a block returns: one compilation serves all
            tokens = list(split(embedded, [n for n, _ in c.segments]))
        every = self.grad_checkpointing if self.training else 0
        for i, block in enumerate(self.blocks):
            tokens = recomputed(block, tokens, c) if every and i % every == 0 else block(tokens, c)
        output = self.unpatchify(self.final_layer(tokens, c))
        return output[:, : self.in_channels] if self.learn_sigma and not log_variance else output

    forward.takes_segments = True  # type: ignore[attr-defined]  # `Transport.training_losses` asks

    def condition(self, x: Tensor, times: Sequence[Tensor], y_emb: Tensor) -> Conditioning:
        """The conditioning by the timesteps of the batch's segments and its embedded labels (N, D)."""
        sizes = [t.shape[0] for t in times]
        embedded = zip(split(x, sizes), times, split(y_emb, sizes), strict=True)
        vectors = [self.embed_timesteps(t, x_s) + y_s[:, None] for x_s, t, y_s in embedded]  # (n, k, D)
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
        cfg_channels: GuidedChannels = "usual",
        *,
        log_variance: bool = False,
    ) -> Tensor:
        """Classifier-free guidance: uncond + cfg_scale (cond - uncond), both from one batch.

        Args:
            x: (2N, C, H, W), of which the first N samples are used.
            t: timesteps of the 2N samples.
            y: (2N,) labels, the second N being the null class.
            cfg_scale: 1 is no guidance. A tensor that broadcasts to the N samples, or to their guided channels, is for
                each entry.
            cfg_channels: see `guided_channels`.
            log_variance: see `forward`; it is not guided.
        """
        half = x[: x.shape[0] // 2]
        settings = {"log_variance": True} if log_variance else {}  # a subclass need not know of it
        output = self.forward(torch.cat([half, half]), t, y, **settings)
        channels = guided_channels(cfg_channels, self.in_channels)
        guided, rest = output[:, :channels], output[:, channels:]
        if isinstance(cfg_scale, Tensor) and cfg_scale.ndim == x.ndim and cfg_scale.shape[1] > channels:
            cfg_scale = cfg_scale[:, :channels]
        cond, uncond = guided.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)


class ComboStoc(SiT):
    """SiT whose timesteps may differ between channels, positions and entries. Arguments as for `SiT`."""

    def make_t_embedder(self, hidden_size: int) -> nn.Module:
        """The embedder of maps of timesteps, of width hidden_size."""
        return PatchTimestepEmbedder(self.input_size, self.patch_size, self.in_channels, hidden_size)

    def embed_timesteps(self, t: Tensor, x: Tensor) -> Tensor:
        """Timesteps (N,), (N, 1, 1, 1), (N, C, 1, 1) -> (N, 1, D); (N, 1, H, W), (N, C, H, W) -> (N, T, D).

        Raises:
            ValueError: t has another shape.
        """
        n, c, h, w = x.shape
        if t.ndim == 1:
            t = t[:, None, None, None]
        if t.ndim != 4 or t.shape[0] != n or t.shape[1] not in (1, c) or t.shape[2:] not in ((1, 1), (h, w)):
            raise ValueError(
                f"t of shape {tuple(t.shape)} does not fit x of shape {tuple(x.shape)}; "
                "it must be (N,), (N, 1, 1, 1), (N, C, 1, 1), (N, 1, H, W) or (N, C, H, W)"
            )
        return self.t_embedder(t, x.dtype)


# --------------------------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------------------------


# 2, 4 and 8 are the published ones; 1 is for latents of few positions, 16 and 32 for pixels.
PATCHES = (1, 2, 4, 8, 16, 32)
SIZES = {
    #      depth  hidden_size  num_heads  patch sizes
    "XL": (28, 1152, 16, PATCHES),
    "L": (24, 1024, 16, PATCHES),
    "B": (12, 768, 12, PATCHES),
    "S": (12, 384, 6, PATCHES),
    "XS": (4, 96, 3, PATCHES),  # for CPUs and tests
}


def _registry(family: type[SiT]) -> dict[str, Any]:
    """Constructors of a family of images, by name."""

    def constructor(depth: int, hidden_size: int, num_heads: int, patch_size: int) -> Any:
        def build(**kwargs: Any) -> SiT:
            return family(depth=depth, hidden_size=hidden_size, num_heads=num_heads, patch_size=patch_size, **kwargs)

        return build

    return {
        f"{family.__name__}-{size}/{patch_size}": constructor(depth, hidden_size, num_heads, patch_size)
        for size, (depth, hidden_size, num_heads, patch_sizes) in SIZES.items()
        for patch_size in patch_sizes
    }


SiT_models = _registry(SiT)
ComboStoc_models = _registry(ComboStoc)
# The constructors by the names of the predecessors' functions.
SiT_XL_2, SiT_XL_4, SiT_XL_8 = (SiT_models[f"SiT-XL/{p}"] for p in (2, 4, 8))
SiT_L_2, SiT_L_4, SiT_L_8 = (SiT_models[f"SiT-L/{p}"] for p in (2, 4, 8))
SiT_B_2, SiT_B_4, SiT_B_8 = (SiT_models[f"SiT-B/{p}"] for p in (2, 4, 8))
SiT_S_2, SiT_S_4, SiT_S_8 = (SiT_models[f"SiT-S/{p}"] for p in (2, 4, 8))
ComboStoc_XL_2, ComboStoc_XL_4, ComboStoc_XL_8 = (ComboStoc_models[f"ComboStoc-XL/{p}"] for p in (2, 4, 8))
ComboStoc_L_2, ComboStoc_L_4, ComboStoc_L_8 = (ComboStoc_models[f"ComboStoc-L/{p}"] for p in (2, 4, 8))
ComboStoc_B_2, ComboStoc_B_4, ComboStoc_B_8 = (ComboStoc_models[f"ComboStoc-B/{p}"] for p in (2, 4, 8))
ComboStoc_S_2, ComboStoc_S_4, ComboStoc_S_8 = (ComboStoc_models[f"ComboStoc-S/{p}"] for p in (2, 4, 8))
