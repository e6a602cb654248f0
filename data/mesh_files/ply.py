"""Stanford's .ply, text or binary: points and polygons."""

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from data.mesh_files.pieces import MAX_FACES, MAX_POINTS, Piece

PLY_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
PLY_TYPES = {  # in the letters of struct and NumPy
    **{"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"},
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"},
    **{"float32": "f", "float64": "d"},
}
FACE_LISTS = ("vertex_indices", "vertex_index")


class Numbers:
    """The numbers of a .ply after its header, taken one after another."""

    def __init__(self, body: bytes, order: str) -> None:
        self.order, self.at = order, 0
        self.body: Any = body if order else body.split()

    def advance(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        if self.at > len(self.body):
            raise ValueError("it ends too early")
        return start

    def left(self, kinds: str) -> int:
        """How many rows of a number of each kind are left."""
        size = struct.calcsize(self.order + kinds) if self.order else len(kinds)
        return (len(self.body) - self.at) // max(size, 1)

    def row(self, kinds: str) -> Sequence[float]:
        """A number of each kind."""
        if not self.order:
            start = self.advance(len(kinds))
            return [float(word) for word in self.body[start : self.at]]
        return struct.unpack_from(self.order + kinds, self.body, self.advance(struct.calcsize(self.order + kinds)))

    def table(self, kinds: str, rows: int) -> np.ndarray:
        """Rows of a number of each kind, (rows, kinds)."""
        if not self.order:
            start = self.advance(rows * len(kinds))
            return np.array(self.body[start : self.at], np.float64).reshape(rows, len(kinds))
        if not kinds:
            return np.zeros((rows, 0))
        dtype = np.dtype([(str(k), self.order + kind) for k, kind in enumerate(kinds)])
        values = np.frombuffer(self.body, dtype, rows, self.advance(rows * dtype.itemsize))
        return np.stack([values[name].astype(np.float64) for name in dtype.names or ()], axis=1)


def read_ply(path: str) -> list[Piece]:
    """Read a .ply: points and polygons.

    Not by trimesh: it cannot read polygons of different numbers of corners where the file is binary.
    """
    with open(path, "rb") as file:
        order, elements = ply_header(file)
        numbers = Numbers(file.read(), order)
    points, triangles = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    for element, count, properties in elements:
        if count > (MAX_FACES if element == "face" else MAX_POINTS):
            raise ValueError(f"it has {count:,} of {element!r}; {MAX_FACES:,} faces and {MAX_POINTS:,} points are read")
        columns = ply_columns(numbers, count, properties) or ply_rows(numbers, count, properties)
        if element == "vertex":
            points = np.stack([np.asarray(columns[axis], np.float64) for axis in "xyz"], axis=-1).reshape(-1, 3)
        elif element == "face":
            if not (lists := [columns[name] for name in FACE_LISTS if name in columns]):
                raise ValueError("its faces lack vertex_indices")
            triangles = fans(lists[0])
    return [Piece(points, triangles)]


Columns = dict[str, Any]  # of an element: (rows,), for lists (rows, n) or a sequence of each


def ply_columns(numbers: Numbers, count: int, properties: dict[str, str]) -> Columns | None:
    """The numbers of an element at once, where all lists of a name are as long as the first; else nothing is taken."""
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
    if numbers.left(kinds) >= count:
        table = numbers.table(kinds, count)
        if all((table[:, at] == size).all() for at, size in lengths.items()):
            return {name: table[:, columns] for name, columns in found.items()}
    numbers.at = start
    return None


def ply_rows(numbers: Numbers, count: int, properties: dict[str, str]) -> Columns:
    """The same, one by one."""
    found: Columns = {name: [] for name in properties}
    for _ in range(count):
        for name, kind in properties.items():
            size = int(numbers.row(kind[0])[0]) if len(kind) == 2 else 1
            found[name].append(numbers.row(kind[-1] * min(size, len(numbers.body) + 1)))
    return found


def fans(polygons: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """The triangles of polygons, (F, 3)."""
    if isinstance(polygons, np.ndarray):
        corners = polygons.astype(np.int64)
        triangles = [corners[:, [0, k, k + 1]] for k in range(1, corners.shape[1] - 1)]
        return np.stack(triangles, axis=1).reshape(-1, 3) if triangles else np.zeros((0, 3), np.int64)
    flat = array("q")
    for polygon in polygons:
        for b, c in itertools.pairwise(polygon[1:]):
            flat.extend((int(polygon[0]), int(b), int(c)))
    return np.array(flat, np.int64).reshape(-1, 3)


def ply_header(file: IO[bytes]) -> tuple[str, list[tuple[str, int, dict[str, str]]]]:
    """The order of bytes, "" for text, and the elements: name, number, properties.

    A property is of one kind, a list of two: first that of its length.
    """
    if file.readline(100).strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order: str | None = None
    elements: list[tuple[str, int, dict[str, str]]] = []
    while line := file.readline(10_000):
        match line.decode("latin-1").split():
            case ["format", name, *_] if name in PLY_FORMATS:
                order = PLY_FORMATS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), {}))
            case ["property", "list", length, kind, name] if elements and {length, kind} <= {*PLY_TYPES}:
                elements[-1][2][name] = PLY_TYPES[length] + PLY_TYPES[kind]
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1][2][name] = PLY_TYPES[kind]
            case ["end_header"] if order is not None:
                return order, elements
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"its header has the line {line.decode('latin-1').strip()[:60]!r}")
    raise ValueError("its header does not end")
