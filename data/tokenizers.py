"""Image autoencoders of diffusers, by class: how pictures go in, how latents come out, and what is known of them.

Pictures are (N, 3, H, W) in [-1, 1]. Latents are the autoencoder's own here, before scale and shift.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

Factor = float | list[float]  # for all channels, or for each one


class Layout(NamedTuple):
    """Latents of an autoencoder, see `LatentSpace`."""

    factor: int
    channels: int
    scale: Factor
    shift: Factor
    size: int | None = None  # of pictures, in pixels, where there is but one
    is_scaled: bool = True  # whether the configuration, or the class itself, brings latents to about unit variance


class Kind(NamedTuple):
    """A class of autoencoders."""

    encode: Callable[[Any, Tensor], tuple[Tensor, ...]]  # pictures -> the posterior's mean and deviation, or latents
    decode: Callable[[Any, Tensor], Tensor]
    layout: Callable[[Any], Layout]
    has_posterior: bool = True


# ---- what the configuration says -------------------------------------------------------------------------------------


def layout_of(config: Mapping[str, Any], factor: int, channels: int) -> Layout:
    """Scale and shift from a configuration.

    As in diffusers' own pipelines: with a mean and a standard deviation for each channel, latent = (z - latents_mean)
    scaling_factor / latents_std; without them, (z - shift_factor) scaling_factor.

    Raises:
        ValueError: these are not numbers, one for each channel, or latents would all be alike.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    for name, value in (("scaling_factor", scale), ("shift_factor", shift)):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, not a number")
    if scale == 0:
        raise ValueError(f"scaling_factor is {scale!r}: all latents would be 0")
    if mean is None or std is None:
        return Layout(factor, channels, scale, shift, is_scaled=(scale, shift) != (1, 0))
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if not (
            isinstance(values, list | tuple)
            and len(values) == channels
            and all(type(v) in (int, float) and math.isfinite(v) for v in values)
            and (name == "latents_mean" or min(values) > 0)
        ):
            raise ValueError(f"{name} is {values}, not a number for each of {channels} channels")
    return Layout(factor, channels, [scale / v for v in std], list(mean))


def by_blocks(blocks: str, channels: str = "latent_channels") -> Callable[[Any], Layout]:
    """The layout of a class that halves pictures between its blocks, by the names in its configuration."""
    return lambda vae: layout_of(vae.config, 2 ** (len(vae.config[blocks]) - 1), vae.config[channels])


# ---- classes that most are like --------------------------------------------------------------------------------------


def posterior(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    found = vae.encode(images).latent_dist
    return found.mean, found.std


def plain(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    return vae.encode(images, return_dict=False)[:1]


def decoded(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample


# ---- classes with conventions of their own ---------------------------------------------------------------------------


def packed(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Flux 2: what lies in a square of p x p is of one position."""
    mean, std = posterior(vae, images)
    return F.pixel_unshuffle(mean, vae.config.patch_size[0]), F.pixel_unshuffle(std, vae.config.patch_size[0])


def unpacked(vae: Any, latents: Tensor) -> Tensor:
    return decoded(vae, F.pixel_shuffle(latents, vae.config.patch_size[0]))


def packed_layout(vae: Any) -> Layout:
    """Flux 2 standardises by the running statistics of a batch norm, which are among its weights."""
    p, q = vae.config.patch_size
    if p != q:
        raise ValueError(f"patch_size is {p} x {q}, no square")
    std = (vae.bn.running_var.double() + vae.config.batch_norm_eps).sqrt()
    return Layout(
        2 ** (len(vae.config.block_out_channels) - 1) * p,
        vae.config.latent_channels * p * p,
        (1 / std).tolist(),
        vae.bn.running_mean.double().tolist(),
    )


def represented(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """RAE takes and gives pixels in [0, 1]; it normalises them, and its latents, by itself."""
    return (vae.encode((images + 1) / 2).latent,)


def pictured(vae: Any, latents: Tensor) -> Tensor:
    return decoded(vae, latents) * 2 - 1


def represented_layout(vae: Any) -> Layout:
    """RAE resizes all pictures to the encoder's size, and makes such of one size."""
    found = layout_of(
        {"scaling_factor": vae.config.scaling_factor}, vae.config.patch_size, vae.config.encoder_hidden_size
    )
    vae.register_to_config(scaling_factor=1.0)  # `LatentSpace` scales
    vae.reshape_to_2d = True
    is_normalised = bool(vae._latents_mean.any() or (vae._latents_std != 1).any())
    return found._replace(size=vae.decoder_image_size, is_scaled=found.is_scaled or is_normalised)


def one_frame(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Qwen-Image's autoencoder takes a picture as a video of one frame."""
    mean, std = posterior(vae, images[:, :, None])
    return mean[:, :, 0], std[:, :, 0]


def of_one_frame(vae: Any, latents: Tensor) -> Tensor:
    return decoded(vae, latents[:, :, None])[:, :, 0]


def quantised_layout(vae: Any) -> Layout:
    config = vae.config
    return layout_of(config, 2 ** (len(config.block_out_channels) - 1), config.vq_embed_dim or config.latent_channels)


def asymmetric_layout(vae: Any) -> Layout:
    down, up = len(vae.config.down_block_out_channels), len(vae.config.up_block_out_channels)
    if down != up:
        raise ValueError(f"it encodes by {down} blocks and decodes by {up}: pictures would come back in another size")
    return layout_of(vae.config, 2 ** (down - 1), vae.config.latent_channels)


def hunyuan_layout(vae: Any) -> Layout:
    config = {"scaling_factor": vae.config.scaling_factor or 1.0}  # it may have none
    return layout_of(config, vae.config.spatial_compression_ratio, vae.config.latent_channels)


KINDS = {
    "AutoencoderKL": Kind(posterior, decoded, by_blocks("block_out_channels")),
    "AutoencoderKLFlux2": Kind(packed, unpacked, packed_layout),
    "AutoencoderKLHunyuanImage": Kind(posterior, decoded, hunyuan_layout),
    "AutoencoderKLKVAE": Kind(posterior, decoded, by_blocks("ch_mult", "z_channels")),
    "AutoencoderKLQwenImage": Kind(
        one_frame, of_one_frame, lambda vae: layout_of(vae.config, vae.spatial_compression_ratio, vae.config.z_dim)
    ),
    "AsymmetricAutoencoderKL": Kind(posterior, decoded, asymmetric_layout),
    "AutoencoderDC": Kind(plain, decoded, by_blocks("encoder_block_out_channels"), has_posterior=False),
    "AutoencoderRAE": Kind(represented, pictured, represented_layout, has_posterior=False),
    "AutoencoderTiny": Kind(plain, decoded, by_blocks("encoder_block_out_channels"), has_posterior=False),
    "VQModel": Kind(plain, decoded, quantised_layout, has_posterior=False),
}
