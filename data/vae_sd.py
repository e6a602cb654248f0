"""Latents as EDM2's dataset_tool encodes them, and REPA's: a folder, or a .zip, of

    00000/img-mean-std-00000000.npy ...    (2 C, h, w), mean and standard deviation of SD-VAE's posterior, not scaled
    dataset.json                           labels by these names, see `data.dataset_json`

A folder that has them in `vae-sd`, beside the pictures, is taken for them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from data import dataset_json
from data.archives import Archive, Places
from data.foreign_latents import ForeignLatents, as_latent, load_array
from data.formats import is_zip
from data.listing import Folder, Paths, Tree, files_below
from runtime import progress
from runtime.errors import DataError, first_line

FOLDER, FIRST = "vae-sd", "img-mean-std-"


def find(path: Path) -> Tree | None:
    """The tree that holds such latents, told by the name of its first file; None where there is none."""
    trees: list[Tree] = [Folder(p) for p in (path, path / FOLDER) if p.is_dir()]
    if is_zip(path):
        trees.append(Archive(path))
    return next((tree for tree in trees if is_one(tree)), None)


def is_one(tree: Tree) -> bool:
    """Whether a tree holds such latents, by the name of its first file."""
    top = tree.children()
    below = tree.children(top.folders[0]) if top.folders else top
    names = [name for name in below.files + top.files if name != dataset_json.NAME]
    return any(name.startswith(FIRST) and name.endswith(".npy") for name in names[:1])


class VaeSd(ForeignLatents):
    """Moments in an .npy each."""

    what = "Latents that EDM2 or REPA cached"
    parts = 2

    def __init__(self, tree: Tree) -> None:
        """
        Raises:
            DataError: the first file is no such latent.
        """
        self.paths = Paths(tree.root)
        if isinstance(tree, Archive):
            names = sorted(name for name in tree.infos if name.endswith(".npy"))
            self.paths.extend(os.path.join(tree.root, name) for name in names)
            self.places: Places | None = tree.places(self.paths)
        else:
            self.paths.extend(files_below(tree.root, lambda entry: entry.name.endswith(".npy")))
            names, self.places = [os.fsdecode(self.paths.name(k)) for k in range(len(self.paths))], None
        self.tree, self.names = tree, [name.replace(os.sep, "/") for name in names]
        shape = load_array(self.content(0), self.paths[0]).shape
        if len(shape) != 3 or shape[0] % 2:
            raise DataError(f"{self.paths[0]} is {shape}; mean and deviation, (2 C, h, w), are needed")
        super().__init__(tree.root, (shape[0] // 2, *shape[1:]))

    def labelled(self) -> tuple[np.ndarray, Iterable[str]]:
        """The labels of `dataset.json`, and the names of the latents.

        Raises:
            DataError: there is no such file, or it does not label each latent.
        """
        path = self.folder / dataset_json.NAME
        labels = dataset_json.read_labels(self.tree)
        if labels is None:
            raise DataError(f"{self.folder} holds latents without a {path.name}, which has their labels")
        if labels.of is None:
            self.notes.append(f"{path} has no labels (null): all latents are of one class")
        names = self.names
        numbers = np.array(dataset_json.labels_of(names, labels, self.tree), dtype=np.int64)
        del self.tree, self.names  # a million strings, which data workers do not need
        return numbers, names

    def content(self, index: int) -> bytes:
        """The bytes of a latent's file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self.places.read(index) if self.places is not None else Path(self.paths[index]).read_bytes()
        except (ValueError, OSError) as error:
            raise DataError(f"{self.paths[index]} cannot be read: {first_line(error)}") from None

    def read(self, index: int, mirror: bool) -> Tensor:
        """The mean and standard deviation of a latent's posterior: (2, C, h, w). There are no mirror images."""
        name = self.paths[index]
        return as_latent(load_array(self.content(index), name), self.parts, self.latent_shape, name)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """See that this process's share of the files are as long as the first; a .zip has checksums instead."""
        if self.places is None:
            check_sizes(self.paths, rank, world_size, str(self.folder))


def check_sizes(paths: Paths, rank: int, world_size: int, what: str) -> None:
    """See that this process's share of files are as long as the first of all.

    Raises:
        DataError: one is not.
    """
    expected = os.path.getsize(paths[0])
    for k in progress.bar(range(rank, len(paths), world_size), desc=f"checking {what}"):
        if (found := os.path.getsize(paths[k])) != expected:
            raise DataError(f"{paths[k]} has {found:,} bytes, {paths[0]} {expected:,}: one of them is not whole")
