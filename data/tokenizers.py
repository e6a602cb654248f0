"""Image autoencoders of diffusers, by class: how they encode and decode, and the layout of their latents.

Pictures are (N, 3, H, W) in [-1, 1]. Latents are the autoencoder's own here, before scale and shift.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

Factor = float | list[float]  # for all channels, or for each one


class LatentLayout(NamedTuple):
    """Latents of an autoencoder, see `LatentSpace`."""

    factor: int
    channels: int
    scale: Factor
    shift: Factor
    size: int | None = None  # side in pixels of the only pictures that are taken; None for all sizes
    is_scaled: bool = True  # whether the configuration, or the class itself, brings latents to about unit variance


class AutoencoderClass(NamedTuple):
    """The functions by which a class of autoencoders is used."""

    encode: Callable[[Any, Tensor], tuple[Tensor, ...]]  # pictures -> the posterior's mean and deviation, or latents
    decode: Callable[[Any, Tensor], Tensor]  # latents -> pictures
    layout: Callable[[Any], LatentLayout]
    has_posterior: bool = True


# ---- what the configuration says -------------------------------------------------------------------------------------


def latent_layout(config: Mapping[str, Any], factor: int, channels: int) -> LatentLayout:
    """The layout of latents, with scale and shift from a configuration.

    As in diffusers' own pipelines: with a mean and a standard deviation for each channel, latent = (z - latents_mean)
    scaling_factor / latents_std; without them, (z - shift_factor) scaling_factor.

    Raises:
        ValueError: these are not numbers, one for each channel, or all latents would be equal.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    for name, value in (("scaling_factor", scale), ("shift_factor", shift)):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, not a number")
    if scale == 0:
        raise ValueError(f"scaling_factor is {scale!r}: all latents would be 0")
    if mean is None or std is None:
        return LatentLayout(factor, channels, scale, shift, is_scaled=(scale, shift) != (1, 0))
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if not (
            isinstance(values, list | tuple)
            and len(values) == channels
            and all(type(v) in (int, float) and math.isfinite(v) for v in values)
            and (name == "latents_mean" or min(values) > 0)
        ):
            raise ValueError(f"{name} is {values}, not a number for each of {channels} channels")
    return LatentLayout(factor, channels, [scale / v for v in std], list(mean))


def by_blocks(blocks: str, channels: str = "latent_channels") -> Callable[[Any], LatentLayout]:
    """The layout of a class that halves pictures between its blocks, by the names in its configuration."""
    return lambda vae: latent_layout(vae.config, 2 ** (len(vae.config[blocks]) - 1), vae.config[channels])


# ---- classes that most are like --------------------------------------------------------------------------------------


