"""Graded control of images: references, preservation maps from what a user says, samples beside them.

A map says for every pixel how much of the reference is kept, from 0 (regenerate) to 1 (keep). It comes from

    0.75                              a number, for the whole picture
    left:0.9,right:0.1                regions: all, left, right, top, bottom (halves), later ones over earlier ones
    0.25,0.25,0.75,0.75:1             a box x0,y0,x1,y1 in fractions of the picture, from its top left corner
    mask.png                          a grey picture; white keeps, black and transparent parts do not

and is averaged over the pixels of a latent position; what no region covers is 0. A factor for each latent channel
multiplies it.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.images import load_image, read_image, square
from data.pictures import grid, to_uint8, to_uint8_later
from models import ComboStoc
from runtime.errors import DataError, UsageError
from sampling.arguments import Box, Preserve
from sampling.network import Network
from transport import ComboStocType
from transport.graded import preservation_map

# ---- references and maps -------------------------------------------------------------------------------------------


def load_references(paths: Sequence[str], network: Network) -> Tensor:
    """Pictures as tensors (R, C, S, S) in [-1, 1], in the model's channels in pixel space.

    Raises:
        DataError: a picture cannot be read.
    """
    mode = "L" if network.images.channels == 1 else "RGB"
    return torch.stack([load_image(path, mode, network.image_size) for path in paths])


def pixel_maps(spec: Preserve | None, paths: Sequence[str], size: int) -> Tensor:
    """The map of each reference: (R, S, S). Without a spec all is kept, which channel factors then lower.

    Raises:
        UsageError: a region is unknown.
        DataError: a mask cannot be read, or is not of a reference's size.
    """
    if spec is None:
        return torch.ones(len(paths), size, size)
    if spec.fault:
        raise UsageError(f"--preserve {spec.text}: {spec.fault}")
    if spec.mask is None:
        return boxes_map(spec.boxes, size).expand(len(paths), -1, -1)
    return torch.stack([mask_map(spec.mask, path, size) for path in paths])


def boxes_map(boxes: Sequence[tuple[Box, float]], size: int) -> Tensor:
    """A map (S, S) of boxes with a value each, later ones over earlier ones; partly covered pixels are mixed."""
    m = torch.zeros(size, size)
    for (x0, y0, x1, y1), value in boxes:
        cover = covered(y0, y1, size)[:, None] * covered(x0, x1, size)
        m = torch.lerp(m, torch.tensor(value), cover)
    return m


def covered(low: float, high: float, size: int) -> Tensor:
    """The share of each of `size` pixels that lies between two fractions of their whole length: (size,)."""
    left = torch.arange(size, dtype=torch.float64)
    return ((high * size - left).clamp(0, 1) - (low * size - left).clamp(0, 1)).float()


def mask_map(mask: str, reference: str, size: int) -> Tensor:
    """A grey picture as a map (S, S): white is 1, black and transparent parts are 0.

    The mask is cropped as its reference is, and so must have the reference's size; or it is a square of the model's
    size.

    Raises:
        DataError: it cannot be read, or has another size; or it keeps nothing because what is painted is black.
    """
    try:
        picture = read_image(mask, "L", background="black")
    except DataError as error:
        raise DataError(
            f"--preserve {mask} is neither a number from 0 to 1 nor regions, and as a picture: {error}"
        ) from None
    expected = read_image(reference, "L").size
    if picture.size not in (expected, (size, size)):
        raise DataError(
            f"mask {mask} has {picture.width} x {picture.height} pixels; it must have the {expected[0]} x "
            f"{expected[1]} of {reference}, or {size} x {size}"
        )
    if picture.getextrema() == (0, 0) and read_image(mask, "L").getextrema() != (0, 0):
        raise DataError(
            f"mask {mask} keeps nothing: it is transparent in parts and black elsewhere; paint what is kept white"
        )
    return (square(picture, mask, size)[0] * 127.5 + 127.5).round() / 255


def latent_maps(pixels: Tensor, factors: Sequence[float] | None, network: Network) -> Tensor:
    """Maps of pixels (R, S, S) as maps of latents: (R, C or 1, h, w).

    Raises:
        UsageError: there are not as many factors as channels, or the model has one time for all.
    """
    m = F.avg_pool2d(pixels[:, None], network.images.factor)
    if factors is not None:
        channels = network.config.in_channels
        if len(factors) != channels:
            raise UsageError(
                f"--preserve-channels has {len(factors)} factors; the model has {channels} "
                f"{'channel' if channels == 1 else 'channels'}"
            )
        m = m * torch.tensor(factors)[:, None, None]
    varies = preservation_map(m, m).shape[1:] != (1, 1, 1)
    if varies and network.config.name.startswith("SiT"):
        raise UsageError(
            f"{network.config.name} has one time for all of a picture: give --preserve a number, such as 0.75; "
            "maps, regions and channels need a ComboStoc model"
        )
    return m


def untrained_times(m: Tensor, network: Network) -> str | None:
    """A sentence that names times of these maps which the model was not trained with; None where there are none."""
    trained = network.transport.combostoc_type
    _, channels, *positions = preservation_map(m, m).shape
    over_channels = channels > 1 and trained in (ComboStocType.UNSYNC_NONE, ComboStocType.UNSYNC_PATCH)
    over_positions = max(positions) > 1 and trained in (ComboStocType.UNSYNC_NONE, ComboStocType.UNSYNC_VEC)
    if not (over_channels or over_positions):
        return None
    what = " and ".join(["channels"] * over_channels + ["positions"] * over_positions)
    return f"the model was trained with {trained.name}, never with times that differ between {what}"


# ---- samples -------------------------------------------------------------------------------------------------------


@dataclass
class ImageControl:
    """Reference pictures, and how much of each entry is kept."""

    images: Tensor  # (R, C, S, S) in [-1, 1]
    pixels: Tensor  # (R, S, S) in [0, 1]: the least that is kept in any channel
    keep: Tensor  # (R, C or 1, h, w) in [0, 1]: the map that the sampler is given
    paste: bool = False  # put pixels that are kept at 1 over the decoded picture

    def latents(self, network: Network, device: torch.device) -> Tensor:
        """The encoded references: (R, C, h, w)."""
        return network.images.encode(self.images.to(device), sample=False)

    def untrained_times(self, network: Network) -> str | None:
        """A sentence that names times of the map which the model was not trained with; None where there are none."""
        return untrained_times(self.keep, network)

    def finish(self, x: Tensor, rows: Tensor) -> Callable[[], np.ndarray]:
        """Decoded samples of the references `rows` as 8-bit pictures, on their way from the GPU."""
        if self.paste:
            x = torch.where(self.pixels[rows, None].to(x.device) == 1, self.images[rows].to(x.device), x)
        return to_uint8_later(x)

    def sheet(self, samples: np.ndarray, captions: Sequence[str], size: int | None = None) -> Image.Image:
        """A picture with a row for each reference: itself, its map, and its samples, labelled with its caption."""
        rows = samples.reshape(len(self.images), -1, *samples.shape[1:])
        maps = [map_picture(m, samples.shape[1]) for m in self.keep]
        tiles, texts = [], []
        for reference, m, map_tile, row, caption in zip(
            to_uint8(self.images), self.keep, maps, rows, captions, strict=True
        ):
            tiles += [reference, map_tile, *row]
            low, high = f"{m.min():.3g}", f"{m.max():.3g}"
            kept = f"kept {low}" if low == high else f"kept {low} to {high}"
            texts += ["reference", kept, *(f"{caption} ({k})" for k in range(1, len(row) + 1))]
        return grid(np.stack(tiles), texts, columns=2 + rows.shape[1])


def make_control(
    images: Tensor, pixels: Tensor, factors: Sequence[float] | None, network: Network, paste: bool = False
) -> ImageControl:
    """Graded control by references, maps of pixels, and a factor for each channel.

    Raises:
        UsageError: see `latent_maps`; or nothing is kept that could be pasted.
    """
    control = ImageControl(images, pixels * min(factors or [1.0]), latent_maps(pixels, factors, network), paste)
    if paste and not (control.pixels == 1).any():
        raise UsageError("--preserve-pixels pastes pixels that are kept at 1; the map and its factors keep none")
    return control


def load_control(args: argparse.Namespace, network: Network) -> ImageControl:
    """Graded control by --reference, --preserve and --preserve-channels.

    Raises:
        UsageError, DataError: a reference or a map cannot be used.
    """
    maps = pixel_maps(args.preserve, args.reference, network.image_size)
    images = load_references(args.reference, network)
    control = make_control(images, maps, args.preserve_channels, network, args.preserve_pixels)
    varies = preservation_map(control.keep, control.keep).shape[1:] != (1, 1, 1)
    if varies and network.guide is not None and not isinstance(network.guide, ComboStoc):
        raise UsageError(
            f"--guide-ckpt {args.guide_ckpt} is a SiT model, which has one time for all of a picture: maps, regions "
            "and channels need a ComboStoc model"
        )
    return control


def map_picture(m: Tensor, size: int) -> np.ndarray:
    """A latent map (C or 1, h, w) as a picture (S, S, 3), white for 1; several channels as tiles, three as colours."""
    channels, h, w = m.shape
    if channels in (1, 3):
        picture = m.expand(3, -1, -1).permute(1, 2, 0)
    else:
        side = math.ceil(math.sqrt(channels))
        tiles = F.pad(m, (0, 0, 0, 0, 0, side**2 - channels)).reshape(side, side, h, w)
        picture = tiles.permute(0, 2, 1, 3).reshape(side * h, side * w, 1).expand(-1, -1, 3)
    pixels = (255 * picture).round().to(torch.uint8).numpy()
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST))
