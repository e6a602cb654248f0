"""Pictures in a .zip, read where they are: stored or deflated, by any number of processes and threads."""

import os
import posixpath
import stat
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from pathlib import Path

from data.images import check_size
from data.listing import PICTURE, Children, Paths, is_left_behind, named_as_picture
from runtime.errors import DataError, first_line
from runtime.files import DAMAGE

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # the bit of an entry's flags
HEADER = 30  # bytes of an entry before its name


class Places:
    """The places of entries in an archive, in one array, which forked data workers share.

    Reading opens the file anew: a `zipfile.ZipFile` may be shared neither by threads nor by processes that forked, and
    would hold an object for each of a million entries in each of them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        self.numbers = array("q")  # five for each entry: offset, packed bytes, bytes, CRC-32, whether deflated

    def append(self, info: zipfile.ZipInfo) -> None:
        """Add the place of an entry."""
        is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
        self.numbers.extend((info.header_offset, info.compress_size, info.file_size, info.CRC, is_deflated))

    def __len__(self) -> int:
        return len(self.numbers) // 5

    def read(self, index: int) -> bytes:
        """The bytes of an entry.

        Raises:
            ValueError: they are not what the archive says.
            OSError: the file cannot be read.
        """
        start, packed, size, crc, is_deflated = self.numbers[5 * index : 5 * index + 5]
        check_size(max(packed, size))
        with open(self.path, "rb") as file:
            file.seek(start)
            header = file.read(HEADER)
            if len(header) < HEADER or not header.startswith(b"PK\3\4"):
                raise ValueError("the archive is damaged")
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)  # name and extra field
            content = file.read(packed)
        if is_deflated:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise ValueError(f"the archive is damaged: {error}") from None
        if len(content) != size or zlib.crc32(content) != crc:
            raise ValueError("the archive is damaged: its CRC-32 is another")
        return content


class Archive:
    """A tree in a .zip, see `data.listing.Tree`. A single folder that holds all else is left out of the names.

    Raises:
        DataError: it cannot be read, or entries are encrypted or packed by another method than deflate.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            with zipfile.ZipFile(root) as archive:
                found = archive.infolist()
        except DAMAGE as error:
            raise DataError(f"{root} cannot be read as a .zip: {first_line(error)}") from None
        self.infos: dict[str, zipfile.ZipInfo] = {}
        for info in found:
            name = posixpath.normpath("/" + info.filename.replace("\\", "/")).lstrip("/")
            if not info.is_dir() and not any(map(is_left_behind, name.split("/"))):
                self.check(info)
                self.infos[name] = info
        inner = all("/" in name for name in self.infos) and any(name.count("/") > 1 for name in self.infos)
        if inner and len({name.partition("/")[0] for name in self.infos}) == 1:
            self.infos = {name.partition("/")[2]: info for name, info in self.infos.items()}
        self.tree: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}  # folder -> names of its folders and files
        for name in sorted(self.infos):
            folder, _, last = name.rpartition("/")
            missing, above = [], folder
            while above not in self.tree:
                missing.append(above)
                above = above.rpartition("/")[0]
            for new in reversed(missing):
                self.tree[new] = [], []
                self.tree[new.rpartition("/")[0]][0].append(new.rpartition("/")[2])
            self.tree[folder][1].append(last)

    def check(self, info: zipfile.ZipInfo) -> None:
        """See that an entry can be read as it is.

        Raises:
            DataError: it is encrypted, packed by another method than deflate, or a link.
        """
        if info.flag_bits & ENCRYPTED:
            raise DataError(f"{self.root} is encrypted ({info.filename}): unpack it")
        if info.compress_type not in METHODS:
            raise DataError(f"{info.filename} in {self.root} is neither stored nor deflated: unpack it")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{info.filename} in {self.root} is a symbolic link: pack the file itself (zip without -y)")

    def is_picture(self, name: str) -> bool:
        """Whether an entry is a picture: by its suffix, or where that says nothing, by its first bytes."""
        named = named_as_picture(name)
        return PICTURE.match(self.content(name)[:16]) is not None if named is None else named

    def children(self, name: str = "") -> Children:
        """The names of all that lies directly in a folder of the archive."""
        folders, files = self.tree[name]
        is_picture = [self.is_picture(posixpath.join(name, file)) for file in files]
        pictures = [file for file, is_one in zip(files, is_picture, strict=True) if is_one]
        return Children(
            sorted(folders), pictures, [f for f, is_one in zip(files, is_picture, strict=True) if not is_one]
        )

    def pictures(self, name: str, others: Counter[str]) -> list[str]:
        """Paths of the pictures in a folder and below, sorted; `others` counts all other files by their suffix."""
        found, pending = [], [name]
        while pending:
            folder = pending.pop()
            folders, files = self.tree[folder]
            pending += [posixpath.join(folder, below) for below in folders]
            for file in files:
                full = posixpath.join(folder, file)
                if self.is_picture(full):
                    found.append(os.path.join(self.root, full))
                else:
                    others[os.path.splitext(file)[1].lower() or "without a suffix"] += 1
        return sorted(found)

    def content(self, name: str) -> bytes:
        """The bytes of an entry.

        Raises:
            DataError: it cannot be read.
        """
        place = Places(self.root)
        place.append(self.infos[name])
        try:
            return place.read(0)
        except (ValueError, OSError) as error:
            raise DataError(f"{name} in {self.root} cannot be read: {first_line(error)}") from None

    def places(self, paths: Paths) -> Places:
        """The places of the entries that paths name; the paths begin with the root."""
        places = Places(self.root)
        for k in range(len(paths)):
            places.append(self.infos[os.fsdecode(paths.name(k))])
        return places
