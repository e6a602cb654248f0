"""Small autoencoders of each class of diffusers that is read, with random weights."""

from types import SimpleNamespace

import torch
from torch import nn

from data.tokenizers import AUTOENCODERS

BLOCKS = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
OF_KL = BLOCKS | {"down_block_types": DOWN, "up_block_types": UP}

# By name: the class, its configuration, and what its factor and channels are then.
SMALL = {
    "KL": ("AutoencoderKL", OF_KL | {"latent_channels": 4}, 2, 4),
    "KL-16": (
        "AutoencoderKL",  # as of SD 3 and FLUX
        OF_KL
        | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        2,
        16,
    ),
    "KL-32": (
        "AutoencoderKL",
        OF_KL
        | {"latent_channels": 32, "latents_mean": [0.01 * k for k in range(32)]}
        | {"latents_std": [1 + 0.1 * k for k in range(32)], "scaling_factor": 1.0},
        2,
        32,
    ),
    "Flux2": ("AutoencoderKLFlux2", OF_KL | {"latent_channels": 4}, 4, 16),
    "HunyuanImage": (
        "AutoencoderKLHunyuanImage",
        {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
        }
        | {"spatial_compression_ratio": 2, "sample_size": 16, "scaling_factor": 0.75289},
        2,
        4,
    ),
    "KVAE": (
        "AutoencoderKLKVAE",
        {
            "channels": 32,
            "num_enc_blocks": 1,
            "num_dec_blocks": 1,
            "z_channels": 4,
            "ch_mult": (1, 1),
            "sample_size": 16,
        },
        2,
        4,
    ),
    "QwenImage": (
        "AutoencoderKLQwenImage",
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [False]}
        | {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
        2,
        4,
    ),
    "Asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": DOWN,
            "up_block_types": UP,
            "down_block_out_channels": (8, 8),
            "up_block_out_channels": (8, 8),
        }
        | {"layers_per_down_block": 1, "layers_per_up_block": 1, "norm_num_groups": 4, "latent_channels": 4},
        2,
        4,
    ),
    "DC": (
        "AutoencoderDC",
        {"latent_channels": 8, "attention_head_dim": 4, "scaling_factor": 0.3189}
        | {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
        | {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
        | {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())},
        4,
        8,
    ),
    "RAE": (
        "AutoencoderRAE",  # in a test its encoder is `Patches`
        {"encoder_hidden_size": 12, "encoder_patch_size": 2, "encoder_num_hidden_layers": 1, "encoder_input_size": 8}
        | {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "patch_size": 4}
        | {"decoder_intermediate_size": 8, "scaling_factor": 0.5, "noise_tau": 0.8}
        | {"latents_mean": torch.rand(12, 4, 4, generator=torch.Generator().manual_seed(0))}
        | {"latents_std": 1 + torch.rand(12, 4, 4, generator=torch.Generator().manual_seed(1))},
        4,
        12,
    ),
    "Tiny": (
        "AutoencoderTiny",
        {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        2,
        4,
    ),
    "VQ": ("VQModel", OF_KL | {"latent_channels": 3, "vq_embed_dim": 4}, 2, 4),
}
# As diffusers builds it, of a small encoder of the package transformers.
WITH_TRANSFORMERS = {
    "RAE-DINOv2": (
        "AutoencoderRAE",
        {"encoder_hidden_size": 64, "encoder_patch_size": 14, "encoder_num_hidden_layers": 1, "encoder_input_size": 56}
        | {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "patch_size": 4}
        | {"decoder_intermediate_size": 8, "latents_mean": torch.zeros(64, 4, 4), "latents_std": torch.ones(64, 4, 4)},
        4,
        64,
    ),
}
SIZE = 16  # of pictures, in pixels


class Patches(nn.Module):
    """In place of RAE's encoders, which the package transformers has: an embedding of patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: torch.Tensor, **_) -> SimpleNamespace:
        tokens = self.proj(images).flatten(2).mT
        register = torch.zeros_like(tokens[:, :1]).expand(-1, 5, -1)
        return SimpleNamespace(last_hidden_state=torch.cat([register, tokens], dim=1))


def without_transformers(monkeypatch) -> None:
    """Let an AutoencoderRAE be built with `Patches`."""
    import importlib.util

    from diffusers.models.autoencoders import autoencoder_rae

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "transformers" or find(name))
    monkeypatch.setattr(
        autoencoder_rae,
        "_build_encoder",
        lambda encoder_type, hidden_size, patch_size, **_: Patches(hidden_size, patch_size),
    )


def save(name: str, folder, **values) -> str:
    """A small autoencoder in a folder, with other values in its configuration."""
    import diffusers.models

    kind, config, *_ = (SMALL | WITH_TRANSFORMERS)[name]
    assert kind in AUTOENCODERS
    torch.manual_seed(0)
    vae = getattr(diffusers.models, kind)(**config | values)
    if kind == "AutoencoderKLFlux2":
        vae.bn.running_mean.uniform_(-1, 1)
        vae.bn.running_var.uniform_(0.5, 2)
    vae.save_pretrained(folder)
    return str(folder)
