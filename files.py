"""Files that are there whole or not at all, and their checksums."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; flushed to disk and renamed at the end, removed if anything goes wrong."""
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
    """Have the disk hold a file or a folder as it is now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def link(path: Path, name: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the file system has no hard links."""
    with replacing(name) as beside:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
