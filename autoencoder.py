"""Pixels to latents and back: SD-VAE through diffusers, a local diffusers folder, or none.

Pixels are float tensors (N, 3, H, W) in [-1, 1]; latents are what the transformer sees, scaled to about unit variance.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

import precision
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


DECODED = 32  # pictures at a time: the decoder's largest activation is 64 MiB for one of 256 x 256


class LatentSpace:
    """An AutoencoderKL of diffusers, in inference mode.

    Attributes:
        factor: pixels a latent position covers, in each direction.
        channels: of the latent.
        scale, shift: latent = (z - shift) scale; 0.18215 and 0 for SD-VAE.
        encode_precision: of the encoder's products, see `precision`.
    """

    def __init__(self, source: str | Path, device: torch.device) -> None:
        """Load from a folder or a Hub repository.

        Raises:
            DataError: it cannot be loaded.
        """
        try:
            from diffusers.models import AutoencoderKL

            self.vae = AutoencoderKL.from_pretrained(source).to(device).eval().requires_grad_(False)
        except Exception as error:  # diffusers and the Hub raise many kinds
            advice = " (without network, give --vae a diffusers folder or none)" if source in PUBLISHED.values() else ""
            raise DataError(f"autoencoder {source} could not be loaded: {first_line(error)}{advice}") from error
        config = self.vae.config
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = config.latent_channels
        self.scale = config.scaling_factor
        self.shift = getattr(config, "shift_factor", None) or 0.0
        self.encode_precision = "tf32"

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the latents' posterior: (N, 3, H, W) -> (N, 2, channels, h, w) float32."""
        with precision.autocast(self.encode_precision, images.device):
            posterior = self.vae.encode(images).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        moments = torch.stack([(mean - self.shift) * self.scale, std * self.scale], dim=1)
        # In one layout on every device: noise that is drawn like a tensor follows the tensor's layout.
        return moments.contiguous()

    def encode(self, images: Tensor, sample: bool = True) -> Tensor:
        """(N, 3, H, W) -> (N, channels, h, w), a draw from the posterior or its mean."""
        moments = self.moments(images)
        return draw_posterior(moments) if sample else moments[:, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, up to the autoencoder's loss."""
        parts = (latents / self.scale + self.shift).split(DECODED)
        return torch.cat([self.vae.decode(part).sample for part in parts])

    def encoder_digest(self) -> str:
        """SHA-256 of the encoder's tensors. The published ema and mse differ in their decoders only."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.vae.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()


Autoencoder = PixelSpace | LatentSpace


def draw_posterior(moments: Tensor) -> Tensor:
    """A latent from its posterior's mean and standard deviation: (N, 2, C, h, w) -> (N, C, h, w)."""
    mean, std = moments.unbind(1)
    return mean + std * torch.randn(mean.shape, device=mean.device)  # randn_like would follow the memory's layout


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
