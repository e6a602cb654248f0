"""Wavefront .obj: points, faces, objects and groups."""

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from shapes.mesh_files.pieces import MAX_FACES, MAX_POINTS, MeshPiece, encoding_of

# Statements that neither move points nor make faces: of textures, normals, looks, points, lines and curves.
SKIPPED = {
    *("vt", "vn", "vp", "p", "l", "s", "mg", "usemtl", "mtllib", "usemap", "maplib", "bevel", "c_interp", "d_interp"),
    *("lod", "shadow_obj", "trace_obj", "ctech", "cstype", "deg", "bmat", "step", "curv", "curv2", "parm", "sp", "end"),
}


def read_obj(path: str) -> list[MeshPiece]:
    """The objects and groups of an .obj, with their points and faces.

    Not by trimesh: it counts points backwards (f -3 -2 -1) from the end of the file, not from the face, and it doubles
    the points along seams of a texture, so that parts which touch cannot be told from one part.

    Raises:
        ValueError: a line is not understood, or there are too many points or triangles.
    """
    coordinates = array("d")
    triangles: defaultdict[tuple[int, str], array[int]] = defaultdict(lambda: array("q"))  # of an object and group
    objects, group = 0, ""
    here, points, count = triangles[objects, group], 0, 0
    farthest, its_line = -1, ""  # of the points that faces have; one may come later in the file than its face
    with open(path, "rb") as file:
        encoding = encoding_of(head := file.read(1024))
    if encoding == "ascii" and b"\0" in head:
        raise ValueError("it is no text")
    with open(path, encoding=encoding, errors="backslashreplace") as file:
        for number, words in statements(file):
            match words[0]:
                case "v":
                    try:
                        x, y, z = map(float, words[1:4])
                    except ValueError:
                        raise ValueError(f"line {number:,} is no point: {quoted(words)}") from None
                    coordinates.extend((x, y, z))
                    points += 1
                    if points > MAX_POINTS:
                        raise ValueError(f"it has more than {MAX_POINTS:,} points")
                case "f" | "fo":
                    try:
                        corners = [corner_of(word, points) for word in words[1:]]
                    except ValueError:
                        raise ValueError(f"line {number:,} is no face: {quoted(words)}") from None
                    if corners and (most := max(corners)) > farthest:
                        farthest, its_line = most, f"line {number:,} is no face: {quoted(words)}"
                    for b, c in itertools.pairwise(corners[1:]):
                        here.extend((corners[0], b, c))
                        count += 1
                    if count > MAX_FACES:
                        raise ValueError(f"it has more than {MAX_FACES:,} triangles")
                case "o":  # each begins an object, whatever it is called
                    objects += 1
                    here = triangles[objects, group]
                case "g":
                    group = " ".join(words[1:])
                    here = triangles[objects, group]
                case word if word not in SKIPPED:
                    raise ValueError(f"line {number:,} begins with {word[:40]!r}, which is not read")
    if farthest >= points:
        raise ValueError(f"{its_line} has point {farthest + 1:,} of {points:,}")
    shared = np.array(coordinates).reshape(-1, 3)
    return [MeshPiece(shared, np.array(faces, np.int64).reshape(-1, 3)) for faces in triangles.values()]


def statements(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    r"""The words of each statement without comments, and the number of its last line; a line that ends in \ goes on."""
    before, number = "", 0
    for number, line in enumerate(lines, 1):
        code, before = before + line.partition("#")[0].rstrip(), ""
        if code.endswith("\\"):
            before = code[:-1] + " "
        elif words := code.split():
            yield number, words
    if words := before.split():
        yield number, words


def quoted(words: list[str]) -> str:
    """The first words of a line, quoted for a message."""
    return repr(" ".join(words)[:60])


def corner_of(word: str, points: int) -> int:
    """The point of a corner, 7, 7/1, 7//3 or -1, counted from 0; a negative one counts backwards from `points`.

    Raises:
        ValueError: there is no such point.
    """
    number = int(word.partition("/")[0])
    if number == 0 or number < -points:
        raise ValueError
    return number - 1 if number > 0 else points + number
