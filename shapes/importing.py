"""Folders of meshes to structured shapes: the files of each class, the parts of a mesh, and their boxes."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from data.listing import MESH_SUFFIXES, entries, files_below, is_folder, is_mesh, summary
from runtime.errors import DataError
from runtime.files import describe_file
from shapes.boxes import oriented_box
from shapes.mesh_files import MeshPiece, UnreadableMesh, read_mesh
from shapes.sets import Shape

SAME = 1e-6  # share of the longest side below which points count as one
NEIGHBOURS = 8  # nearest points that are looked for at each point
LEAST = 1e-18  # the least extent of a part; a smaller one is a point
SPLITS = ("train", "val", "test")


class TooManyParts(Exception):
    """The error of a mesh with more parts than are wanted."""


# ---- a folder ------------------------------------------------------------------------------------------------------


@dataclass
class Meshes:
    """The mesh files of a folder, with their classes."""

    paths: list[str]
    labels: list[int]
    class_names: list[str]
    others: Counter[str]  # files that are no meshes, by suffix
    notes: list[str]  # lines about other things that were left out


def find_meshes(folder: Path) -> Meshes:
    """The meshes of a folder: of its sub-folders, a class each; or of the folder itself, one class of its name.

    Raises:
        DataError: the folder is missing, or something in it cannot be listed; there are no meshes.
    """
    if folder.is_file():
        what = describe_file(folder)
        raise DataError(f"{folder} is a file{f', {what}' if what else ''}; a folder of meshes is needed")
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    others: Counter[str] = Counter()
    classes: dict[str, list[str]] = {}
    loose = []
    for entry in entries(folder):
        if is_folder(entry):
            classes[entry.name] = files_below(entry.path, is_mesh, others)
        elif is_mesh(entry):
            loose.append(entry.path)
        else:
            others[os.path.splitext(entry.name)[1].lower() or "without a suffix"] += 1
    empty = [name for name, paths in classes.items() if not paths]
    classes = {name: paths for name, paths in classes.items() if paths}
    notes = []
    if classes and loose:
        notes.append(f"{len(loose):,} meshes directly in {folder} are in the folder of no class: left out")
    if classes and empty:
        notes.append(f"folders without meshes are no classes: {some([printable(name) for name in empty])}")
    if not classes and loose:
        classes = {folder.resolve().name or "shapes": loose}
    if not classes:
        found = f"; it holds {summary(others)}" if others else ""
        raise DataError(f"folder {folder} holds no meshes ({', '.join(sorted(MESH_SUFFIXES))}){found}")
    labels = [label for label, paths in enumerate(classes.values()) for _ in paths]
    paths = list(itertools.chain.from_iterable(classes.values()))
    return Meshes(paths, labels, [printable(name) for name in classes], others, notes)


def printable(name: str) -> str:
    r"""A name as text; what is not UTF-8 in it becomes \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(names: Sequence[str]) -> str:
    """The first names of a list, which may be long, in words."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def draw_split(labels: Sequence[int], shares: Sequence[float], seed: int) -> list[str]:
    """The split of each shape, train, val or test, by shares of all shapes, and nearly of each class."""
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    ends = np.round(np.cumsum(shares) * len(labels)).astype(int)
    names = np.repeat(SPLITS, np.diff(ends, prepend=0))
    split = np.empty(len(labels), dtype=object)
    split[np.argsort(place, kind="stable")] = names
    return split.tolist()


# ---- a mesh --------------------------------------------------------------------------------------------------------


def shape_of(path: str, *, z_up: bool = False, keep_scale: bool = False, max_parts: int | None = None) -> Shape:
    """The boxes of a mesh's parts.

    Args:
        path: path of the file.
        z_up: its third coordinate points up, not its second; its front is -y then, which becomes z.
        keep_scale: leave it as it is; else it is centred over the origin, stands on y = 0, and its longest side is 1.
        max_parts: the largest number of parts; None is any.

    Raises:
        UnreadableMesh: the file is at fault.
        TooManyParts: the mesh is made of more than max_parts.
    """
    parts = [points for points in parts_of(read_mesh(path)) if np.ptp(points, axis=0).max() > LEAST]
    if not parts:
        raise UnreadableMesh(f"mesh {path} has no extent: all of its points are one")
    if max_parts is not None and len(parts) > max_parts:
        raise TooManyParts(len(parts))
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]] if z_up else np.eye(3), float)
    boxes = [oriented_box(points @ turn.T) for points in parts]
    center, size, axes = (np.stack(values) for values in zip(*boxes, strict=True))
    if not keep_scale:
        reach = (np.abs(axes) * size[:, :, None]).sum(1) / 2  # of a box, along the world's axes
        low, high = (center - reach).min(0), (center + reach).max(0)
        scale = 1 / (high - low).max()
        center = (center - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]) * scale
        size = size * scale
    shape = {"box.center": center, "box.size": size, "box.axes": axes[:, :2].reshape(-1, 6)}
    return {name: values.astype(np.float32) for name, values in shape.items()}


def parts_of(pieces: list[MeshPiece]) -> list[np.ndarray]:
    """The points of each part: of each piece of a mesh, or of each connected component of its only piece."""
    if len(pieces) == 1:
        return components(*pieces[0])
    return [points[np.unique(faces)] for points, faces in pieces]


def components(points: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """The points of each connected component of a mesh, in the order of their first faces.

    Faces that share a point are connected. A closed component is complete: it is left alone even where it touches
    another, as the cuboids of a chair do. Open components, a side of a box with points of its own for instance, are
    connected to each other where they have points in the same places.
    """
    used, faces = np.unique(faces, return_inverse=True)
    points, faces = points[used], faces.reshape(-1, 3)
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    labels = connected(edges, len(points))
    is_open = np.isin(labels, open_components(faces, labels))
    if is_open.any():
        apart = SAME * np.ptp(points, axis=0).max()
        labels = connected(np.concatenate([edges, touching(points, np.flatnonzero(is_open), apart)]), len(points))
    by_label = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[by_label], return_index=True)
    _, first = np.unique(labels[faces[:, 0]], return_index=True)
    groups = np.split(points[by_label], starts[1:])
    assert len(first) == len(found)  # each has a face
    return [groups[k] for k in np.argsort(first)]


def touching(points: np.ndarray, chosen: np.ndarray, apart: float) -> np.ndarray:
    """Pairs (n, 2) of chosen points that are in one place, or nearer to each other than `apart`.

    Each point is paired with its NEIGHBOURS nearest ones, which connects all. All pairs could be billions, where a
    stray point far away makes `apart` large.
    """
    places, first, place = np.unique(points[chosen], axis=0, return_index=True, return_inverse=True)
    distances, others = cKDTree(places).query(places, k=NEIGHBOURS + 1, distance_upper_bound=apart)
    one, rank = np.nonzero(np.isfinite(distances))
    same = np.stack([np.arange(len(chosen)), first[place.ravel()]], axis=1)
    return chosen[np.concatenate([same, np.stack([first[one], first[others[one, rank]]], axis=1)])]


def connected(edges: np.ndarray, count: int) -> np.ndarray:
    """A number for each of `count` points, equal for points that edges (E, 2) connect."""
    graph = coo_array((np.ones(len(edges), np.int8), edges.T), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def open_components(faces: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels of components that have a border: an edge of one face, or of three. Equal faces count once."""
    single = np.unique(np.sort(faces, axis=1), axis=0)
    edges = single[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2)
    edges = edges[edges[:, 0] != edges[:, 1]]
    edges, times = np.unique(edges, axis=0, return_counts=True)
    return np.unique(labels[edges[times % 2 == 1, 0]])
