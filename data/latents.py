"""Cached latents, which `extract_latents.py` writes and `train.py` reads: a folder of

    manifest.json    the autoencoder, sizes, class names, mean and deviation of each channel, and for each shard its
                     bytes, SHA-256 and labels; written last
    00000.npy ...    float32 (images, 2, 2, C, h, w): image and mirror image, each as mean and standard deviation;
                     (images, 1, 2, C, h, w) without mirror images (extract_latents.py --no-flip), and
                     (images, 2 or 1, 1, C, h, w) of an autoencoder that has no posterior
    extraction.json, records/   the state from which an extraction is continued; written first

The moments are those of the scaled latent's posterior, so that every visit of an image draws anew, as encoding would.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.autoencoder import PUBLISHED, SD_VAE, Autoencoder, LatentSpace
from data.order import Key
from data.scaling import Known, Scaling
from runtime import progress
from runtime.errors import DataError, UsageError, first_line
from runtime.files import sha256

MANIFEST, SETTINGS = "manifest.json", "extraction.json"
ENCODER = ("encoder_sha256", "scale", "shift")
UNSCALED = {"is_scaled": False}  # the entry for an autoencoder whose configuration has no scale
OF_OLDER_VERSIONS = {"flip": True, "posterior": True}  # settings that older manifests do not have
REDO = "delete it and run extract_latents.py again, which makes what is missing"


def is_extraction(folder: str | Path) -> bool:
    """Whether a folder holds latents that `extract_latents.py` cached, finished or not."""
    return (Path(folder) / SETTINGS).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it holds none.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object")
    return content


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the SHA-256 of all else in it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"sha256": digest}


def check_kinds(manifest: dict[str, Any], path: Path) -> None:
    """See that the values of a manifest have the right types.

    Raises:
        DataError: one has not; it is named.
    """
    classes = manifest.get("class_names")
    num_classes = len(classes) if isinstance(classes, list) else 0

    def is_shard(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and isinstance(name := entry.get("file"), str)
            and Path(name).name == name  # in the folder itself
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("sha256"), str)
            and isinstance(labels := entry.get("labels"), list)
            and all(type(k) is int and 0 <= k < num_classes for k in labels)
        )

    def is_factor(value: Any) -> bool:
        values = value if isinstance(value, list) and len(value) == manifest["latent_shape"][0] else [value]
        return all(type(v) in (int, float) for v in values)

    def is_autoencoder(value: Any) -> bool:
        if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
            return False
        return isinstance(value.get("encoder_sha256"), str) and all(is_factor(value.get(k)) for k in ("scale", "shift"))

    def is_statistics(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict)
            and all(isinstance(value.get(name), list) and is_factor(value[name]) for name in ("mean", "std"))
            and all(map(math.isfinite, value["mean"] + value["std"]))
            and min(value["std"]) >= 0
        )

    def is_size(value: Any) -> bool:
        return type(value) is int and value > 0

    kinds: dict[str, Callable[[Any], bool]] = {
        "class_names": lambda v: isinstance(v, list) and bool(v) and all(isinstance(name, str) for name in v),
        "flip": lambda v: isinstance(v, bool),
        "posterior": lambda v: isinstance(v, bool),
        "image_size": is_size,
        "latent_shape": lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_size, v)),
        "autoencoder": is_autoencoder,
        "statistics": is_statistics,
        "shards": lambda v: isinstance(v, list) and bool(v) and all(map(is_shard, v)),
    }
    for name, is_of_its_kind in kinds.items():
        if not is_of_its_kind(manifest.get(name, OF_OLDER_VERSIONS.get(name))):
            raise DataError(f"{path} is damaged: its {name!r} is not what it should be")


def encoder_of(autoencoder: LatentSpace) -> dict[str, Any]:
    """The properties of an autoencoder that latents depend on, by name."""
    values = autoencoder.encoder_digest(), autoencoder.scale, autoencoder.shift
    return dict(zip(ENCODER, values, strict=True))


class CachedLatents(Dataset[tuple[Tensor, int]]):
    """Posterior moments of latents, memory-mapped.

    An item is a tensor (2, C, h, w), mean and standard deviation, or (1, C, h, w), a latent, and its label;
    `data.autoencoder.draw_posterior` makes a latent of it.

    Args:
        folder: the folder that `extract_latents.py` wrote.

    Raises:
        DataError: the extraction is not finished, or a shard is missing or not of its size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not self.folder.is_dir():
            raise DataError(f"folder of latents {folder} does not exist")
        if not path.is_file():
            raise DataError(f"the extraction to {folder} is not finished: run extract_latents.py again, it continues")
        self.manifest = read_json(path)
        if self.manifest != signed(self.manifest):
            raise DataError(f"{path} is damaged, or of an older version: run extract_latents.py again, which mends it")
        check_kinds(self.manifest, path)
        self.class_names: list[str] = self.manifest["class_names"]
        self.notes: list[str] = []
        # Without the statistics, which a second run of extract_latents.py adds to a folder of an older version.
        self.digest: str = signed({k: v for k, v in self.manifest.items() if k != "statistics"})["sha256"]
        self.image_size: int = self.manifest["image_size"]
        self.flip: bool = self.manifest.get("flip", OF_OLDER_VERSIONS["flip"])  # whether there are mirror images
        self.parts = 2 if self.manifest.get("posterior", OF_OLDER_VERSIONS["posterior"]) else 1
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.label_array = np.array([k for shard in self.shards for k in shard["labels"]], dtype=np.int64)
        self.starts = np.cumsum([0] + [len(shard["labels"]) for shard in self.shards])
        self.latent_shape: tuple[int, ...] = tuple(self.manifest["latent_shape"])  # (C, h, w)
        self.made_by = {name: self.manifest["autoencoder"][name] for name in ("name", *ENCODER)}
        sizes = [(self.folder / shard["file"], shard["bytes"]) for shard in self.shards]
        for shard, size in sizes:
            found = shard.stat().st_size if shard.is_file() else 0
            if found != size:
                raise DataError(f"shard {shard} has {found:,} bytes, {MANIFEST} says {size:,}: {REDO}")
        self.maps: dict[int, Tensor] = {}  # shards in memory, mapped where they are used, in the data workers

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": {}}  # a worker would be sent a map's whole content

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare the checksums of this process's share of the shards. Reads all of them.

        Raises:
            DataError: names the first that differs.
        """
        mine = self.shards[rank::world_size]

        def check(shard: dict[str, Any]) -> None:
            path = self.folder / shard["file"]
            if sha256(path) != shard["sha256"]:
                raise DataError(f"shard {path} is damaged, its SHA-256 is not that of {MANIFEST}: {REDO}")

        with ThreadPoolExecutor(4) as pool:
            for _ in progress.bar(pool.map(check, mine), total=len(mine), desc=f"checking {self.folder}"):
                pass

    def check_known(self, image_size: int, vae: str) -> None:
        """Compare the latents with a program's arguments, before an autoencoder is loaded or fetched.

        Raises:
            UsageError: the latents are of another image size, or certainly of another encoder.
        """
        if image_size != self.image_size:
            raise UsageError(f"--image-size {image_size}, but {self.folder} holds latents of {self.image_size} pixels")
        channels, side, _ = self.latent_shape
        layout = self.image_size // side, channels, self.made_by["scale"], self.made_by["shift"]
        if vae == "none" or (vae in PUBLISHED and layout != SD_VAE[:4]):
            raise self.other_autoencoder(vae)

    def check_fits(self, image_size: int, vae: str, autoencoder: Autoencoder | None) -> None:
        """Compare the latents with a run's settings and its autoencoder; without an autoencoder, with its name.

        Raises:
            UsageError: the latents are of another image size or another encoder.
        """
        self.check_known(image_size, vae)
        if autoencoder is None:
            fits = vae == self.made_by["name"] or {vae, self.made_by["name"]} <= PUBLISHED.keys()  # of one encoder
        else:
            fits = isinstance(autoencoder, LatentSpace) and encoder_of(autoencoder).items() <= self.made_by.items()
        if not fits:
            raise self.other_autoencoder(vae)

    @property
    def known(self) -> Known:
        """The scaling of the latents, and those that a run may choose."""
        stored = Scaling(self.made_by["scale"], self.made_by["shift"])
        found = self.manifest.get("statistics")
        is_scaled = self.manifest["autoencoder"].get("is_scaled", True) is True
        return Known(stored, is_scaled, stored, (found["mean"], found["std"]) if found else None)

    def other_autoencoder(self, vae: str) -> UsageError:
        """The error of a --vae that did not make the latents."""
        scale = self.made_by["scale"]
        return UsageError(
            f"--vae {vae} is not the autoencoder of the latents in {self.folder}, which are of "
            f"{self.made_by['name']}, scale {'by channel' if isinstance(scale, list) else format(scale, 'g')}"
        )

    def supply(self, args: argparse.Namespace, typed: set[str]) -> dict[str, Any]:
        """The arguments that the latents know better than the defaults do, by name, unless they were typed."""
        known = {"vae": self.made_by["name"], "image_size": self.image_size}
        if not self.flip:
            known["flip"] = False
        return {name: value for name, value in known.items() if name not in typed and getattr(args, name) != value}

    @property
    def labels(self) -> list[int]:
        """The labels, one for each image."""
        return self.label_array.tolist()

    def __len__(self) -> int:
        return len(self.label_array)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, mirror = key
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        if shard not in self.maps:
            entry = self.shards[shard]
            shape = len(entry["labels"]), 2 if self.flip else 1, self.parts, *self.latent_shape
            self.maps[shard] = map_shard(self.folder / entry["file"], shape)
        moments = self.maps[shard][index - self.starts[shard], int(mirror)]
        return moments.clone(), int(self.label_array[index])


def map_shard(path: Path, expected: tuple[int, ...]) -> Tensor:
    """A shard mapped into memory: (images, 2 or 1, 2 or 1, C, h, w), as expected.

    Unlike numpy's maps it keeps no file open: there may be more shards than a process may have open files.

    Raises:
        DataError: it is no such array of float32, or is not there.
    """
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        if dtype != np.float32:
            raise ValueError(f"it holds {dtype}")
        if shape != expected:
            raise ValueError(f"it is {shape}, not {expected}")
        numbers = torch.from_file(str(path), shared=False, size=path.stat().st_size // 4, dtype=torch.float32)
        return numbers[header // 4 :].view(shape)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"shard {path} is no shard of latents: {first_line(error)}") from None


def shard_ranges(num_images: int, shard_size: int) -> list[range]:
    """The indices of the images in each shard."""
    return [range(k, min(k + shard_size, num_images)) for k in range(0, num_images, shard_size)]


def shard_batches(shards: Sequence[range], batch_size: int) -> list[list[int]]:
    """Batches of images that no shard's end divides.

    A latent's bytes so do not depend on which process made it, or when.
    """
    return [list(images[k : k + batch_size]) for images in shards for k in range(0, len(images), batch_size)]
