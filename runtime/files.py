"""Files that are there whole or not at all, their checksums, and words for a file that is not as expected."""

import errno
import hashlib
import os
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WINDOWS = sys.platform == "win32"

# Errors that reading a damaged archive may raise.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError, RuntimeError)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; flushed to disk and renamed at the end, removed if anything goes wrong.

    Raises:
        OSError: the file cannot be written; it is named.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)  # the name, too, is on the disk now
    except OSError as error:
        if error.filename is None:  # a full disk does not say which file it was
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make the disk hold a file or a folder as it is now."""
    if WINDOWS and path.is_dir():
        return  # it opens no folder, and a name is on the disk when it is given
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # it flushes what may be written to
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def link(path: Path, name: Path) -> None:
    """Give a file a second name, which may replace a file; a copy where the file system has no hard links."""
    with replacing(name) as beside:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)


def sha256(*paths: Path) -> str:
    """SHA-256 of the bytes of files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8; some libraries open no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- files in words ------------------------------------------------------------------------------------------------

PYTORCH, SAFETENSORS, NPZ = "a PyTorch checkpoint", "a .safetensors file", "a NumPy .npz file"
MAGIC = (
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF"),
)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a .safetensors file does, with the length of its header in JSON."""
    with open(path, "rb") as file:
        length, brace = file.read(8), file.read(1)
    return brace == b"{" and int.from_bytes(length, "little") < path.stat().st_size


def describe_file(path: Path) -> str | None:
    """A file's kind by its content, in words that say what to do with it; None where it is not known."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch that with git lfs pull"
    if text.startswith(b"<?xml"):
        return "XML, a server's answer for instance, not a file that was downloaded: look at it in an editor"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, not a file that was downloaded: look at it in a browser"
    if head.startswith(b"PK"):
        return describe_zip(path)
    for magic, what in MAGIC:
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        return "a tar archive: unpack it"
    if is_safetensors(path):
        return SAFETENSORS
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return f"text that begins with {head[:40].decode().splitlines()[0]!r}"
    return None


def other_than_weights(path: Path) -> str | None:
    """`describe_file` of a file that cannot be read as weights; None where it may be weights, and damaged."""
    what = describe_file(path)
    return None if what in (PYTORCH, SAFETENSORS) else what


def describe_zip(path: Path) -> str | None:
    """The kind of a zip archive by the names in it, see `describe_file`; None where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # truncated, and of what is not known
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return "a TorchScript archive, which holds code"
    if "data.pkl" in inner:
        return PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive of {shown or 'nothing'}: unpack it"
