"""Pixels to latents and back: SD-VAE through diffusers, a local folder of an image autoencoder of diffusers, or none.

Pixels are float tensors (N, 3, H, W) in [-1, 1]; latents are what the transformer sees, scaled to about unit variance.
"""

import hashlib
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.images import MAX_PIXELS
from data.tokenizers import AUTOENCODERS, Factor, LatentLayout
from runtime import precision
from runtime.errors import DataError, UsageError, first_line
from runtime.files import other_than_weights

PUBLISHED = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}
SD_VAE = LatentLayout(8, 4, 0.18215, 0.0)  # the layout of `PUBLISHED`, known without fetching anything


def check_channels(name: str, channels: int, source: str) -> None:
    """See that `--vae` fits the channels of a model, before anything is fetched or drawn.

    Raises:
        UsageError: it does not.
    """
    if name in PUBLISHED and channels != SD_VAE.channels:
        raise UsageError(f"--vae {name} has {SD_VAE.channels} channels, the model of checkpoint {source} {channels}")
    if name == "none" and channels not in (1, 3):
        raise UsageError(
            f"--vae none shows pixels; the {channels} channels of checkpoint {source} are latents, which an "
            "autoencoder decodes: give --vae ema, mse or a diffusers folder"
        )


def latent_size(image_size: int, factor: int, model: str) -> int:
    """The side of a model's input for an image size.

    Raises:
        UsageError: the autoencoder's factor and the patch do not divide it.
    """
    patch_size = int(model.rpartition("/")[2])
    if image_size**2 > MAX_PIXELS:
        raise UsageError(f"--image-size {image_size} is too large: more than {MAX_PIXELS:,} pixels")
    if image_size < 1 or image_size % (factor * patch_size):
        raise UsageError(
            f"--image-size {image_size} is not a multiple of {factor * patch_size} "
            f"(autoencoder factor {factor}, patch {patch_size})"
        )
    return image_size // factor


class PixelSpace:
    """The space without an autoencoder: the model sees the pixels themselves, in the data's channels, at scale 1."""

    factor = 1

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, images: Tensor, sample: bool = True) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The latents themselves, which are images."""
        return latents


DECODED = 32  # pictures decoded at a time: the largest activation takes 64 MiB for one of 256 x 256


class LatentSpace:
    """An image autoencoder of diffusers, of a class of `AUTOENCODERS`, in inference mode.

    Attributes:
        factor: pixels that a latent position covers, in each direction.
        channels: channels of the latent.
        scale, shift: latent = (z - shift) scale, z being the autoencoder's own, for all channels or each one; 0.18215
            and 0 for SD-VAE. Training may have had others, see `data.scaling`.
        size: side in pixels of the only pictures that it takes; None where it takes all sizes.
        is_scaled: whether the configuration or the class has a scale that gives latents about unit variance.
        has_posterior: whether it encodes to a distribution; else to a latent.
        encode_precision: precision of the encoder's matrix products, see `runtime.precision`.
    """

    def __init__(self, source: str | Path, device: torch.device) -> None:
        """Load from a folder or a Hub repository.

        Raises:
            DataError: it cannot be loaded.
        """
        self.class_name = class_of(Path(source))
        kind = AUTOENCODERS[self.class_name]
        self.encoded, self.decoded, self.has_posterior = kind.encode, kind.decode, kind.has_posterior
        try:
            self.vae = class_named(self.class_name).from_pretrained(source, **variant(Path(source)))
            self.vae.to(device, torch.float32).eval().requires_grad_(False)
            layout = kind.layout(self.vae)
        except Exception as error:  # diffusers and the Hub raise many kinds
            advice = " (without network, give --vae a diffusers folder of it)" if source in PUBLISHED.values() else ""
            reason = weights_that_are_none(Path(source)) or first_line(error)
            raise DataError(f"autoencoder {source} could not be loaded: {reason}{advice}") from error
        self.factor, self.channels, self.scale, self.shift, self.size, self.is_scaled = layout
        self.encode_precision = "tf32"

    def check_size(self, image_size: int) -> None:
        """See that the autoencoder takes pictures of a size.

        Raises:
            UsageError: it takes another size only.
        """
        if self.size not in (None, image_size):
            raise UsageError(
                f"--image-size {image_size}: this {self.class_name} takes and makes pictures of {self.size} pixels only"
            )

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the latents' posterior: (N, 3, H, W) -> (N, 2, channels, h, w) float32.

        An autoencoder without posteriors gives the latents alone: (N, 1, channels, h, w).
        """
        with precision.autocast(self.encode_precision, images.device):
            mean, *std = (part.float() for part in self.encoded(self.vae, images))
        scale, shift = broadcast(self.scale, mean), broadcast(self.shift, mean)
        moments = torch.stack([(mean - shift) * scale, *(part * scale for part in std)], dim=1)
        # In one layout on every device: noise that is drawn like a tensor follows the tensor's layout.
        return moments.contiguous()

    def encode(self, images: Tensor, sample: bool = True) -> Tensor:
        """Latents (N, channels, h, w) of images (N, 3, H, W): a draw from the posterior, or its mean."""
        moments = self.moments(images)
        return draw_posterior(moments) if sample else moments[:, 0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) of latents (N, channels, h, w): the inverse of `encode`, up to the autoencoder's loss."""
        scale, shift = broadcast(self.scale, latents), broadcast(self.shift, latents)
        parts = (latents / scale + shift).split(DECODED)
        return torch.cat([self.decoded(self.vae, part) for part in parts])

    def encoder_digest(self) -> str:
        """SHA-256 of all tensors but the decoder's. The published ema and mse differ in their decoders only."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.vae.state_dict().items()):
            if not name.startswith(("decoder.", "post_quant_conv.")):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()


def class_named(name: str) -> Any:
    """A class of diffusers, by its name in `AUTOENCODERS`.

    Raises:
        DataError: the installed diffusers lacks it, or a package that it needs is missing.
    """
    models = importlib.import_module("diffusers.models")
    if not hasattr(models, name):
        version = importlib.import_module("diffusers").__version__
        raise DataError(f"diffusers {version} has no {name}: install a later one")
    if name == "AutoencoderRAE" and importlib.util.find_spec("transformers") is None:
        raise DataError(f"{name} needs the package transformers, which is not installed")
    return getattr(models, name)


def broadcast(factor: Factor, latents: Tensor) -> float | Tensor:
    """A factor in a form that multiplies latents (N, C, h, w): a number, or a tensor (C, 1, 1)."""
    if isinstance(factor, list):
        return torch.tensor(factor, device=latents.device, dtype=latents.dtype).view(-1, 1, 1)
    return factor


Autoencoder = PixelSpace | LatentSpace


def weights_that_are_none(folder: Path) -> str | None:
    """A sentence on a file that stands in place of weights, as in a clone without Git LFS; None if there is none."""
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        if what := other_than_weights(path):
            return f"{path.name} is {what}"
    return None


def variant(folder: Path) -> dict[str, str]:
    """The arguments by which diffusers loads a folder that has its weights in half precision only; {} for others."""
    stem = "diffusion_pytorch_model"
    has_full = any((folder / f"{stem}.{kind}").is_file() for kind in ("safetensors", "bin"))
    has_half = any((folder / f"{stem}.fp16.{kind}").is_file() for kind in ("safetensors", "bin"))
    return {"variant": "fp16"} if has_half and not has_full else {}


def class_of(folder: Path) -> str:
    """The autoencoder class that a diffusers folder names; AutoencoderKL where it names none, or for the Hub."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return "AutoencoderKL"  # what comes next says what is wrong
    return str(kind)


