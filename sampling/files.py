"""The files that sample_ddp.py leaves: one a sample, and all of them packed. Images and shapes have their own."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.pictures import fault_of, save_image, save_npz, to_uint8_later
from runtime.errors import DataError, UsageError
from runtime.files import replacing
from sampling.network import Network
from shapes.sets import Layout, fault_of_numbers, from_shapes, save_shapes

BLOCK = 4096  # bytes that a file takes on disk, at least


@dataclass(frozen=True)
class Files:
    """How samples are written, looked at and packed."""

    suffix: str
    size: int  # of a sample in memory, in bytes; its file may be smaller
    packed: int  # of a packed sample, at least
    fetch: Callable[[Tensor], Callable[[], np.ndarray]]  # a batch on its way from the GPU -> its samples
    write: Callable[[np.ndarray, Path], None]  # one sample
    fault: Callable[[Path], str | None]  # why a file is not as it was written
    pack: Callable[[Sequence[Path], Sequence[int], Path], None]  # files and labels

    def path(self, folder: Path, i: int) -> Path:
        return folder / f"{i:06d}{self.suffix}"

    def there(self, folder: Path, total: int) -> list[int]:
        """The numbers below `total` of samples in a folder, which need not exist."""
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
        stems = [name.removesuffix(self.suffix) for name in names]
        numbers = {int(stem) for stem in stems if stem.isascii() and stem.isdecimal()}
        return sorted(i for i in numbers if i < total and self.path(folder, i).name in names)

    def room(self, folder: Path, total: int) -> tuple[int, int, int]:
        """Bytes on the disk of a folder, which need not exist, that samples without a file, and the packed ones of all,
        take at least and at most, and those that are free."""
        missing = total - len(self.there(folder, total))
        blocks = math.ceil(self.size / BLOCK) + 1
        free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.is_dir())).free
        return missing * BLOCK + total * self.packed, missing * blocks * BLOCK + total * self.size, free


def check_room(files: Files, folder: Path, total: int, what: str) -> str:
    """How much of a disk samples take, in words.

    Raises:
        UsageError: more than is free, however small their files are.
    """
    least, most, free = files.room(folder, total)
    if least > free:
        raise UsageError(
            f"--num-fid-samples {total} takes {least / 1e9:,.1f} GB on disk, at least, and {free / 1e9:,.1f} GB are "
            f"free for {folder.parent}"
        )
    left = f", of which {free / 1e9:,.1f} GB are left" if most > free else ""
    return f"{total:,} {what} take up to {max(most / 1e9, 0.1):,.1f} GB on disk{left}"


def files_of(network: Network) -> Files:
    """Those of a network's samples."""
    if network.layout is not None:
        names, layout = network.class_names or [str(k) for k in range(network.num_labels)], network.layout
        pack = partial(pack_shapes, layout=layout, class_names=names)
        size = 4 * math.prod(layout.shape)
        return Files(".npy", size, 0, later, write_numbers, partial(fault_of_numbers, layout=layout), pack)
    size = network.image_size
    return Files(
        ".png",
        3 * size**2,
        3 * size**2,
        to_uint8_later,
        lambda picture, path: save_image(Image.fromarray(picture), path),
        partial(fault_of, size=size),
        lambda paths, labels, npz: save_npz(paths, labels, npz, size),
    )


def later(x: Tensor) -> Callable[[], np.ndarray]:
    """
    Raises:
        FloatingPointError: a sample is not finite.
    """

    def wait() -> np.ndarray:
        numbers = x.float().cpu().numpy()
        if bad := int((~np.isfinite(numbers).reshape(len(numbers), -1).all(1)).sum()):
            raise FloatingPointError(
                f"{bad} of {len(numbers)} shapes are not finite: the model's weights are not, or the sampler diverges "
                "with these settings"
            )
        return numbers

    return wait


def write_numbers(numbers: np.ndarray, path: Path) -> None:
    with replacing(path) as beside, open(beside, "wb") as file:
        np.save(file, numbers)


def pack_shapes(
    paths: Sequence[Path], labels: Sequence[int], npz: Path, *, layout: Layout, class_names: Sequence[str]
) -> None:
    """A set of shapes, as shapes/sets.py has them.

    Raises:
        DataError: a file is damaged.
    """
    shapes = []
    for path in paths:
        if fault := fault_of_numbers(path, layout):
            raise DataError(f"{path} {fault}")
        shapes.append(layout.decode(torch.from_numpy(np.load(path))))
    known = [*class_names, *["no class"] * (max(labels) >= len(class_names))]
    save_shapes(from_shapes(shapes, [min(k, len(class_names)) for k in labels], known), npz)
