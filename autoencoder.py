"""Pixels to latents and back: SD-VAE through diffusers, a local diffusers folder, or none.

Pixels are float tensors (N, 3, H, W) in [-1, 1]; latents are what the transformer sees, scaled to about unit variance.
"""

from pathlib import Path

import torch
from torch import Tensor

from errors import DataError, first_line

PUBLISHED = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}


class PixelSpace:
    """No autoencoder: the model sees the pixels themselves, in the data's own channels, at scale 1."""

    factor = 1

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, images: Tensor, sample: bool = True) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class LatentSpace:
    """An AutoencoderKL of diffusers, in inference mode.

    Attributes:
        factor: pixels a latent position covers, in each direction.
        channels: of the latent.
        scale, shift: latent = (z - shift) scale; 0.18215 and 0 for SD-VAE.
    """

    def __init__(self, source: str | Path, device: torch.device) -> None:
        """Load from a folder or a Hub repository.

        Raises:
            DataError: it cannot be loaded.
        """
        from diffusers.models import AutoencoderKL

        try:
            self.vae = AutoencoderKL.from_pretrained(source).to(device).eval().requires_grad_(False)
        except Exception as error:  # diffusers and the Hub raise many kinds
            advice = " (without network, give --vae a diffusers folder or none)" if source in PUBLISHED.values() else ""
            raise DataError(f"autoencoder {source} could not be loaded: {first_line(error)}{advice}") from error
        config = self.vae.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = config.latent_channels
        self.scale = config.scaling_factor
        self.shift = getattr(config, "shift_factor", None) or 0.0

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = True) -> Tensor:
        """(N, 3, H, W) -> (N, channels, H / factor, W / factor), a draw from the posterior or its mean."""
        posterior = self.vae.encode(images).latent_dist
        return ((posterior.sample() if sample else posterior.mean) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, up to the autoencoder's loss."""
        return self.vae.decode(latents / self.scale + self.shift).sample


Autoencoder = PixelSpace | LatentSpace


def load_autoencoder(name: str, device: torch.device, pixel_channels: int = 3) -> Autoencoder:
    """The autoencoder of `--vae`.

    Args:
        name: "ema" or "mse" (SD-VAE fine-tuned with an EMA or an MSE loss), "none", or a diffusers folder.
        device: where it computes.
        pixel_channels: channels of the data, for "none".

    Raises:
        DataError: it cannot be loaded.
    """
    if name == "none":
        return PixelSpace(pixel_channels)
    if name in PUBLISHED:
        return LatentSpace(PUBLISHED[name], device)
    if not (Path(name) / "config.json").is_file():
        raise DataError(f"--vae {name} is neither ema, mse, none nor a diffusers folder with a config.json")
    return LatentSpace(name, device)
