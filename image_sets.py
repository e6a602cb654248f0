"""Sets of images to evaluate: an .npz of samples, a folder of pictures, or the embedded digits; read batch by batch."""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data import DIGITS, Digits, image_files, load_image
from errors import DataError
from images import read_image
from pictures import to_uint8

IMAGES = "arr_0"


class ImageSet(Protocol):
    """Images of one size."""

    def __len__(self) -> int: ...
    def batches(self, size: int) -> Iterator[Tensor]:
        """Parts of the set, in order: (n, 3, H, W) uint8."""
        ...


@dataclass
class NpzImages:
    """`arr_0` of an .npz, (N, H, W, 3) uint8, of which a batch at a time is in memory.

    Raises:
        DataError: the file cannot be read, or holds no such array.
    """

    path: Path

    def __post_init__(self) -> None:
        with open_array(self.path, IMAGES) as array:
            shape, fortran_order, dtype = read_header(array, self.path)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran_order or 0 in shape:
            raise DataError(f"{self.path}: {IMAGES} is {dtype} of shape {shape}; uint8 of (N, H, W, 3) is needed")
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        n, height, width, channels = self.shape
        with open_array(self.path, IMAGES) as array:
            read_header(array, self.path)
            for start in range(0, n, size):
                count = min(size, n - start)
                try:
                    content = array.read(count * height * width * channels)
                except (zipfile.BadZipFile, OSError, EOFError) as error:
                    raise DataError(f"{self.path} is damaged: {error}") from None
                if len(content) < count * height * width * channels:
                    raise DataError(f"{self.path} is damaged: {IMAGES} ends after {start} of {n} images")
                pixels = np.frombuffer(content, np.uint8).reshape(count, height, width, channels)
                yield torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)


class FolderImages:
    """Pictures of a folder and below, sorted by path, as RGB.

    Args:
        image_size: crop them to squares, as training does. None takes them as they are, all of one size.

    Raises:
        DataError: there are none; when read: one cannot be read, or has another size than the first.
    """

    def __init__(self, root: Path, image_size: int | None = None) -> None:
        self.paths = image_files(root)
        if not self.paths:
            raise DataError(f"folder {root} holds no images")
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int) -> Iterator[Tensor]:
        first: torch.Size | None = None
        for start in range(0, len(self), size):
            images = []
            for path in self.paths[start : start + size]:
                images.append(self.read(path))
                first = first or images[0].shape
                if images[-1].shape != first:
                    wanted, found = (f"{s[2]} x {s[1]}" for s in (first, images[-1].shape))
                    raise DataError(
                        f"image {path} is {found}, {self.paths[0]} is {wanted}: give --image-size to crop all to one"
                    )
            yield torch.stack(images)

    def read(self, path: str) -> Tensor:
        if self.image_size:
            tensor = load_image(path, "RGB", self.image_size)
            return ((tensor + 1) * 127.5).round().to(torch.uint8)
        return torch.from_numpy(np.array(read_image(path, "RGB"))).permute(2, 0, 1)


class DigitImages:
    """The embedded digits, grey as three channels."""

    def __init__(self, image_size: int | None = None) -> None:
        self.images = torch.from_numpy(to_uint8(Digits(image_size or 8, 3).images).copy()).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self.images.split(size)


def open_images(source: str, image_size: int | None = None) -> ImageSet:
    """The images of a file, a folder, or 'digits'.

    Raises:
        DataError: there is no such thing, or it holds no images.
    """
    path = Path(source)
    if source == DIGITS and not path.exists():
        return DigitImages(image_size)
    if path.is_dir():
        return FolderImages(path, image_size)
    return NpzImages(path)


# ---- .npz files ----------------------------------------------------------------------------------------------------


def array_names(path: Path) -> set[str]:
    """Names of the arrays of an .npz.

    Raises:
        DataError: it is none.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; an .npz, a folder of images or '{DIGITS}' is needed")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no .npz file: {error}") from None


def open_array(path: Path, name: str) -> zipfile.ZipExtFile:
    """One array of an .npz as a stream of bytes.

    Raises:
        DataError: it has no such array.
    """
    names = array_names(path)
    if name not in names:
        raise DataError(f"{path} has no {name}; it holds {', '.join(sorted(names)) or 'nothing'}")
    return zipfile.ZipFile(path).open(f"{name}.npy")  # type: ignore[return-value]


def read_header(array: zipfile.ZipExtFile, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype, which stand before an array's bytes.

    Raises:
        DataError: they do not.
    """
    try:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(array)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged: {error}") from None
