"""Latents as LightningDiT extracts them: a folder of

    latents_rank00_shard000.safetensors ...    latents (N, C, h, w), latents_flip alike, labels (N,); not scaled
    latents_stats.pt                           mean and std of each channel, (1, C, 1, 1)

Its shards are told by the tensors in them; there may be none of mirror images, and no statistics.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.foreign_latents import ForeignLatents, by
from runtime.errors import DataError, first_line

STATISTICS = "latents_stats.pt"
LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"


def find(path: Path) -> list[Path] | None:
    """The shards of such a folder; None where the path is none."""
    shards = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not shards:
        return None
    if (path / STATISTICS).is_file() or shards[0].name.startswith("latents_rank"):
        return shards
    try:
        return shards if {LATENTS, LABELS} <= {*opened(shards[0]).keys()} else None
    except DataError:
        return None


def opened(path: Path) -> Any:
    """A shard, open for reading.

    Raises:
        DataError: it is no .safetensors file, or not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


class LightningDiT(ForeignLatents):
    """Latents in shards, which are mapped."""

    what = "Latents that LightningDiT cached"

    def __init__(self, shards: list[Path]) -> None:
        """
        Raises:
            DataError: a shard or the statistics are not what they should be; it is named.
        """
        self.shards = shards
        self.maps: dict[int, Any] = {}  # made where they are used, in the data workers
        labels: list[np.ndarray] = []
        shape, flips = None, []
        for path in shards:
            shard = opened(path)
            names = {*shard.keys()}
            if absent := {LATENTS, LABELS} - names:
                raise DataError(f"{path} has no {min(absent)}; it has {', '.join(sorted(names))[:80] or 'nothing'}")
            found = tuple(shard.get_slice(LATENTS).get_shape())
            shape = shape or found[1:]
            numbers = shard.get_tensor(LABELS)
            if found[1:] != shape or numbers.shape != found[:1] or numbers.is_floating_point():
                raise DataError(
                    f"{path} holds latents of {by(found)} with labels of {by(tuple(numbers.shape))} {numbers.dtype}; "
                    f"those of {shards[0].name} are {by(shape)} each, and one whole number is the label of each"
                )
            flips.append(MIRRORED in names)
            if MIRRORED in names and tuple(shard.get_slice(MIRRORED).get_shape()) != found:
                raise DataError(f"{path}: its {MIRRORED} are not of the shape of its {LATENTS}")
            labels.append(numbers.numpy())
        assert shape is not None
        self.flip = all(flips)
        self.starts = np.cumsum([0, *map(len, labels)])
        self.labels_of_shards = labels
        super().__init__(shards[0].parent, shape)
        self.statistics = read_statistics(self.folder / STATISTICS, shape[0])

    def labelled(self) -> tuple[np.ndarray, Iterable[str]]:
        """The labels, and a line for each shard with its name and its number of latents."""
        counts = (f"{path.name} {len(part)}" for path, part in zip(self.shards, self.labels_of_shards, strict=True))
        return np.concatenate(self.labels_of_shards), counts

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": {}}

    def read(self, index: int, mirror: bool) -> Tensor:
        """A latent, or its mirror image: (1, C, h, w)."""
        k = int(np.searchsorted(self.starts, index, side="right")) - 1
        if k not in self.maps:
            self.maps[k] = opened(self.shards[k])
        row = index - int(self.starts[k])
        return self.maps[k].get_slice(MIRRORED if mirror else LATENTS)[row : row + 1]


def read_statistics(path: Path, channels: int) -> tuple[list[float], list[float]] | None:
    """The mean and deviation of each channel; None where there is no file of them.

    Raises:
        DataError: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        mean, std = (content[name].double().flatten() for name in ("mean", "std"))
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} holds no mean and std: {first_line(error)}") from None
    except AttributeError:
        raise DataError(f"{path} holds no mean and std that are tensors") from None
    if not mean.numel() == std.numel() == channels:
        raise DataError(
            f"{path}: its mean and std are {mean.numel()} and {std.numel()} numbers for {channels} channels"
        )
    if not (mean.isfinite().all() and std.isfinite().all() and std.min() > 0):
        raise DataError(f"{path}: its mean and std are not all finite, or a std is not positive")
    return mean.tolist(), std.tolist()
