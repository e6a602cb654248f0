"""Training images: a folder with one sub-folder a class, or the embedded digits; and the order they are visited in."""

import hashlib
import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.images import center_crop_arr, load_image, to_tensor
from data.listing import IMAGE_SUFFIXES, Paths, entries, image_files, is_folder, is_picture, summary
from data.order import Key
from runtime import distributed, progress
from runtime.errors import DataError
from runtime.files import describe

DIGITS = "digits"


class Items(Protocol):
    """What is trained on: tensors with labels."""

    class_names: list[str]
    notes: list[str]  # lines about what was left out

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key) -> tuple[Tensor, int]: ...
    @property
    def digest(self) -> str:
        """Of what is trained on, and in which order: the same where the data are the same."""
        ...


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's handwritten digits: 1797 grey images of 8 x 8 in ten classes. Never mirrored."""

    native_channels = 1

    def __init__(self, image_size: int, channels: int) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.class_names = [str(k) for k in digits.target_names]
        self.labels = [int(k) for k in digits.target]
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 .. 16
        images = torch.stack([to_tensor(center_crop_arr(Image.fromarray(g), image_size)) for g in grey])
        self.images = images.expand(-1, channels, -1, -1)  # (1797, channels, image_size, image_size)
        self.notes: list[str] = []
        self.digest = DIGITS

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, _ = key
        return self.images[index], self.labels[index]


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images of a folder, cropped to squares. The sub-folders, sorted by name, are the classes.

    Args:
        root: the folder.
        image_size: side of the crop in pixels.
        channels: 3 for RGB, 1 for grey.
        flat: also accept a folder of images without sub-folders; their label is -1.
        class_names: take the class numbers from this list of names instead of from the sort order.

    Raises:
        DataError: the folder is missing, has no sub-folders, or one without images, of an unknown class, or that cannot
            be listed.
    """

    native_channels = 3

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        channels: int = 3,
        *,
        flat: bool = False,
        class_names: list[str] | None = None,
    ) -> None:
        root = Path(root)
        if root.is_file():
            what = describe(root)
            raise DataError(f"data folder {root} is a file{f', {what}' if what else ''}; a folder of images is needed")
        if not root.is_dir():
            raise DataError(f"data folder {root} does not exist (or give '{DIGITS}', the embedded set)")
        is_class = {entry: is_folder(entry) for entry in entries(root)}
        folders = [entry.name for entry in is_class if is_class[entry]]
        self.image_size = image_size
        self.mode = "L" if channels == 1 else "RGB"
        self.class_names = class_names or folders
        self.paths = Paths(root)
        self.labels: list[int] = []
        self.others: Counter[str] = Counter()  # files that are no pictures, by suffix
        if not folders and flat:
            self._add(str(root), -1)
        elif not folders:
            raise DataError(f"data folder {root} has no sub-folders; it needs one for each class, with images in it")
        for name in progress.bar(folders, desc=f"classes of {root}"):
            if name not in self.class_names:
                known = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
                raise DataError(f"folder {root / name} is no class that the model was trained on ({known})")
            self._add(os.path.join(root, name), self.class_names.index(name))
        self.notes: list[str] = []
        if folders and (loose := sum(is_picture(entry) for entry in is_class if not is_class[entry])):
            self.notes.append(f"{loose:,} pictures directly in {root} are in the folder of no class: left out")
        if self.others:
            self.notes.append(f"files in {root} that are no pictures: left out ({summary(self.others)})")

    def _add(self, folder: str, label: int) -> None:
        others: Counter[str] = Counter()
        paths = image_files(folder, others)
        if not paths:
            found = f"; it holds {summary(others)}" if others else ""
            raise DataError(f"folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){found}")
        self.paths.extend(paths)
        self.labels += [label] * len(paths)
        self.others += others

    @cached_property
    def digest(self) -> str:
        listing = hashlib.sha256()
        for k, label in enumerate(self.labels):
            listing.update(b"%b\0%d\0" % (self.paths.name(k), label))
        return listing.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, mirror = key
        tensor = load_image(self.paths[index], self.mode, self.image_size)
        return tensor.flip(-1) if mirror else tensor, self.labels[index]


ImageDataset = Digits | ImageFolder


def native_channels(data_path: str) -> int:
    """Channels of the data itself, which are the model's in pixel space."""
    return Digits.native_channels if data_path == DIGITS else ImageFolder.native_channels


def load_dataset(
    data_path: str, image_size: int, channels: int, *, flat: bool = False, class_names: list[str] | None = None
) -> ImageDataset:
    """The data of `--data-path`, as (channels, image_size, image_size) tensors in [-1, 1] with labels.

    Args:
        data_path: an image folder, or "digits".
        image_size: side in pixels.
        channels: 1 or 3; grey data are repeated to 3, colours made grey for 1.
        flat, class_names: see `ImageFolder`.
    """
    if data_path == DIGITS:
        return Digits(image_size, channels)
    return ImageFolder(data_path, image_size, channels, flat=flat, class_names=class_names)


def check_same_everywhere(dataset: Items, data_path: str) -> None:
    """Make sure that all processes have been given the same data.

    Raises:
        DataError: one has others than the first; it is named, and what differs.
    """
    first, *others = distributed.gather((dataset.class_names, len(dataset), dataset.digest))
    for rank, other in enumerate(others, 1):
        if other != first:
            raise DataError(
                f"--data-path {data_path} is not the same for all processes: {difference(first, other)} for process "
                f"{rank}; do all nodes see one folder?"
            )


def difference(first: tuple[list[str], int, str], other: tuple[list[str], int, str]) -> str:
    """What the data of two processes differ in: class names, number of images, digest."""
    names, images, _ = first
    other_names, other_images, _ = other
    if len(names) != len(other_names):
        return f"{len(names):,} classes for the first, {len(other_names):,}"
    for k, (name, other_name) in enumerate(zip(names, other_names, strict=True)):
        if name != other_name:
            return f"class {k} is {name} for the first, {other_name}"
    if images != other_images:
        return f"{images:,} images for the first, {other_images:,}"
    return f"{images:,} images of some names for the first, of others"
