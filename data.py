"""Training images: a folder with one sub-folder a class, or the embedded digits; and the order they are visited in."""

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

import distributed
import progress
from distributed import seed_for
from errors import DataError
from files import describe
from images import MAX_PIXELS, UnreadableImage, read_image
from listing import IMAGE_SUFFIXES, Paths, entries, image_files, is_folder, is_picture, summary

DIGITS = "digits"

Key = tuple[int, bool]  # (index of the image, whether to mirror it)


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


def center_crop_arr(pil_image: Image.Image, image_size: int) -> Image.Image:
    """ADM's crop: halve with a box filter while twice too large, resize the short side with bicubic, cut the centre."""
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
    """(C, H, W) in [-1, 1]; C is 1 for a grey image, else 3."""
    array = np.asarray(image if image.mode == "L" else image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1) / 127.5 - 1


def load_image(path: str, mode: str, image_size: int) -> Tensor:
    """A picture, cropped to a square: (1 or 3, image_size, image_size) in [-1, 1] for mode "L" or "RGB".

    Raises:
        UnreadableImage: it cannot be read, or is too long to be cropped.
    """
    image = read_image(path, mode)
    try:
        return to_tensor(center_crop_arr(image, image_size))
    except ValueError as error:
        raise UnreadableImage(f"image {path} cannot be read: {error}") from None


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


class Skipping(Dataset[tuple[Tensor, int, dict[int, str]]]):
    """A data set in which the next readable item takes the place of one that cannot be read.

    An item comes with the reasons of those that could not be read in its place, by index. Which item takes the place
    depends on the files alone, so that a continued run sees the same.

    Raises:
        DataError: none of `LONGEST` items in a row can be read.
    """

    LONGEST = 1000

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Key) -> tuple[Tensor, int, dict[int, str]]:
        start, mirror = key
        reasons: dict[int, str] = {}
        for k in range(min(len(self.items), self.LONGEST)):
            index = (start + k) % len(self.items)
            try:
                return *self.items[index, mirror], reasons
            except UnreadableImage as error:
                reasons[index] = str(error)
        raise DataError(f"{len(reasons)} images in a row cannot be read; the last: {reasons[index]}")


def collate(items: list[tuple[Tensor, int, dict[int, str]]]) -> tuple[Tensor, Tensor, dict[int, str]]:
    """A batch of items and labels, and the reasons of all that were skipped."""
    x, y = default_collate([item[:2] for item in items])
    return x, y, {k: v for *_, reasons in items for k, v in reasons.items()}


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


class BatchOrder(Sampler[list[Key]]):
    """This process's share of every global batch, without end, from any step on.

    The order of an epoch is a function of (seed, epoch) alone, so that a continued run sees what an uninterrupted one
    would, on any number of processes. Images that do not fill a last batch wait for the next epoch's order. Where a run
    is in all this is one number, the images that it is past, those that waited included: epoch * length + how many of
    the epoch's order. It keeps its meaning when the batch size changes.

    Args:
        length: images in the data set.
        global_batch_size: images a step, over all processes.
        rank, world_size: this process among them.
        seed: of the run.
        start_step: first step to yield.
        start: images that the run is past then; by default, as many as so many steps of this batch size take.
        flip: mirror half of the images.

    Raises:
        DataError: there are fewer images than one global batch takes.
    """

    def __init__(
        self,
        length: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start_step: int = 0,
        start: int | None = None,
        flip: bool = True,
    ) -> None:
        if length < global_batch_size:
            raise DataError(f"the data set has {length} images, fewer than one global batch of {global_batch_size}")
        self.length = length
        self.global_batch_size = global_batch_size
        self.local_batch_size = global_batch_size // world_size
        self.rank = rank
        self.seed = seed
        self.flip = flip
        self.steps_per_epoch = length // global_batch_size
        self.start_step = start_step
        self.start = steps_to_images(start_step, length, global_batch_size) if start is None else start
        self.epoch, offset = divmod(self.start, length)
        self.steps_left = (length - offset) // global_batch_size  # of the epoch that is begun

    def images(self, step: int) -> int:
        """Images that the run is past before a step, from the first one on."""
        steps = step - self.start_step
        if steps < self.steps_left:
            return self.start + steps * self.global_batch_size
        later = steps_to_images(steps - self.steps_left, self.length, self.global_batch_size)
        return (self.epoch + 1) * self.length + later

    def last_step(self, epochs: int) -> int:
        """The step at which so many passes over the data are done; before the first one where they have been."""
        return self.start_step + self.steps_left + (epochs - self.epoch - 1) * self.steps_per_epoch

    def __iter__(self) -> Iterator[list[Key]]:
        current = -1
        for step in itertools.count(self.start_step):
            epoch, offset = divmod(self.images(step), self.length)
            if epoch != current:
                current = epoch
                generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", epoch))
                order = torch.randperm(self.length, generator=generator)
                mirror = torch.randint(2, (self.length,), generator=generator).bool() & self.flip
            mine = slice(start := offset + self.rank * self.local_batch_size, start + self.local_batch_size)
            yield list(zip(order[mine].tolist(), mirror[mine].tolist(), strict=True))


def steps_to_images(steps: int, length: int, global_batch_size: int) -> int:
    """Images that so many steps from the beginning of an epoch take a run past, see `BatchOrder`."""
    epochs, rest = divmod(steps, length // global_batch_size)
    return epochs * length + rest * global_batch_size
