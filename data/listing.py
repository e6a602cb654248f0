"""Lists of a folder's data: its pictures, without files of systems and editors; and many paths in one array."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from runtime.errors import DataError

# Files with these suffixes are listed as pictures without being opened: there may be a million. Reading goes by
# content.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif"),
    *(".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
}
# Files with these suffixes are left out without being opened: there may be as many captions as images.
OTHER_SUFFIXES = {
    *(".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".rst", ".html", ".htm", ".yaml", ".yml", ".toml"),
    *(".caption", ".log", ".ini", ".url", ".py", ".ipynb", ".sh", ".mat", ".npy", ".npz", ".pt", ".pth", ".pkl"),
    *(".safetensors", ".parquet", ".h5", ".hdf5", ".db", ".lmdb", ".mdb", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"),
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".wav", ".mp3", ".pdf", ".svg"),
    *(".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".orig", ".swp"),
}
MESH_SUFFIXES = {".obj", ".gltf", ".glb", ".ply"}
# Files with other suffixes are pictures if they begin with these bytes.
PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s", re.DOTALL
)
# Files and folders that macOS, Windows, Synology, QNAP, NetApp and file systems leave, in small letters. Names that
# begin with a dot are left out, too.
LEFT_BEHIND = {
    *("__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot", "lost+found", "__pycache__"),
}


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without those that a system or an editor has left behind.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            kept = [e for e in found if not is_left_behind(e.name)]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be listed: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def suffix_of(entry: os.DirEntry[str]) -> str:
    """The suffix of an entry's name, with its dot, in small letters."""
    return os.path.splitext(entry.name)[1].lower()


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        DataError: it is a link that cannot be followed, and may be a folder of images or of meshes.
    """
    try:
        if entry.is_dir():
            return True
        if entry.is_symlink():
            entry.stat()
    except OSError as error:
        # Reading a picture or a mesh says what is wrong with it, and no folder of them is called readme.txt.
        if suffix_of(entry) not in IMAGE_SUFFIXES | OTHER_SUFFIXES | MESH_SUFFIXES:
            raise DataError(f"{entry.path} cannot be followed: {error.strerror}") from error
    return False


def named_as_picture(name: str) -> bool | None:
    """Whether a file is a picture by its suffix; None where the suffix does not tell."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return False if suffix in OTHER_SUFFIXES or suffix.endswith(("~", "#")) else None  # editors' copies: a.png~


def is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a picture: by its suffix, or where that does not tell, by its first bytes.

    Raises:
        DataError: it cannot be read.
    """
    if (named := named_as_picture(entry.name)) is not None:
        return named
    if not entry.is_file():
        return False
    try:
        with open(entry.path, "rb") as file:
            return PICTURE.match(file.read(16)) is not None
    except OSError as error:
        raise DataError(f"file {entry.path} cannot be read: {error.strerror}") from error


def is_mesh(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a mesh, by its suffix."""
    return suffix_of(entry) in MESH_SUFFIXES


def image_files(folder: str | Path, others: Counter[str] | None = None) -> list[str]:
    """Paths of the pictures in a folder and below, see `files_below`."""
    return files_below(folder, is_picture, others)


def files_below(
    folder: str | Path, wanted: Callable[[os.DirEntry[str]], bool], others: Counter[str] | None = None
) -> list[str]:
    """The paths of the wanted files in a folder and below, sorted; symbolic links are followed, loops are not.

    Args:
        others: counts the other files, by their suffix.

    Raises:
        DataError: something below cannot be listed or followed; it is named.
    """
    found: list[str] = []
    seen, pending = set(), [os.fspath(folder)]
    while pending:
        directory = pending.pop()
        real = os.path.realpath(directory)
        if real in seen:
            continue
        seen.add(real)
        below = []
        for entry in entries(directory):
            if is_folder(entry):
                below.append(entry.path)
            elif wanted(entry):
                found.append(entry.path)
            elif others is not None:
                others[suffix_of(entry) or "without a suffix"] += 1
        pending += reversed(below)
    return sorted(found)


def summary(others: Counter[str]) -> str:
    """The files that are left out, in a few words: '12 .json, 3 .txt'."""
    most = others.most_common(5)
    rest = sum(others.values()) - sum(count for _, count in most)
    return ", ".join([*(f"{count:,} {suffix}" for suffix, count in most), *([f"{rest:,} others"] if rest else [])])


class Children(NamedTuple):
    """The names of all that lies directly in a folder, each sorted."""

    folders: list[str]
    pictures: list[str]
    files: list[str]  # all others


class Tree(Protocol):
    """A folder with all below it, on disk or in an archive. Names are relative to it, with / between; "" is itself."""

    root: Path

    def children(self, name: str = "") -> Children:
        """The names of all that lies directly in a folder."""
        ...

    def pictures(self, name: str, others: Counter[str]) -> list[str]:
        """Paths of the pictures in a folder and below, sorted; they begin with the root.

        Args:
            others: counts the other files, by their suffix.
        """
        ...

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: it cannot be read.
        """
        ...


class Folder:
    """A tree on disk.

    Raises:
        DataError: in all methods, where something cannot be listed, followed or read; it is named.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def children(self, name: str = "") -> Children:
        """The names of all that lies directly in a folder."""
        found = Children([], [], [])
        for entry in entries(self.root / name):
            kind = 0 if is_folder(entry) else 1 if is_picture(entry) else 2
            found[kind].append(entry.name)
        return found

    def pictures(self, name: str, others: Counter[str]) -> list[str]:
        """Paths of the pictures in a folder and below, sorted; `others` counts the other files by their suffix."""
        return image_files(self.root / name, others)

    def content(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"file {self.root / name} cannot be read: {error.strerror}") from error


class Paths:
    """Paths below a folder, in one array, which forked data workers share.

    The strings of a list would be copied into each worker, one by one as they are used: using a Python object writes to
    its reference count.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = os.fspath(root)
        self.names = bytearray()  # relative to the root, one after another
        self.ends = array("q", [0])

    def extend(self, paths: Iterable[str]) -> None:
        """Append paths that begin with the root."""
        prefix = os.path.join(self.root, "")
        for path in paths:
            self.names += os.fsencode(path.removeprefix(prefix))
            self.ends.append(len(self.names))

    def name(self, index: int) -> bytes:
        """A path relative to the root."""
        return bytes(self.names[self.ends[index] : self.ends[index + 1]])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.name(range(len(self))[index])))

    def __iter__(self) -> Iterator[str]:
        return (self[k] for k in range(len(self)))
