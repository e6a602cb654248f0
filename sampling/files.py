"""The files that sample_ddp.py leaves: one a sample, and all of them packed. Each kind of data has its own."""

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
