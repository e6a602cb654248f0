"""Wavefront .obj: points, faces, objects and groups."""

import itertools
from array import array
from collections import defaultdict

import numpy as np

from data.mesh_files.pieces import MAX_FACES, MAX_POINTS, Piece


def read_obj(path: str) -> list[Piece]:
    """Read an .obj: points, faces, objects and groups.

    Not by trimesh: it takes points that are counted backwards (f -3 -2 -1) from the end of the file, not from the face,
    and it doubles the points along seams of a texture, so that parts which touch are no longer told from one part.
    """
    coordinates = array("d")
    triangles: defaultdict[tuple[str, str], array[int]] = defaultdict(lambda: array("q"))  # of an object and group
    name = group = before = ""
    here, points, count = triangles[name, group], 0, 0
    with open(path, encoding="latin-1") as file:  # of the names nothing matters but whether they are the same
        for number, line in enumerate(file, 1):
            if before:
                line, before = before + line, ""
            if line.endswith("\\\n"):
                before = line[:-2] + " "
                continue
            words = line.split()
            if not words:
                continue
            match words[0]:
                case "v":
                    try:
                        x, y, z = map(float, words[1:4])
                    except ValueError:
                        raise ValueError(f"line {number:,} is no point: {line.strip()[:60]!r}") from None
                    coordinates.extend((x, y, z))
                    points += 1
                    if points > MAX_POINTS:
                        raise ValueError(f"it has more than {MAX_POINTS:,} points")
                case "f":
                    try:
                        corners = [corner_of(word, points) for word in words[1:]]
                    except ValueError:
                        raise ValueError(f"line {number:,} is no face: {line.strip()[:60]!r}") from None
                    for b, c in itertools.pairwise(corners[1:]):
                        here.extend((corners[0], b, c))
                        count += 1
                    if count > MAX_FACES:
                        raise ValueError(f"it has more than {MAX_FACES:,} triangles")
                case "o" | "g":
                    rest = " ".join(words[1:])
                    name, group = (rest, group) if words[0] == "o" else (name, rest)
                    here = triangles[name, group]
    shared = np.array(coordinates).reshape(-1, 3)
    return [Piece(shared, np.array(faces, np.int64).reshape(-1, 3)) for faces in triangles.values()]


def corner_of(word: str, points: int) -> int:
    """Which point 7, 7/1, 7//3 or -1 is, counted from 0; backwards from so many points."""
    number = int(word.partition("/")[0])
    if number == 0 or number < -points:
        raise ValueError
    return number - 1 if number > 0 else points + number
