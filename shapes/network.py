"""Parts: ComboStoc's transformer over the parts of a shape, a set without order (ComboStoc, section 5).

    N samples, L parts, F numbers per part, D width

A part is a token, and its F numbers are its channels. Nothing tells which part is which: the model is equivariant to
permutations of the parts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from models import SIZES, ComboStoc, GuidedChannels
from runtime.state_dicts import StateDict
from train_utils import ModelConfig, depth_of, no_such_model, weight_shape


class Parts(ComboStoc):
    """ComboStoc for shapes (N, L, F), for any L. Takes the arguments of `SiT`, without sizes of images.

    Every number's time has a code, and a linear layer of all codes of a part gives its conditioning. There is a null
    class, so that guidance is possible; guidance works on all numbers.
    """

    def __init__(self, in_channels: int, **kwargs: Any) -> None:
        super().__init__(input_size=1, patch_size=1, in_channels=in_channels, learn_sigma=False, **kwargs)
        del self.pos_embed  # it has one position, which all parts would share

    def embed(self, x: Tensor) -> Tensor:
        """Shapes (N, L, F) -> tokens (N, L, D)."""
        tokens = self.x_embedder.proj(as_map(x)).flatten(2).transpose(1, 2)
        return tokens.to(x.dtype).contiguous()  # also under autocast: the residual stream is not rounded

    def unpatchify(self, x: Tensor) -> Tensor:
        """The output itself, (N, L, F)."""
        return x

    def embed_timesteps(self, t: Tensor, x: Tensor) -> Tensor:
        """Timesteps (N,), (N, 1, 1), (N, 1, F) -> (N, 1, D); (N, L, 1), (N, L, F) -> (N, L, D).

        Raises:
            ValueError: t has another shape.
        """
        n, length, numbers = x.shape
        if t.ndim == 1:
            t = t[:, None, None]
        if t.ndim != 3 or t.shape[0] != n or t.shape[1] not in (1, length) or t.shape[2] not in (1, numbers):
            raise ValueError(
                f"t of shape {tuple(t.shape)} does not fit x of shape {tuple(x.shape)}; "
                "it must be (N,), (N, 1, 1), (N, L, 1), (N, 1, F) or (N, L, F)"
            )
        return self.t_embedder(as_map(t), x.dtype)

    def forward_with_cfg(
        self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float | Tensor, cfg_channels: GuidedChannels = None, **_: Any
    ) -> Tensor:
        """Classifier-free guidance: uncond + cfg_scale (cond - uncond), of all numbers.

        Args:
            x: (2N, L, F), of which the first N samples are used.
            t, y: timesteps and labels of the 2N samples, the second N labels being the null class.
            cfg_scale: 1 is no guidance. A tensor that broadcasts to N samples is for each number.
        """
        half = x[: x.shape[0] // 2]
        cond, uncond = self.forward(half.repeat(2, 1, 1), t, y).chunk(2)
        return (uncond + cfg_scale * (cond - uncond)).repeat(2, 1, 1)


def as_map(x: Tensor) -> Tensor:
    """Shapes (N, L, F) as a map of F channels, L x 1: (N, F, L, 1)."""
    return x.transpose(1, 2)[..., None]


Parts_models = {
    f"Parts-{size}": partial(Parts, depth=depth, hidden_size=hidden_size, num_heads=num_heads)
    for size, (depth, hidden_size, num_heads, _) in SIZES.items()
    if size in ("B", "S", "XS")
}


@dataclass(frozen=True)
class PartsConfig(ModelConfig):
    """A model of `Parts_models` and its sizes; input_size is 0, for there may be any number of parts."""

    def __str__(self) -> str:
        return f"{self.name} for parts of {self.in_channels} numbers and {self.num_classes} classes"

    def build(self, **kwargs: Any) -> Parts:
        """The model, freshly initialised."""
        return Parts_models[self.name](in_channels=self.in_channels, num_classes=self.num_classes, **kwargs)


def parts_config(state: StateDict, source: str) -> PartsConfig:
    """The model of shapes that a state dict belongs to.

    Raises:
        DataError: it is none of `Parts_models`.
    """
    width, in_channels, _, _ = weight_shape(state, "x_embedder.proj.weight", 4, source)
    num_labels = weight_shape(state, "y_embedder.embedding_table.weight", 2, source)[0]
    weight_shape(state, "final_layer.linear.weight", 2, source)
    depth = depth_of(state)
    size = next((s for s, (d, w, *_) in SIZES.items() if (d, w) == (depth, width)), None)
    if (name := f"Parts-{size}") not in Parts_models:
        raise no_such_model(source, f"a Parts of depth {depth} and width {width}", ", ".join(Parts_models))
    return PartsConfig(name, 0, in_channels, num_labels - 1, learn_sigma=False)
