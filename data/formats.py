"""Formats of data that are no folders of pictures, named in error messages.

A folder's format is told by the names in it, that of a single file also by its content.
"""

import re
import zipfile
from pathlib import Path

import numpy as np

from data.archives import Archive
from data.listing import Folder, Tree
from runtime.errors import DataError, first_line
from runtime.files import DAMAGE, describe_file

HELP = "docs/training.md#data-of-other-kinds"
MAX_FOLDERS = 200  # to look at, in search of pictures

# Patterns of paths in small letters, from the given folder's own name on, in the order in which they are tried.
FORMATS = {
    r"(^|/)vae-sd/.*\.npy$|/img-mean-std-\d+\.npy$": "latents that REPA cached (vae-sd)",
    r"/latents_rank\d+_shard\d+\.safetensors$|/latents_stats\.pt$": "latents that LightningDiT cached",
    r"_(features|labels)/\d+\.npy$": "features and labels that fast-DiT cached",
    r"\.parquet$": "a data set in Parquet files, as of Hugging Face",
    r"\.arrow$": "a data set in Arrow files, as of Hugging Face",
    r"\.tar(\.(gz|bz2|xz|zst))?$|\.tgz$": "tar archives, as WebDataset's",
    r"\.(mdb|lmdb)$": "an LMDB data base",
    r"/(data_batch_\d|test_batch|batches\.meta)(\.\w+)?$": "CIFAR-10 in torchvision's pickles",
    r"(^|/)cifar-100-python/(train|test|meta)$": "CIFAR-100 in torchvision's pickles",
    r"/(train|val)_data(_batch_\d+)?(\.npz)?$": "downsampled ImageNet in pickles",
    r"idx\d-ubyte(\.gz)?$": "MNIST's idx files",
    r"tfrecords?[^/]*$|-\d{5}-of-\d{5}$": "TFRecord files",
    r"\.(h5|hdf5)$": "HDF5 files",
    r"\.(rec|beton)$": "records of another program",
    r"\.mat$": "Matlab files",
    r"\.bin$": "binary files, as of STL-10",
    r"\.(mp4|avi|mov|mkv|webm)$": "videos",
    r"\.(npy|npz)$": "NumPy arrays",
    r"\.safetensors$": ".safetensors files",
    r"\.(pt|pth|pkl|pickle|ckpt)$": "PyTorch's files or pickles",
    r"\.(zip|7z|rar|gz|bz2|xz|zst)$": "archives: unpack them",
}


def open_tree(path: str | Path) -> Tree:
    """The folder or .zip of `--data-path`.

    Raises:
        DataError: it does not exist, or is a file of another kind.
    """
    check_tree(path)
    return Folder(Path(path)) if Path(path).is_dir() else Archive(Path(path))


def check_tree(path: str | Path) -> None:
    """See that a path is a folder or a .zip.

    Raises:
        DataError: it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"data folder {path} does not exist (or give 'digits', the embedded set)")
    if not path.is_dir() and not is_zip(path):
        raise DataError(f"data folder {path} is a file{named(path)}; a folder of images is needed, see {HELP}")


def is_zip(path: Path) -> bool:
    """Whether a file is a .zip of files, by its content; an .npz or a checkpoint is not."""
    if not path.is_file():
        return False
    what = describe_file(path)
    with open(path, "rb") as file:
        return file.read(2) == b"PK" and (what is None or what.startswith("a zip archive"))


def named(path: Path) -> str:
    """The format of a file in words, after a comma; "" where it is not known."""
    what = (describe_file(path) if path.is_file() else "no regular file") or format_of([f"/{path.name}"])
    return f", {what}" if what else ""


def format_of(names: list[str]) -> str | None:
    """The first of `FORMATS` that one of the names belongs to; None where none does."""
    text = "\n".join(names).lower()
    return next((what for pattern, what in FORMATS.items() if re.search(pattern, text, re.MULTILINE)), None)


def files_without_pictures(tree: Tree) -> list[str]:
    """The files of a tree without pictures, in its first `MAX_FOLDERS` folders; [] for a tree with pictures."""
    found, pending = [], [""]
    for _ in range(MAX_FOLDERS):
        if not pending:
            break
        folder = pending.pop(0)
        folders, pictures, files = tree.children(folder)
        if pictures:
            return []
        prefix = f"{folder}/" if folder else ""
        found += [prefix + file for file in files]
        pending += [prefix + below for below in folders]
    return found


def check_no_other(tree: Tree) -> None:
    """See that a tree without pictures is not of a known other format.

    Raises:
        DataError: it is; names the format.
    """
    names = files_without_pictures(tree)
    if what := format_of([f"{tree.root.resolve().name}/{name}" for name in names]):
        raise DataError(f"data folder {tree.root} holds {what}, no pictures in folders: see {HELP}")


# ---- .npz files ----------------------------------------------------------------------------------------------------


def array_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape and dtype of each array of an .npz, read from the headers alone.

    Raises:
        DataError: it is damaged.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as array:
                    version = np.lib.format.read_magic(array)
                    reader = np.lib.format.read_array_header_1_0
                    reader = reader if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = reader(array)
                    found[name.removesuffix(".npy")] = shape, dtype
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {first_line(error)}") from None
    return found
