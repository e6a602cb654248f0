"""Latents that another program cached, read where they lie. Each format has a module of its own beside this one."""

import argparse
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.autoencoder import PUBLISHED, SD_VAE, Autoencoder, LatentSpace
from data.order import Key
from data.scaling import PLAIN, Known, Scaling
from runtime.errors import DataError, UsageError, first_line

UNKNOWN = 16  # the assumed factor, pixels per latent position, of an autoencoder that is not given


class ForeignLatents(Dataset[tuple[Tensor, int]]):
    """Latents in files of another program, with labels; a class of each format reads them.

    An item is a tensor (2, C, h, w), mean and standard deviation, or (1, C, h, w), a latent, float32, and its label.

    Attributes:
        stored: the scaling of the files' latents.
        statistics: their mean and deviation for each channel, where the files have them.
        flip: whether there are mirror images.
    """

    what: str  # the format, in words
    parts = 1
    flip = False
    stored: Scaling = PLAIN
    statistics: tuple[list[float], list[float]] | None = None

    def __init__(self, folder: Path, latent_shape: tuple[int, ...]) -> None:
        """Prepare for latents of a shape, without labels, which `load` reads.

        Args:
            latent_shape: (C, h, w).

        Raises:
            DataError: it is no shape of square latents.
        """
        self.folder, self.latent_shape = folder, latent_shape
        self.notes: list[str] = []
        if len(latent_shape) != 3 or latent_shape[1] != latent_shape[2] or 0 in latent_shape:
            raise DataError(f"{folder} holds latents of {by(latent_shape)}; channels x side x side is needed")

    def load(self) -> None:
        """Read the labels.

        Raises:
            DataError: there are none, or one is no number from 0 on.
        """
        labels, names = self.labelled()
        if not len(labels):
            raise DataError(f"{self.folder} holds no latents")
        if labels.min() < 0:
            raise DataError(f"{self.folder}: a label is {labels.min()}; numbers from 0 are needed")
        self.label_array = labels.astype(np.int64)
        self.class_names = [str(k) for k in range(int(labels.max()) + 1)]
        listing = hashlib.sha256(self.label_array.tobytes())
        for name in names:
            listing.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        self.digest = listing.hexdigest()

    def labelled(self) -> tuple[np.ndarray, Iterable[str]]:
        """The label of each latent, and for each a name that identifies it.

        Raises:
            DataError: labels cannot be read, or do not match the latents.
        """
        raise NotImplementedError

    def read(self, index: int, mirror: bool) -> Tensor:
        """A latent, or mean and deviation: (1 or 2, C, h, w).

        Raises:
            DataError: it cannot be read.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.label_array)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, mirror = key
        return self.read(index, mirror).float(), int(self.label_array[index])

    @property
    def labels(self) -> list[int]:
        """The labels, one for each latent."""
        return self.label_array.tolist()

    def described(self) -> str:
        """A line for the log."""
        kept = "mean and deviation" if self.parts == 2 else "one draw each"
        mirrored = "with" if self.flip else "without"
        return (
            f"{self.what} in {self.folder}: {len(self):,} of {by(self.latent_shape)}, {kept}, {mirrored} mirror images"
        )

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """See that this process's share of the files can be whole, without reading them.

        Raises:
            DataError: names the first that cannot.
        """

    def supply(self, args: argparse.Namespace, typed: set[str]) -> dict[str, Any]:
        """The arguments that the latents know better than the defaults do, by name, unless they were typed.

        Latents of four channels are taken for SD-VAE's; of others no autoencoder is known.
        """
        channels, side, _ = self.latent_shape
        vae = args.vae if "vae" in typed else args.vae if channels == SD_VAE.channels else "none"
        known: dict[str, Any] = {"vae": vae}
        known["image_size"] = side * SD_VAE.factor if vae in PUBLISHED else None  # see `image_size`
        if not self.flip:
            known["flip"] = False
        if self.statistics is not None:
            known["latent_stats"] = "data"  # as the program that brings them trains
        return {name: value for name, value in known.items() if name not in typed and getattr(args, name) != value}

    def image_size(self, args: argparse.Namespace, autoencoder: Autoencoder | None) -> int:
        """The side of a run's images in pixels: --image-size, or where none is given, the size that the latents imply.

        Raises:
            UsageError: the latents do not fit it, or the autoencoder.
        """
        channels, side, _ = self.latent_shape
        layout: tuple[int, int | None]
        if isinstance(autoencoder, LatentSpace):
            layout = autoencoder.channels, autoencoder.factor
        else:
            layout = (SD_VAE.channels, SD_VAE.factor) if args.vae in PUBLISHED else (channels, None)
        if channels != layout[0]:
            raise UsageError(
                f"--vae {args.vae} has {layout[0]} channels, the latents in {self.folder} {channels}: give their "
                "autoencoder, or --vae none --sample-every 0"
            )
        size: int = side * (layout[1] or UNKNOWN) if args.image_size is None else args.image_size
        if size != side * (layout[1] or max(size // side, 1)):
            fitting = f"{side * layout[1]}" if layout[1] else f"a multiple of {side}"
            raise UsageError(f"--image-size {size}, but {self.folder} holds latents of {side} x {side}: give {fitting}")
        return size

    def known(self, vae: str, autoencoder: Autoencoder | None) -> Known:
        """The scaling of the latents, and those that a run may choose."""
        if isinstance(autoencoder, LatentSpace):
            of_config = Scaling(autoencoder.scale, autoencoder.shift)
            return Known(of_config, autoencoder.is_scaled, self.stored, self.statistics)
        if vae in PUBLISHED:
            return Known(Scaling(SD_VAE.scale, SD_VAE.shift), True, self.stored, self.statistics)
        return Known(None, False, self.stored, self.statistics)


def by(shape: tuple[int, ...]) -> str:
    """A shape in words: 4 x 32 x 32."""
    return " x ".join(map(str, shape))


def load_array(content: bytes | Path, name: str) -> np.ndarray:
    """An .npy as an array of numbers.

    Raises:
        DataError: it is none.
    """
    try:
        array = np.load(content if isinstance(content, Path) else io.BytesIO(content), allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ValueError(f"it holds {getattr(array, 'dtype', 'no array')}, no numbers")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{name} is no array of latents or labels: {first_line(error)}") from None
    return array


def as_latent(array: np.ndarray, parts: int, latent_shape: tuple[int, ...], name: str) -> Tensor:
    """An array (parts C, h, w) or (1, parts C, h, w) as a tensor (parts, C, h, w).

    Raises:
        DataError: it has another shape.
    """
    if array.size != parts * int(np.prod(latent_shape)) or array.shape[-2:] != latent_shape[-2:]:
        raise DataError(
            f"{name} is {by(array.shape)}, the first one {by((parts * latent_shape[0], *latent_shape[1:]))}"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).view(parts, *latent_shape)
