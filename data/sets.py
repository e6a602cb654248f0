"""Training images: a folder or .zip with one sub-folder a class, or with a dataset.json, or the embedded digits."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data import dataset_json, layouts
from data.archives import Archive, Places
from data.formats import HELP, check_no_other, check_tree, open_tree
from data.images import center_crop_arr, is_grey, load_image, to_tensor
from data.listing import IMAGE_SUFFIXES, Paths, Tree, summary
from data.order import Key
from runtime import distributed, progress
from runtime.errors import DataError

DIGITS = "digits"
SHOWN = 10  # classes in a line of the log
LOOKED_AT = 1000  # pictures that are looked at to tell whether a folder is grey; one in colour makes it coloured


class Items(Protocol):
    """Training items: tensors with labels."""

    class_names: list[str]
    notes: list[str]  # lines about what was left out

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key) -> tuple[Tensor, int]: ...
    @property
    def labels(self) -> Sequence[int]:
        """The labels, one for each item."""
        ...

    @property
    def digest(self) -> str:
        """A digest of the items and their order, equal where the data are equal."""
        ...


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's handwritten digits: 1797 grey images of 8 x 8 in ten classes. Never mirrored."""

    def __init__(self, image_size: int, channels: int | None = None) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.class_names = [str(k) for k in digits.target_names]
        self.labels = [int(k) for k in digits.target]
        grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 .. 16
        images = torch.stack([to_tensor(center_crop_arr(Image.fromarray(g), image_size)) for g in grey])
        self.channels = channels or 1
        self.images = images.expand(-1, self.channels, -1, -1)  # (1797, channels, image_size, image_size)
        self.notes: list[str] = []
        self.digest = DIGITS

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, _ = key
        return self.images[index], self.labels[index]


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images of a folder or a .zip, cropped to squares, with labels.

    The sub-folders, sorted by name, are the classes; with a `dataset.json`, its labels are.

    Args:
        root: the folder, or the .zip.
        image_size: side of the crop in pixels.
        channels: 3 for RGB, 1 for grey; None for 1 where all pictures are grey, as far as they are looked at, else 3.
        flat: also accept a folder of images without sub-folders; their label is -1.
        class_names: take the class numbers from this list of names instead of from the sort order.

    Raises:
        DataError: the folder is missing, has no sub-folders, or one without images, of an unknown class, or that cannot
            be listed; its labels are elsewhere, or not one for each image; or it holds data of another format.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        channels: int | None = 3,
        *,
        flat: bool = False,
        class_names: list[str] | None = None,
    ) -> None:
        tree = open_tree(root)
        check_no_other(tree)
        self.image_size = image_size
        self.paths = Paths(root)
        self.labels: list[int] = []
        self.others: Counter[str] = Counter()  # files that are no pictures, by suffix
        self.notes: list[str] = []
        self.labels_file: Path | None = None  # where they are not those of the folders
        labels = dataset_json.read_labels(tree)
        if labels is None:
            self._add_classes(tree, flat, class_names)
        else:
            self._add_labelled(tree, labels, class_names)
        self.places: Places | None = tree.places(self.paths) if isinstance(tree, Archive) else None
        self.channels = channels or (1 if distributed.from_main(self._is_grey) else 3)
        self.mode = "L" if self.channels == 1 else "RGB"
        if self.others:
            self.notes.append(f"files in {root} that are no pictures: left out ({summary(self.others)})")

    def _add_classes(self, tree: Tree, flat: bool, class_names: list[str] | None) -> None:
        """Add all sub-folders, each as a class."""
        root, top = tree.root, tree.children()
        self.class_names = class_names or top.folders
        if not top.folders and flat:
            self._add(tree, "", -1)
        elif not top.folders:
            tables = [f for f in top.files if layouts.is_table(f) or f.endswith(".csv")]
            beside = f", {tables[0]} may hold their labels" if tables and top.pictures else ""
            lie = f": its {len(top.pictures):,} pictures lie in it directly{beside}" if top.pictures else ""
            raise DataError(
                f"data folder {root} has no sub-folders{lie}; it needs one for each class, with images in it: see "
                f"{HELP}"
            )
        self.notes += layouts.check(tree)
        for name in progress.bar(top.folders, desc=f"classes of {root}"):
            self._add(tree, name, self._class_number(name, f"folder {root / name}"))
        if top.folders and top.pictures:
            self.notes.append(
                f"{len(top.pictures):,} pictures directly in {root} are in the folder of no class: left out"
            )

    def _add_labelled(self, tree: Tree, labels: dataset_json.Labels, class_names: list[str] | None) -> None:
        """Add all pictures, with the labels of `dataset.json`."""
        self.class_names = class_names or [str(k) for k in range(labels.classes)]
        self.labels_file = path = tree.root / dataset_json.NAME
        self._add(tree, "", 0)
        self.others -= Counter({".json": 1})  # itself
        names = [os.fsdecode(self.paths.name(k)).replace(os.sep, "/") for k in range(len(self.paths))]
        self.labels = dataset_json.labels_of(names, labels, tree)
        if labels.of is None:
            self.notes.append(f"{path} has no labels (null): all images are of one class")
        elif class_names:
            number = {k: self._class_number(str(k), f"label {k} in {path}") for k in set(self.labels)}
            self.labels = [number[k] for k in self.labels]

    def _is_grey(self) -> bool:
        """Whether all pictures are grey, of `LOOKED_AT` that are spread evenly; what cannot be read says nothing."""
        count = min(len(self), LOOKED_AT)
        looks = (is_grey(self.paths[k], self._reader(k)) for k in (i * len(self) // count for i in range(count)))
        any_grey = False
        for look in looks:
            if look is False:
                return False
            any_grey |= look is True
        return any_grey

    def _reader(self, index: int) -> Callable[[], bytes] | None:
        """Reads a picture of an archive."""
        return partial(self.places.read, index) if self.places is not None else None

    def _class_number(self, name: str, what: str) -> int:
        """
        Raises:
            DataError: there is no class of this name.
        """
        if name not in self.class_names:
            known = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
            raise DataError(f"{what} is no class that the model was trained on ({known})")
        return self.class_names.index(name)

    def _add(self, tree: Tree, folder: str, label: int) -> None:
        others: Counter[str] = Counter()
        paths = tree.pictures(folder, others)
        if not paths:
            found = f"; it holds {summary(others)}" if others else ""
            raise DataError(f"folder {tree.root / folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){found}")
        self.paths.extend(paths)
        self.labels += [label] * len(paths)
        self.others += others

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images' names and labels."""
        listing = hashlib.sha256()
        for k, label in enumerate(self.labels):
            listing.update(b"%b\0%d\0" % (self.paths.name(k), label))
        return listing.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, mirror = key
        tensor = load_image(self.paths[index], self.mode, self.image_size, self._reader(index))
        return tensor.flip(-1) if mirror else tensor, self.labels[index]


ImageDataset = Digits | ImageFolder


def check_path(data_path: str) -> None:
    """See quickly that `--data-path` can be trained on, before anything is fetched or loaded.

    Raises:
        DataError: it does not exist, or is a file of something else.
    """
    if data_path != DIGITS:
        check_tree(data_path)


def class_counts(dataset: Items) -> str:
    """The first classes and the number of items in each, in a line: 'cat 4, dog 4'."""
    counts, names = Counter(dataset.labels), dataset.class_names
    shown = ", ".join(f"{name} {counts[k]:,}" for k, name in enumerate(names[:SHOWN])) + ", ..." * (len(names) > SHOWN)
    file = dataset.labels_file if isinstance(dataset, ImageFolder) else None
    return f"{shown} (labels of {file})" if file else shown


def load_dataset(
    data_path: str, image_size: int, channels: int | None, *, flat: bool = False, class_names: list[str] | None = None
) -> ImageDataset:
    """The data of `--data-path`, as (channels, image_size, image_size) tensors in [-1, 1] with labels.

    Args:
        data_path: an image folder or .zip, or "digits".
        image_size: side in pixels.
        channels: 1 or 3; grey data are repeated to 3, colours made grey for 1. None: the data's own.
        flat, class_names: see `ImageFolder`.
    """
    if data_path == DIGITS:
        return Digits(image_size, channels)
    return ImageFolder(data_path, image_size, channels, flat=flat, class_names=class_names)


def check_same_everywhere(dataset: Items, data_path: str) -> None:
    """See that all processes have been given the same data.

    Raises:
        DataError: a process has others than the first; names it, and the difference.
    """
    first, *others = distributed.gather((dataset.class_names, len(dataset), dataset.digest))
    for rank, other in enumerate(others, 1):
        if other != first:
            raise DataError(
                f"--data-path {data_path} is not the same for all processes: {difference(first, other)} for process "
                f"{rank}; do all nodes see one folder?"
            )


def difference(first: tuple[list[str], int, str], other: tuple[list[str], int, str]) -> str:
    """The first difference between the data of two processes, in words: class names, number of images, or digest."""
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