def other_than_autoencoder(path: Path) -> str | None:
    """The reason, in words, why a path is no diffusers folder of an image autoencoder; None where it may be one."""
    if path.is_file():
        return f"is a file; give its folder, {path.parent}" if (path.parent / "config.json").is_file() else "is a file"
    if (path / "vae" / "config.json").is_file() and not (path / "config.json").is_file():
        return f"is the folder of a whole pipeline; give {path / 'vae'}"
    if (kind := class_of(path)) in AUTOENCODERS:
        return None
    return f"is of the class {kind}; the image autoencoders of diffusers that are read are {', '.join(AUTOENCODERS)}"


def draw_posterior(moments: Tensor) -> Tensor:
    """A latent from its posterior's mean and standard deviation: (N, 2, C, h, w) -> (N, C, h, w).

    (N, 1, C, h, w), without a posterior, is the latent itself.
    """
    if moments.shape[1] == 1:
        return moments[:, 0]
    mean, std = moments.unbind(1)
    return mean + std * torch.randn(mean.shape, device=mean.device)  # randn_like would follow the memory's layout


def check_name(name: str) -> None:
    """See that `--vae` names an autoencoder, as far as that shows without loading it.

    Raises:
        DataError: it does not.
    """
    if name == "none" or name in PUBLISHED:
        return
    if other := other_than_autoencoder(Path(name)):
        raise DataError(f"--vae {name} {other}")
    if not (Path(name) / "config.json").is_file():
        raise DataError(f"--vae {name} is neither ema, mse, none nor a diffusers folder with a config.json")


def load_autoencoder(name: str, device: torch.device, pixel_channels: int = 3) -> Autoencoder:
    """The autoencoder of `--vae`.

    Args:
        name: "ema" or "mse" (SD-VAE fine-tuned with an EMA or an MSE loss), "none", or a diffusers folder.
        device: the device that it computes on.
        pixel_channels: channels of the data, for "none".

    Raises:
        DataError: it cannot be loaded.
    """
    if name == "none":
        return PixelSpace(pixel_channels)
    check_name(name)
    return LatentSpace(PUBLISHED.get(name, name), device)
