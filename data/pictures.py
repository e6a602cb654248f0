"""Tensors to pictures: bytes, captioned grids, .npz files of samples."""

import math
import os
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from runtime import progress
from runtime.errors import DataError, first_line
from runtime.files import replacing

MARGIN = 4
MIN_TILE = 64  # smaller pictures are enlarged by whole factors, so that a pixel stays a square
FONT_SIZE, LINE_HEIGHT, MAX_LINES = 11, 14, 3  # of captions
# For scripts that DejaVu Sans does not have, where the system has one of them.
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf", "unifont.otf")


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (N, 1 or 3, H, W) in [-1, 1] -> pictures (N, H, W, 3) uint8, clamp(127.5 x + 128, 0, 255).

    Grey becomes three channels.

    Raises:
        FloatingPointError: a picture is not finite; as bytes it would be black.
    """
    return to_uint8_later(images)()


def to_uint8_later(images: Tensor) -> Callable[[], np.ndarray]:
    """`to_uint8` in two halves: the copy from the GPU starts now, the function returned waits for it, in any thread.

    Raises:
        FloatingPointError: from the function returned, if a picture is not finite.
    """
    pixels = torch.clamp(127.5 * images + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    pixels = pixels.to("cpu", non_blocking=images.is_cuda)
    finite = images.isfinite().flatten(1).all(1).to("cpu", non_blocking=images.is_cuda)
    arrived = torch.cuda.Event() if images.is_cuda else None
    if arrived is not None:
        arrived.record()

    def wait() -> np.ndarray:
        if arrived is not None:
            arrived.synchronize()
        if not finite.all():
            bad = int((~finite).sum())
            raise FloatingPointError(
                f"{bad} of {len(finite)} pictures are not finite: the model's weights are not, or the sampler diverges "
                "with these settings"
            )
        return pixels.expand(-1, -1, -1, 3).numpy()

    return wait


@cache
def fonts() -> list[ImageFont.FreeTypeFont]:
    """The fonts for captions: Pillow's, which has little more than ASCII, then others with more letters."""
    files = [*SYSTEM_FONTS]
    with suppress(ImportError):
        import matplotlib

        files.insert(0, os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    found = [pillows_font()]
    for file in files:
        with suppress(OSError):
            found.append(ImageFont.truetype(file, FONT_SIZE))
    return found


@cache
def pillows_font() -> ImageFont.FreeTypeFont:
    """Pillow's own font, in the size of captions."""
    font = ImageFont.load_default(FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has all letters of a text; for one that it lacks it draws the box that it draws for no letter."""
    glyph = font.font_variant(layout_engine=ImageFont.Layout.BASIC).getmask  # of a letter by itself
    box = bytes(glyph("\U0010ffff"))
    return all(c == " " or (c.isprintable() and bytes(glyph(c)) != box) for c in text)


def legible(text: str) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text and the font to write it in; letters that no font has are escaped as in Python, such as \\u72ac."""
    text = unicodedata.normalize("NFC", text)  # file systems may take letters and their accents apart
    if can_write(pillows_font(), text):
        return text, pillows_font()
    for font in fonts():
        if can_write(font, text):
            return text, font
    best = max(fonts(), key=lambda font: sum(can_write(font, letter) for letter in text))
    return "".join(c if can_write(best, c) else ascii(c)[1:-1] for c in text), best


def in_lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A caption broken into at most `MAX_LINES` lines, between words and within long ones; a longer one ends in …."""

    def fits(line: str) -> bool:
        return font.getlength(line) <= width

    lines = [""]
    for word in text.split(" "):
        if fits(joined := f"{lines[-1]} {word}".strip()):
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    if len(lines) > MAX_LINES:
        last = lines[MAX_LINES - 1]
        while last and not fits(f"{last}…"):
            last = last[:-1]
        lines[MAX_LINES - 1 :] = [f"{last}…"]
    return lines


def columns_for(labels: Sequence[int]) -> int | None:
    """The number of columns that gives each class one, for labels that repeat in cycles; None for others.

    The last cycle may be cut short.
    """
    cycle = len(set(labels))
    repeats = all(label == labels[k % cycle] for k, label in enumerate(labels))
    return cycle if repeats and 1 < cycle < len(labels) else None


def grid(images: np.ndarray, captions: Sequence[str] | None = None, columns: int | None = None) -> Image.Image:
    """Pictures (N, H, W, 3) side by side, each with its caption below, in up to three lines.

    Args:
        images: uint8 pictures.
        captions: one for each picture.
        columns: pictures in a row; by default a grid about twice as wide as it is high.
    """
    n, height, width, _ = images.shape
    columns = columns or min(n, math.ceil(math.sqrt(2 * n)))
    rows = math.ceil(n / columns)
    zoom = max(1, math.ceil(MIN_TILE / max(height, width)))
    tile_w, tile_h = width * zoom, height * zoom
    written = [(in_lines(text, font, tile_w), font) for text, font in map(legible, captions or [])]
    text_h = LINE_HEIGHT * max((len(lines) for lines, _ in written), default=0)
    step_x, step_y = tile_w + MARGIN, tile_h + text_h + MARGIN
    canvas = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for k, image in enumerate(images):
        x, y = MARGIN + k % columns * step_x, MARGIN + k // columns * step_y
        canvas.paste(Image.fromarray(image).resize((tile_w, tile_h), Image.Resampling.NEAREST), (x, y))
        if captions:
            lines, font = written[k]
            for line, text in enumerate(lines):
                top = y + tile_h + 1 + line * LINE_HEIGHT
                draw.text((x + tile_w / 2, top), text, fill="black", font=font, anchor="ma")
    return canvas


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG; a half-written file never has the final name."""
    with replacing(path) as beside:
        image.save(beside, format="PNG")


def fault_of(picture: Path, size: int) -> str | None:
    """The reason why a file is not a PNG of size x size colour pixels as `save_image` writes; None where it is one."""
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            if image.size != (size, size) or image.mode != "RGB":
                return f"is {image.width} x {image.height} {image.mode}, not {size} x {size} RGB"
            image.verify()  # checksums
    except Exception as error:  # Pillow raises many kinds
        return f"is damaged: {first_line(error)}"
    return None


def save_npz(pictures: Sequence[Path], labels: Sequence[int] | None, path: Path, size: int) -> None:
    """Pack PNG files into an .npz: arr_0, (N, size, size, 3) uint8, and arr_1, their labels, as ADM's programs do.

    One picture is in memory at a time. The same pictures make the same bytes.

    Raises:
        DataError: a picture is damaged, or of another size.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(pictures), size, size, 3)}
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, header)
            for picture in progress.bar(pictures, desc=path.name):
                if fault := fault_of(picture, size):
                    raise DataError(f"{picture} {fault}")
                with Image.open(picture) as image:
                    array.write(np.asarray(image).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as array:
                np.lib.format.write_array(array, np.asarray(labels, np.int64))