def posterior(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """The mean and standard deviation of the posterior, of most classes."""
    found = vae.encode(images).latent_dist
    return found.mean, found.std


def unsampled(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """The latents of classes without a posterior."""
    return vae.encode(images, return_dict=False)[:1]


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """The pictures of latents."""
    return vae.decode(latents).sample


# ---- classes with conventions of their own ---------------------------------------------------------------------------


def packed(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Flux 2's posterior, with the p x p positions of a square stacked as channels of one position."""
    mean, std = posterior(vae, images)
    return F.pixel_unshuffle(mean, vae.config.patch_size[0]), F.pixel_unshuffle(std, vae.config.patch_size[0])


def unpacked(vae: Any, latents: Tensor) -> Tensor:
    """The pictures of Flux 2's stacked latents."""
    return decoded(vae, F.pixel_shuffle(latents, vae.config.patch_size[0]))


def packed_layout(vae: Any) -> LatentLayout:
    """Flux 2's layout; scale and shift are the running statistics of a batch norm among its weights.

    Raises:
        ValueError: its patches are not square.
    """
    p, q = vae.config.patch_size
    if p != q:
        raise ValueError(f"patch_size is {p} x {q}, no square")
    std = (vae.bn.running_var.double() + vae.config.batch_norm_eps).sqrt()
    return LatentLayout(
        2 ** (len(vae.config.block_out_channels) - 1) * p,
        vae.config.latent_channels * p * p,
        (1 / std).tolist(),
        vae.bn.running_mean.double().tolist(),
    )


def represented(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """RAE's latents; it takes pixels in [0, 1], and normalises pixels and latents by itself."""
    return (vae.encode((images + 1) / 2).latent,)


def pictured(vae: Any, latents: Tensor) -> Tensor:
    """The pictures of RAE's latents, brought from [0, 1] to [-1, 1]."""
    return decoded(vae, latents) * 2 - 1


def represented_layout(vae: Any) -> LatentLayout:
    """RAE's layout; it resizes all pictures to its encoder's size, and decodes to one size."""
    found = latent_layout(
        {"scaling_factor": vae.config.scaling_factor}, vae.config.patch_size, vae.config.encoder_hidden_size
    )
    vae.register_to_config(scaling_factor=1.0)  # `LatentSpace` scales
    vae.reshape_to_2d = True
    is_normalised = bool(vae._latents_mean.any() or (vae._latents_std != 1).any())
    return found._replace(size=vae.decoder_image_size, is_scaled=found.is_scaled or is_normalised)


def one_frame(vae: Any, images: Tensor) -> tuple[Tensor, ...]:
    """The posterior of Qwen-Image's autoencoder, which takes a picture as a video of one frame."""
    mean, std = posterior(vae, images[:, :, None])
    return mean[:, :, 0], std[:, :, 0]


def of_one_frame(vae: Any, latents: Tensor) -> Tensor:
    """The pictures of Qwen-Image's latents."""
    return decoded(vae, latents[:, :, None])[:, :, 0]


def quantised_layout(vae: Any) -> LatentLayout:
    """The layout of VQModel."""
    config = vae.config
    return latent_layout(
        config, 2 ** (len(config.block_out_channels) - 1), config.vq_embed_dim or config.latent_channels
    )


def asymmetric_layout(vae: Any) -> LatentLayout:
    """The layout of AsymmetricAutoencoderKL.

    Raises:
        ValueError: encoder and decoder do not scale alike.
    """
    down, up = len(vae.config.down_block_out_channels), len(vae.config.up_block_out_channels)
    if down != up:
        raise ValueError(f"it encodes by {down} blocks and decodes by {up}: pictures would come back in another size")
    return latent_layout(vae.config, 2 ** (down - 1), vae.config.latent_channels)


def hunyuan_layout(vae: Any) -> LatentLayout:
    """The layout of HunyuanImage's autoencoder."""
    config = {"scaling_factor": vae.config.scaling_factor or 1.0}  # it may have none
    return latent_layout(config, vae.config.spatial_compression_ratio, vae.config.latent_channels)


AUTOENCODERS = {
    "AutoencoderKL": AutoencoderClass(posterior, decoded, by_blocks("block_out_channels")),
    "AutoencoderKLFlux2": AutoencoderClass(packed, unpacked, packed_layout),
    "AutoencoderKLHunyuanImage": AutoencoderClass(posterior, decoded, hunyuan_layout),
    "AutoencoderKLKVAE": AutoencoderClass(posterior, decoded, by_blocks("ch_mult", "z_channels")),
    "AutoencoderKLQwenImage": AutoencoderClass(
        one_frame, of_one_frame, lambda vae: latent_layout(vae.config, vae.spatial_compression_ratio, vae.config.z_dim)
    ),
    "AsymmetricAutoencoderKL": AutoencoderClass(posterior, decoded, asymmetric_layout),
    "AutoencoderDC": AutoencoderClass(unsampled, decoded, by_blocks("encoder_block_out_channels"), has_posterior=False),
    "AutoencoderRAE": AutoencoderClass(represented, pictured, represented_layout, has_posterior=False),
    "AutoencoderTiny": AutoencoderClass(
        unsampled, decoded, by_blocks("encoder_block_out_channels"), has_posterior=False
    ),
    "VQModel": AutoencoderClass(unsampled, decoded, quantised_layout, has_posterior=False),
}
