"""Stanford's .ply, text or binary: points and polygons."""

import itertools
import re
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shapes.mesh_files.pieces import MAX_FACES, MAX_POINTS, MeshPiece, encoding_of, strip

PLY_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
PLY_TYPES = {  # in the letters of struct and NumPy
    **{"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"},
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"},
    **{"float32": "f", "float64": "d"},
}
FACE_LISTS = ("vertex_indices", "vertex_index")


class Numbers:
    """The numbers of a binary .ply after its header, read one after another."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body, self.order, self.at = body, order, 0

    def advance(self, size: int) -> int:
        """The present position; moves on by `size` bytes.

        Raises:
            ValueError: the file ends before.
        """
        start, self.at = self.at, self.at + size
        if self.at > len(self.body):
            raise ValueError("it ends too early")
        return start

    def row(self, kinds: str) -> Sequence[float]:
        """The next numbers, one of each kind."""
        return struct.unpack_from(self.order + kinds, self.body, self.advance(struct.calcsize(self.order + kinds)))

    def table(self, kinds: str, rows: int) -> np.ndarray:
        """The next rows, with a number of each kind in each: (rows, kinds)."""
        if not kinds:
            return np.zeros((rows, 0))
        dtype = np.dtype([(str(k), self.order + kind) for k, kind in enumerate(kinds)])
        values = np.frombuffer(self.body, dtype, rows, self.advance(rows * dtype.itemsize))
        return np.stack([values[name].astype(np.float64) for name in dtype.names or ()], axis=1)


Columns = dict[str, Any]  # the numbers of an element, by property: (rows,), for lists (rows, n) or a sequence of each
Position = int | slice  # the place of a property among the numbers of a row; of a list without its length


def read_ply(path: str) -> list[MeshPiece]:
    """The one piece of a .ply: points, polygons, strips of triangles.

    Not by trimesh, which cannot read polygons of different numbers of corners where the file is binary, nor by plyfile,
    whose licence is the GPL.

    Raises:
        ValueError: the file is at fault.
    """
    order, elements, body = ply_header(Path(path).read_bytes())
    numbers, lines = Numbers(body, order), [] if order else [line for line in body.split(b"\n") if line.strip()]
    points, triangles = np.zeros((0, 3)), [np.zeros((0, 3), np.int64)]
    for element, count, properties in elements:
        if count > (MAX_FACES if element == "face" else MAX_POINTS):
            raise ValueError(f"it has {count:,} of {element!r}; {MAX_FACES:,} faces and {MAX_POINTS:,} points are read")
        if order:
            columns = ply_columns(numbers, count, properties) or ply_rows(numbers, count, properties)
        elif properties:
            if count > len(lines):
                raise ValueError(f"it ends too early: {len(lines):,} lines are left for {count:,} of {element!r}")
            columns, lines = ply_lines(lines[:count], element, properties), lines[count:]
        else:
            columns = {}
        if element == "vertex":
            if missing := [axis for axis in "xyz" if axis not in columns]:
                raise ValueError(f"its points lack {', '.join(missing)}")
            points = np.stack([np.asarray(columns[axis], np.float64) for axis in "xyz"], axis=-1).reshape(-1, 3)
        elif element in ("face", "tristrips"):
            if not (lists := [columns[name] for name in FACE_LISTS if name in columns]):
                raise ValueError(f"its {element} lack vertex_indices")
            triangles += [fans(lists[0])] if element == "face" else [strip(np.asarray(each)) for each in lists[0]]
    if rest := (body[numbers.at :].strip(b"\0 \t\r\n") if order else b"".join(lines)):
        raise ValueError(f"it goes on after all that its header names: {quoted(rest)}")
    return [MeshPiece(points, np.concatenate(triangles))]


def places(row: Sequence[float], properties: dict[str, str]) -> dict[str, Position]:
    """The places of the properties in a row of a text file.

    Raises:
        ValueError: it has more numbers, or fewer.
    """
    found: dict[str, Position] = {}
    at = 0
    for name, kind in properties.items():
        if len(kind) == 2:
            size = row[at] if at < len(row) else 0
            if not size >= 0 or size != size // 1:
                raise ValueError(f"has a list of {size:g}")
            found[name] = slice(at + 1, at + 1 + int(size))
            at += 1 + int(size)
        else:
            found[name] = at
            at += 1
    if at != len(row):
        raise ValueError(f"has {len(row):,} numbers, where its header asks for {at:,}")
    return found


def ply_lines(lines: list[bytes], element: str, properties: dict[str, str]) -> Columns:
    """The numbers of an element of a text file, whose rows are lines: at once where all lists have the same lengths.

    Raises:
        ValueError: a line is none of numbers, or has too many or too few.
    """
    if not lines:
        return {name: np.zeros((0, 0) if len(kind) == 2 else 0) for name, kind in properties.items()}
    try:
        table = np.loadtxt(lines, ndmin=2, comments=None)
        alike = places(table[0].tolist(), properties)
        lengths = [place.start - 1 for place in alike.values() if isinstance(place, slice)]
        if (table[:, lengths] == table[0, lengths]).all():
            return {name: table[:, place] for name, place in alike.items()}
    except ValueError:
        pass  # the lines are of different lengths, or one is at fault: which, is seen below
    found: Columns = {name: [] for name in properties}
    for k, line in enumerate(lines):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            raise ValueError(f"{element} {k:,} (counted from 0) is no line of numbers: {quoted(line)}") from None
        try:
            found_here = places(row, properties)
        except ValueError as error:
            raise ValueError(f"{element} {k:,} (counted from 0) {error}: {quoted(line)}") from None
        for name, place in found_here.items():
            found[name].append(row[place])
    return found


def ply_columns(numbers: Numbers, count: int, properties: dict[str, str]) -> Columns | None:
    """The numbers of a binary element, read at once where all lists of a name are as long as the first; else None.

    Raises:
        ValueError: the file ends too early.
    """
    start, kinds, lengths, found = numbers.at, "", {}, {}
    for name, kind in properties.items():
        size = 1
        if len(kind) == 2:
            size = int(numbers.row(kind[0])[0]) if count else 0
            lengths[len(kinds)] = size
            kinds += kind[0]
        if not 0 <= size <= len(numbers.body):
            raise ValueError("it ends too early")
        numbers.row(kind[-1] * size if count else "")
        found[name] = slice(len(kinds), len(kinds) + size) if len(kind) == 2 else len(kinds)
        kinds += kind[-1] * size
    numbers.at = start
    if (len(numbers.body) - start) // max(struct.calcsize(numbers.order + kinds), 1) >= count:
        table = numbers.table(kinds, count)
        if all((table[:, at] == size).all() for at, size in lengths.items()):
            return {name: table[:, columns] for name, columns in found.items()}
    numbers.at = start
    return None


def ply_rows(numbers: Numbers, count: int, properties: dict[str, str]) -> Columns:
    """The numbers of a binary element, read one by one.

    Raises:
        ValueError: the file ends too early, or a list has a negative length.
    """
    found: Columns = {name: [] for name in properties}
    for _ in range(count):
        for name, kind in properties.items():
            if (size := int(numbers.row(kind[0])[0]) if len(kind) == 2 else 1) < 0:
                raise ValueError(f"it has a list of {size}")
            values = numbers.row(kind[-1] * min(size, len(numbers.body) + 1))
            found[name].append(values if len(kind) == 2 else values[0])
    return found


def fans(polygons: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """The triangles of polygons: (F, 3)."""
    if isinstance(polygons, np.ndarray):
        corners = polygons.astype(np.int64)
        triangles = [corners[:, [0, k, k + 1]] for k in range(1, corners.shape[1] - 1)]
        return np.stack(triangles, axis=1).reshape(-1, 3) if triangles else np.zeros((0, 3), np.int64)
    flat = array("q")
    for polygon in polygons:
        for b, c in itertools.pairwise(polygon[1:]):
            flat.extend((int(polygon[0]), int(b), int(c)))
    return np.array(flat, np.int64).reshape(-1, 3)


def quoted(line: bytes) -> str:
    """The beginning of a line, quoted for a message."""
    return repr(line.strip()[:60].decode("ascii", "backslashreplace"))


def ply_header(content: bytes) -> tuple[str, list[tuple[str, int, dict[str, str]]], bytes]:
    """The byte order, "" for text; the elements, each with name, number and properties; and the bytes after the header.

    A property is of one kind, a list of two: first that of its length.

    Raises:
        ValueError: the header is not understood, or does not end.
    """
    if (encoding := encoding_of(content[:4])) == "utf-8-sig":
        content = content[3:]
    elif encoding != "ascii":
        content = content.decode(encoding, "backslashreplace").encode("ascii", "backslashreplace")
    end = b"\r" if re.match(rb"ply[ \t]*\r(?!\n)", content) else b"\n"
    lines = re.compile(rb"[^" + end + rb"]*" + end + rb"?").finditer(content)
    if next(lines).group().strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order: str | None = None
    elements: list[tuple[str, int, dict[str, str]]] = []
    for found in lines:
        match (line := found.group()).decode("latin-1").split():
            case ["format", name, *_] if name in PLY_FORMATS:
                order = PLY_FORMATS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), {}))
            case ["property", "list", length, kind, name] if elements and {length, kind} <= {*PLY_TYPES}:
                elements[-1][2][name] = PLY_TYPES[length] + PLY_TYPES[kind]
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1][2][name] = PLY_TYPES[kind]
            case ["end_header"] if order is not None:
                if order and encoding not in ("ascii", "utf-8-sig"):
                    raise ValueError(f"it is a binary file that was saved as {encoding.upper()} text, which ruined it")
                body = content[found.end() :]
                return order, elements, body if order else body.replace(b"\r", b"\n")
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"its header has the line {quoted(line)}")
    raise ValueError("its header does not end")
