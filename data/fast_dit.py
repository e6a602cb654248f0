"""Latents as fast-DiT extracts them: two folders beside each other,

NAME_features/0.npy ...    (1, 4, h, w), a draw from SD-VAE's posterior, scaled by its 0.18215
NAME_labels/0.npy ...      (1,), its class
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from data.autoencoder import SD_VAE
from data.foreign_latents import ForeignLatents, as_latent, load_array
from data.listing import Paths, files_below
from data.scaling import Scaling
from data.vae_sd import check_sizes
from runtime import distributed, progress
from runtime.errors import DataError

FEATURES, LABELS = "_features", "_labels"


def find(path: Path) -> Path | None:
    """The folder of the features: the path itself, or the only one in it; None where there is none."""
    if not path.is_dir():
        return None
    candidates = [path] if path.resolve().name.endswith(FEATURES) else sorted(path.glob(f"*{FEATURES}"))
    found = [c for c in candidates if labels_beside(c).is_dir()]
    return found[0] if len(found) == 1 else None


def labels_beside(features: Path) -> Path:
    """The folder of labels that belongs to a folder of features."""
    return features.resolve().with_name(features.resolve().name.removesuffix(FEATURES) + LABELS)


class FastDiT(ForeignLatents):
    """Latents in an .npy each, and their labels."""

    what = "Features and labels that fast-DiT cached"
    stored = Scaling(SD_VAE.scale, SD_VAE.shift)

    def __init__(self, features: Path) -> None:
        """
        Raises:
            DataError: the first is no such latent.
        """
        self.paths = arrays_in(features)
        if not len(self.paths):
            raise DataError(f"{features} holds no .npy")
        shape = load_array(Path(self.paths[0]), self.paths[0]).shape
        if len(shape) != 4 or shape[0] != 1:
            raise DataError(f"{self.paths[0]} is {shape}; one latent, (1, C, h, w), is needed")
        super().__init__(features, shape[1:])

    def labelled(self) -> tuple[np.ndarray, Iterable[str]]:
        """The labels, and the names of their files.

        Raises:
            DataError: features and labels have not the same names, or a label cannot be read.
        """
        features, labels = self.folder, arrays_in(labels_beside(self.folder))
        names, others = ([paths.name(k) for k in range(len(paths))] for paths in (self.paths, labels))
        if names != others:
            lone = sorted({*names} ^ {*others})
            raise DataError(f"{lone[0].decode('utf-8', 'replace')} is in {features} or {labels.root} alone")
        return distributed.from_main(lambda: labels_in(labels)), (name.decode("utf-8", "replace") for name in names)

    def read(self, index: int, mirror: bool) -> Tensor:
        """A latent (1, C, h, w); there are no mirror images."""
        name = self.paths[index]
        return as_latent(load_array(Path(name), name), self.parts, self.latent_shape, name)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """See that this process's share of the files are as long as the first."""
        check_sizes(self.paths, rank, world_size, str(self.folder))


def arrays_in(folder: Path) -> Paths:
    """The paths of all .npy files in a folder and below."""
    paths = Paths(folder)
    paths.extend(files_below(folder, lambda entry: entry.name.endswith(".npy")))
    return paths


def labels_in(paths: Paths) -> np.ndarray:
    """The number in each file: (N,).

    Raises:
        DataError: one holds no single whole number.
    """

    def label(path: str) -> int:
        array = load_array(Path(path), path)
        if array.size != 1 or int(array.flat[0]) != array.flat[0]:
            raise DataError(f"{path} is {array.shape} {array.dtype}; one whole number, a label, is needed")
        return int(array.flat[0])

    with ThreadPoolExecutor(8) as pool:
        found = progress.bar(pool.map(label, paths), total=len(paths), desc=f"labels in {paths.root}")
        return np.array(list(found), dtype=np.int64)
