"""The files that sample_ddp.py leaves: one per sample, and all samples packed. Each kind of data has its own."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from runtime.errors import UsageError

BLOCK = 4096  # bytes that a file takes on disk, at least


@dataclass(frozen=True)
class Files:
    """The way in which samples of a kind are written, checked and packed."""

    suffix: str
    size: int  # bytes of a sample in memory; its file may be smaller
    packed: int  # bytes that a packed sample takes at least
    fetch: Callable[[Tensor], Callable[[], np.ndarray]]  # a batch -> a function that waits for the copy from the GPU
    write: Callable[[np.ndarray, Path], None]  # writes one sample
    fault: Callable[[Path], str | None]  # says why a file is not as it was written
    pack: Callable[[Sequence[Path], Sequence[int], Path], None]  # packs files and their labels into one file

    def path(self, folder: Path, i: int) -> Path:
        """The file of sample i: 000000 and on."""
        return folder / f"{i:06d}{self.suffix}"

    def there(self, folder: Path, total: int) -> list[int]:
        """The numbers below `total` of samples that are in a folder, which need not exist."""
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
        stems = [name.removesuffix(self.suffix) for name in names]
        numbers = {int(stem) for stem in stems if stem.isascii() and stem.isdecimal()}
        return sorted(i for i in numbers if i < total and self.path(folder, i).name in names)

    def room(self, folder: Path, total: int) -> tuple[int, int, int]:
        """Bytes on disk that `total` samples take, at least and at most, and bytes that are free.

        Those of the missing samples' files, and of all samples packed. The folder need not exist.
        """
        missing = total - len(self.there(folder, total))
        blocks = math.ceil(self.size / BLOCK) + 1
        free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.is_dir())).free
        return missing * BLOCK + total * self.packed, missing * blocks * BLOCK + total * self.size, free


def check_room(files: Files, folder: Path, total: int, what: str) -> str:
    """A sentence that says how much of a disk samples take.

    Raises:
        UsageError: it is more than is free, however small their files are.
    """
    least, most, free = files.room(folder, total)
    if least > free:
        raise UsageError(
            f"--num-fid-samples {total} takes {least / 1e9:,.1f} GB on disk, at least, and {free / 1e9:,.1f} GB are "
            f"free for {folder.parent}"
        )
    left = f", of which {free / 1e9:,.1f} GB are left" if most > free else ""
    return f"{total:,} {what} take up to {max(most / 1e9, 0.1):,.1f} GB on disk{left}"
