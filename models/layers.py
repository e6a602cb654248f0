"""What the transformers are built of: embeddings of timesteps and labels, and blocks with adaLN-Zero conditioning (DiT,
arXiv 2212.09748).

    N samples, T tokens, D width
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

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
    """One vector for one timestep per sample: (N,) -> (N, D)."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.frequency_embedding_size = frequency_embedding_size

    def forward(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """In the precision of the weights, or in dtype, see `input_dtype`."""
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
        """(N, 1 or C, 1, 1) -> (N, 1, D) and (N, 1 or C, H, W) -> (N, T, D), in the precision of the weights, or in
        dtype, see `input_dtype`."""
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
        """(M,) -> (M, 4), a chunk after the other; all at once in a graph, which is to serve any M."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or t.shape[0] <= self.chunk_size:
            return self.codes(t, dtype)
        return torch.cat([recomputed(self.codes, chunk, dtype) for chunk in t.split(self.chunk_size)])

    def codes(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """(M,) -> (M, 4)."""
        features = timestep_embedding(t, self.frequency_embedding_size)
        return self.mlp(features.to(input_dtype(self.mlp[0], dtype)))


class LabelEmbedder(nn.Module):
    """Embeds class labels, and drops them to the null class num_classes for classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)
        self.num_classes = num_classes
        self.dropout_prob = dropout_prob

    def token_drop(self, labels: Tensor, force_drop_ids: Tensor | None = None) -> Tensor:
        """Replace labels by the null class, with the dropout probability or where force_drop_ids is 1."""
        if force_drop_ids is None:
            drop = torch.rand(labels.shape[0], device=labels.device) < self.dropout_prob
        else:
            drop = force_drop_ids == 1
        return labels.masked_fill(drop, self.num_classes)

    def forward(self, labels: Tensor, train: bool, force_drop_ids: Tensor | None = None) -> Tensor:
        if (train and self.dropout_prob > 0) or force_drop_ids is not None:
            labels = self.token_drop(labels, force_drop_ids)
        return self.embedding_table(labels)


# --------------------------------------------------------------------------------------------------------------------
# Blocks
# --------------------------------------------------------------------------------------------------------------------


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Computes in the parameters' own precision, also where the caller has chosen autocast."""
    available = torch.amp.is_autocast_available(device.type)  # not so on "meta"
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def recomputed(function: Callable[..., T], *args: Any) -> T:
    """function(*args), which keeps nothing but the arguments for the backward pass. It must not draw random numbers.

    The transforms of torch.func do not allow that, and keep all.
    """
    compiling = torch.compiler.is_compiling()  # asked first: it cannot look at the other
    if not torch.is_grad_enabled() or (not compiling and torch._C._are_functorch_transforms_active()):
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


Tokens = Tensor | Sequence[Tensor]  # (N, T, D), or consecutive parts of it


def as_parts(x: Tokens) -> Sequence[Tensor]:
    return (x,) if isinstance(x, Tensor) else x


class Conditioning(NamedTuple):
    """The vectors that condition the tokens of a batch, after their SiLU.

    Consecutive parts of a batch may differ in what they have: a vector for each token, or one for all of a sample's.
    """

    vectors: Tensor  # (M, D), part after part, sample after sample
    parts: tuple[tuple[int, int], ...]  # of each part: n samples with k vectors each, k = 1 or T

    def modulation(self, layer: nn.Module, count: int) -> Iterator[Sequence[Tensor]]:
        """What a layer of adaLN makes of them: `count` times, for each part (n, k, D)."""
        made = split(layer(self.vectors), [n * k for n, k in self.parts])  # one product for all parts
        parts = [m.view(n, k, m.shape[-1]).chunk(count, -1) for m, (n, k) in zip(made, self.parts, strict=True)]
        return zip(*parts, strict=True)


def split(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Consecutive parts of a batch; the only one is the batch, of any size."""
    return x.split(sizes) if len(sizes) > 1 else (x,)


def modulate(x: Iterable[Tensor], shift: Sequence[Tensor], scale: Sequence[Tensor]) -> Tensor:
    """x (1 + scale) + shift, from parts of a batch (n, T, D) and (n, 1 or T, D) to the batch (N, T, D)."""
    parts = [torch.addcmul(b, part, 1 + a) for part, b, a in zip(x, shift, scale, strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def gated_sum(x: Sequence[Tensor], gate: Sequence[Tensor], branch: Tensor) -> list[Tensor]:
    """x + gate branch for each part of a batch, with gate (n, 1 or T, D) and branch (N, T, D)."""
    branches = split(branch, [part.shape[0] for part in x])
    return [torch.addcmul(part, g, b) for part, g, b in zip(x, gate, branches, strict=True)]


def adaln_modulation(hidden_size: int, out_features: int) -> nn.Sequential:
    """The linear layer of adaLN, under the predecessors' key 1. Their 0, the SiLU, is the same in every block: `SiT`
    applies it once."""
    return nn.Sequential(OrderedDict({"1": nn.Linear(hidden_size, out_features)}))


class SiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the conditioning (adaLN-Zero).

    Takes and returns a batch (N, T, D), or a list of its parts where they are conditioned differently. Each product is
    one for the whole batch.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0, **block_kwargs: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True, **block_kwargs)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]
        self.adaLN_modulation = adaln_modulation(hidden_size, 6 * hidden_size)

    def forward(self, x: Tokens, c: Conditioning) -> Tokens:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = c.modulation(self.adaLN_modulation, 6)
        parts = as_parts(x)
        parts = gated_sum(parts, gate_msa, self.attn(modulate(map(self.norm1, parts), shift_msa, scale_msa)))
        parts = gated_sum(parts, gate_mlp, self.mlp(modulate(map(self.norm2, parts), shift_mlp, scale_mlp)))
        return parts[0] if isinstance(x, Tensor) else parts


class FinalLayer(nn.Module):
    """From tokens, as a block returns them, to patches."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = adaln_modulation(hidden_size, 2 * hidden_size)

    def forward(self, x: Tokens, c: Conditioning) -> Tensor:
        shift, scale = c.modulation(self.adaLN_modulation, 2)
        with without_autocast(c.vectors.device):  # guidance takes differences of what comes out
            return self.linear(modulate(map(self.norm_final, as_parts(x)), shift, scale))
