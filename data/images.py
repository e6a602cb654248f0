"""Picture files as users have them: decoded as a viewer shows them, or refused by name."""

import errno
import io
import logging
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from runtime.errors import DataError, first_line
from runtime.files import describe_file

# Told by content, not by name. Without those that Pillow hands to another program, as it does EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF")
GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes without colours
MAX_PIXELS = 178_956_970  # Pillow's limit, above which it suspects a decompression bomb: half a GiB as RGB
MAX_BYTES = 2**31
# Bytes of a PNG's colour profile, comments and metadata, decompressed: as many as the pixels may have. Pillow's own
# limit, a MiB each, is less than printers' profiles and the histories that editors keep.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**29
# Errors whose cause is the machine, not the picture.
TROUBLE = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN}

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it says what is wrong with a file a second time


class UnreadableImage(DataError):
    """The error of a file that is no picture, or of a kind that is not read."""


def read_image(path: str, mode: str, background: str = "white", read: Callable[[], bytes] | None = None) -> Image.Image:
    """A picture, upright as its EXIF orientation says, in 8 bits, with transparent parts on white or black.

    Args:
        path: path of the file, or a name for messages.
        mode: "RGB" or "L".
        background: "white" or "black".
        read: returns the bytes of a picture that is no file of its own.

    Raises:
        UnreadableImage: the file is at fault.
        DataError: the machine is: the next try may succeed.
    """
    try:
        if read is None:
            check_file(path)
        source = path if read is None else io.BytesIO(read())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures below the limit, and EXIF that is garbled
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:  # older versions of Pillow are more generous
                    raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                match_transparency(image)
                image.load()
                turn_upright(image)
                return flatten(image, mode, background)
    except Exception as error:  # Pillow raises many kinds
        what = describe_file(Path(path)) if isinstance(error, UnidentifiedImageError) and read is None else None
        reason = f"image {path} cannot be read: {f'it is {what}' if what else first_line(error)}"
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in TROUBLE):
            raise DataError(reason) from error
        raise UnreadableImage(reason) from error


def check_file(path: str) -> None:
    """See that a path is a regular file of at most `MAX_BYTES`.

    Raises:
        ValueError: it is not.
        OSError: it is not there.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    check_size(status.st_size)


def check_size(size: int) -> None:
    """See that a number of bytes is at most `MAX_BYTES`.

    Raises:
        ValueError: it is more.
    """
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")


def turn_upright(image: Image.Image) -> None:
    """Rotate or mirror a picture, in place, as its EXIF orientation says; EXIF that cannot be read is ignored."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # struct.error, SyntaxError, KeyError, ...: the picture itself has been decoded
        return


def match_transparency(image: Image.Image) -> None:
    """Bring a PNG's transparent colour to 8 bits, as its pixels will be; Pillow leaves it in those of the file."""
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", []) if image.format == "PNG" else []
    stored = tiles[0][3] if tiles else None  # as "L;4", grey in 4 bits
    if stored in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[stored]
    elif stored == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def flatten(image: Image.Image, mode: str, background: str = "white") -> Image.Image:
    """A picture of any of Pillow's modes as "RGB" or "L", with transparent parts on a background.

    Raises:
        ValueError: its pixels are floats, or integers beyond 16 bits, whose range is not known.
    """
    if image.mode.startswith("I"):
        pixels, behind = np.asarray(image), 255 if background == "white" else 0
        image = Image.fromarray(np.where(pixels == image.info.get("transparency", -1), behind, to_8_bits(pixels)))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(mode)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Integers of 16 bits rounded to 8. (Pillow would cut off all above 255.)

    Raises:
        ValueError: they are beyond 16 bits.
    """
    if pixels.min() < 0 or pixels.max() >= 2**16:
        raise ValueError("integer pixels beyond 16 bits have no known range")
    return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)


def is_grey(path: str, read: Callable[[], bytes] | None = None) -> bool | None:
    """Whether a picture is stored as grey, by its header alone; None where the header cannot be read.

    Args:
        path, read: see `read_image`.
    """
    try:
        if read is None:
            check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path if read is None else io.BytesIO(read()), formats=FORMATS) as image:
                return image.mode in GREY
    except Exception:  # reading it will say why
        return None


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Image.Image:
    """A picture cropped to a square as in ADM.

    It is halved with a box filter while twice too large, then its short side is resized with bicubic, then the centre
    is cut out.

    Raises:
        ValueError: it is so long that resizing would take too much memory.
    """
    while min(pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize((pil_image.width // 2, pil_image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(pil_image.size)
    size = round(pil_image.width * scale), round(pil_image.height * scale)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{pil_image.width} x {pil_image.height} pixels are too long for a crop of {image_size}")
    pil_image = pil_image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    return pil_image.crop((left, top, left + image_size, top + image_size))


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as a tensor (C, H, W) in [-1, 1]; C is 1 for a grey picture, else 3."""
    array = np.asarray(image if image.mode == "L" else image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1) / 127.5 - 1


def load_image(path: str, mode: str, image_size: int, read: Callable[[], bytes] | None = None) -> Tensor:
    """A picture, cropped to a square: (1 or 3, image_size, image_size) in [-1, 1] for mode "L" or "RGB".

    Args:
        read: see `read_image`.

    Raises:
        UnreadableImage: it cannot be read, or is too long to be cropped.
    """
    return square(read_image(path, mode, read=read), path, image_size)


def square(image: Image.Image, path: str, image_size: int) -> Tensor:
    """A picture that has been read, as `load_image` returns it: (1 or 3, image_size, image_size) in [-1, 1].

    Raises:
        UnreadableImage: it is too long to be cropped.
    """
    try:
        return to_tensor(center_crop_arr(image, image_size))
    except ValueError as error:
        raise UnreadableImage(f"image {path} cannot be read: {error}") from None
