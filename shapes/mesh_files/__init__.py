"""Mesh files as users have them, .obj, .gltf, .glb and .ply: read to the pieces that they are made of, or refused.

Only points and triangles are read: no material, texture or script of a file, and nothing outside of its folder.
"""

import os
import stat
import warnings
from pathlib import Path

import numpy as np

from data.images import TROUBLE
from runtime.errors import DataError, first_line
from runtime.files import describe_file
from shapes.mesh_files.gltf import read_gltf
from shapes.mesh_files.obj import read_obj
from shapes.mesh_files.pieces import MAX_BYTES, MAX_FACES, MeshPiece
from shapes.mesh_files.ply import read_ply

MAX_COORDINATE = 1e18  # squares of larger numbers do not fit into float32
READERS = {".obj": read_obj, ".ply": read_ply, ".gltf": read_gltf, ".glb": read_gltf}


class UnreadableMesh(DataError):
    """The error of a file that is no mesh, or of a kind that is not read."""


def read_mesh(path: str) -> list[MeshPiece]:
    """The objects and groups of a file with their triangles, in its own coordinates and order; at least one.

    Raises:
        UnreadableMesh: the file is at fault.
        DataError: the machine is: the next try may succeed.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {MAX_BYTES:,}")
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return checked(READERS[os.path.splitext(path)[1].lower()](path))
    except Exception as error:  # nothing that a file holds may end the import of others
        if isinstance(error, OSError) and error.errno in TROUBLE:
            raise DataError(f"mesh {path} cannot be read: {error.strerror}") from error
        raise UnreadableMesh(f"mesh {path} cannot be read: {what_is_wrong(path, error)}") from error


def what_is_wrong(path: str, error: Exception) -> str:
    """The fault of a file in a few words; a file of another kind is named by it."""
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    what = describe_file(Path(path)) if os.path.isfile(path) else None
    if what and not what.startswith("text"):
        return f"it is {what}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    said = first_line(error)
    return said if isinstance(error, ValueError) else f"it is not understood ({said})"


def checked(pieces: list[MeshPiece]) -> list[MeshPiece]:
    """The pieces that have triangles.

    Raises:
        ValueError: there are none, or too many triangles, or a point that cannot be.
    """
    found = [piece for piece in pieces if len(piece.faces)]
    if not found:
        alone = sum(len(piece.points) for piece in pieces)
        raise ValueError(f"it has {alone:,} points and no faces" if alone else "it has no faces")
    if (count := sum(len(piece.faces) for piece in found)) > MAX_FACES:
        raise ValueError(f"it has {count:,} triangles, more than {MAX_FACES:,}")
    for points, faces in map(MeshPiece.check, found):
        if not (np.abs(points[faces.ravel()]) < MAX_COORDINATE).all():
            raise ValueError(f"a face has a point that is not finite, or beyond {MAX_COORDINATE:g}")
    return found
