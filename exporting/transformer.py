"""The transformers of images as models of diffusers, with the keys and the results of `models.py`."""

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from models import ComboStoc, SiT


class SiTTransformer(ModelMixin, SiT, ConfigMixin):
    """`SiT` with a configuration. Takes the same arguments."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        SiT.__init__(
            self,
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth,
            num_heads,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
        )


class ComboStocTransformer(SiTTransformer, ComboStoc):
    """`ComboStoc` with a configuration."""


def transformer_of(model: SiT) -> Any:
    """A model of `models.py` as one of diffusers, with the same weights."""
    of_diffusers = ComboStocTransformer if isinstance(model, ComboStoc) else SiTTransformer
    transformer = of_diffusers(
        input_size=model.input_size,
        patch_size=model.patch_size,
        in_channels=model.in_channels,
        hidden_size=model.pos_embed.shape[-1],
        depth=len(model.blocks),
        num_heads=model.num_heads,
        num_classes=model.num_classes,
        learn_sigma=model.learn_sigma,
    )
    transformer.load_state_dict(model.state_dict())
    return transformer.eval()
