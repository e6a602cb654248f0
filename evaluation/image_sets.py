"""Sets of images to evaluate: an .npz of samples, a folder of pictures, or the embedded digits; read batch by batch.

Several processes read a set together: each takes every world_size-th batch.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from data.images import load_image, read_image
from data.listing import image_files
from data.pictures import to_uint8
from data.sets import DIGITS, Digits
from runtime.errors import DataError
from runtime.files import DAMAGE, describe_file

ARRAY = "arr_0"
SKIPPED = 1 << 24  # bytes that are read at a time to pass over them

Batch = tuple[Sequence[int], Tensor]  # indices of images in their set, and the images, (n, 3, H, W) uint8


class ImageSet(Protocol):
    """A set of images of one size."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        ...

    def __len__(self) -> int: ...
    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A process's share of the set, in batches of at most `size`, in order."""
        ...


def shares(count: int, size: int, rank: int, world_size: int) -> Iterator[range]:
    """The indices of the batches of a process: every world_size-th batch of `size`."""
    for start in range(rank * size, count, world_size * size):
        yield range(start, min(start + size, count))


@dataclass
class NpzImages:
    """The images in `arr_0` of an .npz, (N, H, W, 3) uint8, of which a batch at a time is in memory.

    Raises:
        DataError: the file cannot be read, or holds no such array.
    """

    path: Path

    def __post_init__(self) -> None:
        with open_array(self.path, ARRAY) as array:
            shape, fortran_order, dtype = read_header(array, self.path)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise DataError(f"{self.path}: {ARRAY} is {dtype} of shape {shape}; uint8 of (N, H, W, 3) is needed")
        if 0 in shape:
            raise DataError(f"{self.path} holds no images: {ARRAY} is of shape {shape}")
        if fortran_order:
            raise DataError(f"{self.path}: {ARRAY} is in Fortran order; save numpy.ascontiguousarray of it")
        self.shape = shape

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.shape[2], self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A process's share of the set, in batches of at most `size`, in order."""
        n, *shape = self.shape
        image_bytes = int(np.prod(shape))
        with open_array(self.path, ARRAY) as array:
            read_header(array, self.path)
            position = 0
            for indices in shares(n, size, rank, world_size):
                skip(array, (indices.start - position) * image_bytes, self.path)
                content = read(array, len(indices) * image_bytes, self.path)
                position = indices.stop
                pixels = np.frombuffer(content, np.uint8).reshape(len(indices), *shape)
                yield indices, torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)


class FolderImages:
    """The pictures of a folder and below, sorted by path, as RGB.

    Args:
        image_size: crop them to squares of this side, as training does. None takes them as they are, all of one size.

    Raises:
        DataError: there are none, or not all can be listed; when read: one cannot be read, or has another size than
            the first.
    """

    def __init__(self, root: Path, image_size: int | None = None) -> None:
        self.paths = image_files(root)
        if not self.paths:
            raise DataError(f"folder {root} holds no images")
        self.image_size = image_size

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the first picture, and so of all."""
        _, height, width = self.read(self.paths[0]).shape
        return width, height

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A process's share of the set, in batches of at most `size`, in order.

        Raises:
            DataError: a picture cannot be read, or has another size than the first.
        """
        first = self.read(self.paths[0]).shape
        for indices in shares(len(self), size, rank, world_size):
            images = []
            for path in self.paths[indices.start : indices.stop]:
                images.append(self.read(path))
                if images[-1].shape != first:
                    wanted, found = (f"{s[2]} x {s[1]}" for s in (first, images[-1].shape))
                    raise DataError(
                        f"image {path} is {found}, {self.paths[0]} is {wanted}: give --image-size to crop all to one"
                    )
            yield indices, torch.stack(images)

    def read(self, path: str) -> Tensor:
        """A picture: (3, H, W) uint8."""
        if self.image_size:
            tensor = load_image(path, "RGB", self.image_size)
            return ((tensor + 1) * 127.5).round().to(torch.uint8)
        return torch.from_numpy(np.array(read_image(path, "RGB"))).permute(2, 0, 1)


class DigitImages:
    """The embedded digits, grey as three channels."""

    def __init__(self, image_size: int | None = None) -> None:
        self.images = torch.from_numpy(to_uint8(Digits(image_size or 8, 3).images).copy()).permute(0, 3, 1, 2)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.images.shape[3], self.images.shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A process's share of the set, in batches of at most `size`, in order."""
        for indices in shares(len(self), size, rank, world_size):
            yield indices, self.images[indices.start : indices.stop]


def open_images(source: str, image_size: int | None = None) -> ImageSet:
    """The images of a file, a folder, or 'digits'.

    Raises:
        DataError: it does not exist, or holds no images.
    """
    path = Path(source)
    if source == DIGITS and not path.exists():
        return DigitImages(image_size)
    if path.is_dir():
        return FolderImages(path, image_size)
    return NpzImages(path)


# ---- .npz files ----------------------------------------------------------------------------------------------------


def array_names(path: Path) -> set[str]:
    """The names of the arrays in an .npz.

    Raises:
        DataError: it is no .npz.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; an .npz, a folder of images or '{DIGITS}' is needed")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE as error:
        what = describe_file(path)
        raise DataError(f"{path} is no .npz file{f' but {what}' if what else f': {error}'}") from None
    if not all(name.endswith(".npy") for name in names):
        raise DataError(f"{path} is no .npz file but {describe_file(path)}")
    return {name.removesuffix(".npy") for name in names}


def open_array(path: Path, name: str) -> IO[bytes]:
    """One array of an .npz as a stream of bytes.

    Raises:
        DataError: it has no such array.
    """
    names = array_names(path)
    if name not in names:
        shown = sorted(names)[:8] + ["..."] * (len(names) > 8)
        raise DataError(f"{path} has no {name}; it holds {', '.join(shown) or 'nothing'}")
    try:
        return zipfile.ZipFile(path).open(f"{name}.npy")
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read_header(array: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of an array, whether it is in Fortran order, and its dtype, read from the beginning of its file.

    Raises:
        DataError: they are not there.
    """
    try:
        version = np.lib.format.read_magic(array)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return reader(array)
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {error}") from None


def read(array: IO[bytes], count: int, path: Path) -> bytes:
    """The next `count` bytes of an array in a file.

    Raises:
        DataError: there are fewer, or they cannot be decompressed.
    """
    try:
        content = array.read(count)
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if len(content) < count:
        raise DataError(f"{path} is damaged: {ARRAY} ends too early")
    return content


def skip(array: IO[bytes], count: int, path: Path) -> None:
    """Read past the next `count` bytes of an array."""
    for start in range(0, count, SKIPPED):
        read(array, min(SKIPPED, count - start), path)
