"""Structured shapes: sets of parts, each with a box and further attributes, and their numbers as a model's input.

A set of shapes is one .npz, with an array for each attribute, in which the parts of all shapes follow one another:

    counts       (N,)        int     parts of each shape, P in all
    box.center   (P, 3)      float   the centre of a part's box; y is up, z is the front
    box.size     (P, 3)      float   the lengths of its edges, along its own axes
    box.axes     (P, 6)      float   its first two axes, the first rows of a rotation; the third is their cross product
    ...          (P, any)    float   further attributes; code.exponents (P, 2) are a superquadric's, see meshes.py
    labels       (N,)        int     the class of each shape
    class_names  (K,)        str
    split        (N,)        str     train, val, test, or empty                                              (optional)
    ids          (N,)        str     the name of a shape in its source                                       (optional)
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.formats import HELP, array_headers
from data.order import Key
from runtime.errors import DataError, first_line
from runtime.files import DAMAGE, NPZ, describe_file, replacing
from shapes.furniture import CLASSES, pieces

EMBEDDED = "shapes"  # the name of the embedded set
BOX = {"box.center": 3, "box.size": 3, "box.axes": 6}
EXPONENTS = "code.exponents"
EXISTS = "exists"  # the attribute that is a part's first number in a model
OTHERS = ("counts", "labels", "class_names", "split", "ids")
MIN_SIZE = 1e-3  # the least length of an edge that a model made, over the mean edge

Shape = dict[str, np.ndarray]  # attribute -> (parts, width)


@dataclass
class ShapeSet:
    """A set of shapes in memory, with the arrays of its file."""

    attributes: dict[str, np.ndarray]  # name -> (P, width) float32
    counts: np.ndarray  # (N,)
    labels: np.ndarray  # (N,)
    class_names: list[str]
    split: np.ndarray | None = None  # (N,)
    ids: np.ndarray | None = None  # (N,)
    starts: np.ndarray = field(init=False, repr=False)  # (N + 1,)

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, k: int) -> Shape:
        return {name: values[self.starts[k] : self.starts[k + 1]] for name, values in self.attributes.items()}

    def select(self, chosen: Sequence[int] | np.ndarray) -> "ShapeSet":
        """The shapes of these numbers, in this order."""
        chosen = np.asarray(chosen, dtype=int)
        rows = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in chosen] or [np.zeros(0, int)])
        return ShapeSet(
            {name: values[rows] for name, values in self.attributes.items()},
            self.counts[chosen],
            self.labels[chosen],
            self.class_names,
            *(None if values is None else values[chosen] for values in (self.split, self.ids)),
        )

    def of_split(self, name: str) -> "ShapeSet":
        """The shapes of one split; all of them where there is no split."""
        return self if self.split is None else self.select(np.flatnonzero(self.split == name))


def from_shapes(
    shapes: Sequence[Shape], labels: Sequence[int], class_names: Sequence[str], **others: Sequence[str]
) -> ShapeSet:
    """A set made of single shapes, all with the same attributes; others are split and ids."""
    names = list(shapes[0])
    attributes = {name: np.concatenate([shape[name] for shape in shapes]).astype(np.float32) for name in names}
    counts = np.array([len(shape[names[0]]) for shape in shapes], np.int32)
    arrays = {name: np.asarray(values, dtype=str) for name, values in others.items()}
    return ShapeSet(attributes, counts, np.asarray(labels, np.int32), list(class_names), **arrays)


def save_shapes(shapes: ShapeSet, path: Path) -> None:
    """Write a set as an .npz; a half-written file never has its name."""
    arrays = {"counts": shapes.counts, **shapes.attributes, "labels": shapes.labels}
    arrays["class_names"] = np.array(shapes.class_names, dtype=str)
    arrays |= {n: v for n, v in (("split", shapes.split), ("ids", shapes.ids)) if v is not None}
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_shapes(path: str | Path) -> ShapeSet:
    """The set in an .npz.

    Raises:
        DataError: the file is missing, damaged or another; an array is missing, of another length, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"file of shapes {path} does not exist (or give '{EMBEDDED}', the embedded set)")
    if (what := describe_file(path)) != NPZ:
        raise DataError(f"{path} is not an .npz of shapes, but {what or 'damaged'}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}  # what is no array comes as bytes
    except DAMAGE as error:
        raise DataError(f"{path} is damaged: {first_line(error)}") from None
    if missing := [name for name in ("counts", *BOX, "labels", "class_names") if name not in arrays]:
        raise DataError(f"{path} is not an .npz of shapes: it lacks {', '.join(missing)}")
    for name in ("class_names", "split", "ids"):
        if name in arrays and arrays[name].dtype.kind == "S":
            arrays[name] = np.char.decode(arrays[name], "utf-8", "backslashreplace")
    attributes = {name: values for name, values in arrays.items() if name not in OTHERS}
    counts, labels, names = arrays["counts"], arrays["labels"], [str(n) for n in np.atleast_1d(arrays["class_names"])]

    def check(fine: Any, what: str) -> None:
        if not fine:
            raise DataError(f"{path} is damaged: {what}")

    check(counts.ndim == 1 and counts.dtype.kind in "iu" and len(counts), "counts is not a list of whole numbers")
    check((counts > 0).all(), f"shape {int(np.argmin(counts > 0))} has no parts")
    check(EXISTS not in attributes, f"no attribute may be called {EXISTS}")
    for name, values in attributes.items():
        check(values.ndim == 2 and values.dtype.kind == "f", f"{name} is not of shape (parts, width)")
        check(values.shape[1], f"{name} has no numbers")
        check(len(values) == counts.sum(), f"{name} has {len(values):,} parts, counts {counts.sum():,}")
        check(name not in BOX or values.shape[1] == BOX[name], f"{name} has {values.shape[1]} numbers a part")
        with np.errstate(over="ignore"):
            attributes[name] = values.astype(np.float32)
        check(np.isfinite(attributes[name]).all(), f"{name} is not finite")
    check((attributes["box.size"] >= 0).all(), "box.size is negative")
    axes = attributes["box.axes"]
    check(np.abs(orthonormal(axes) - axes).max() < 1e-3, "box.axes are no rows of rotations")
    for name in ("labels", "split", "ids"):
        check(name not in arrays or arrays[name].shape == counts.shape, f"{name} are not one for each shape")
        check(name not in arrays or name == "labels" or arrays[name].dtype.kind == "U", f"{name} are not words")
    check(labels.dtype.kind in "iu", "labels are not whole numbers")
    check((labels >= 0).all() and (labels < len(names)).all(), f"a label is none of its {len(names)} classes")
    counts, labels = counts.astype(np.int64), labels.astype(np.int64)
    return ShapeSet(attributes, counts, labels, names, arrays.get("split"), arrays.get("ids"))


def furniture(seed: int = 0, count: int = 4000) -> ShapeSet:
    """The embedded set, see shapes/furniture; a smaller count gives its beginning."""
    shapes, labels, split = pieces(seed, count)
    return from_shapes(shapes, labels, CLASSES, split=split)


def open_shapes(path: str | Path) -> ShapeSet:
    """The set of `--data-path`: the embedded one for "shapes", else that of an .npz (see `load_shapes`)."""
    return furniture() if str(path) == EMBEDDED else load_shapes(path)


def names_shapes(data_path: str) -> bool:
    """Whether --data-path is of shapes, by its name."""
    return data_path == EMBEDDED or data_path.endswith(".npz")


def holds_shapes(path: str | Path) -> bool:
    """Whether a name is the embedded set's, or that of an .npz with counts of parts."""
    if str(path) == EMBEDDED:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return "counts.npy" in archive.namelist()
    except DAMAGE:
        return False


def check_shapes(path: str | Path) -> None:
    """See quickly that a file holds shapes.

    Raises:
        DataError: it does not; its content is named.
    """
    if holds_shapes(path):
        return
    if not Path(path).is_file() or describe_file(Path(path)) != NPZ:
        load_shapes(path)  # says what is the matter
    arrays = array_headers(Path(path))
    shown = ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in list(arrays.items())[:4])
    are_images = any(dtype == np.uint8 and len(shape) in (3, 4) for shape, dtype in arrays.values())
    if {"mu", "sigma"} <= arrays.keys() and not are_images:
        raise DataError(f"data file {path} holds statistics of images, which evaluate.py takes ({shown}), no shapes")
    what = "images" if are_images else "arrays"
    raise DataError(f"data file {path} holds {what} ({shown}), no shapes: to train on images see {HELP}")


# ---- numbers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The layout of a shape's numbers, (L, F): of each part whether it exists, then its attributes, normalised.

    It is stored with a checkpoint, and undone in sampling.
    """

    names: tuple[str, ...]  # of the attributes, without existence
    widths: tuple[int, ...]  # numbers in each attribute
    mean: tuple[float, ...]  # of each number but existence
    std: tuple[float, ...]
    max_parts: int  # L

    @classmethod
    def of(cls, shapes: ShapeSet) -> "Layout":
        """The layout that gives a set's numbers mean 0, and each attribute as a whole variance 1.

        (Its single numbers may have others: where nearly all boxes are upright, some numbers of an axis hardly vary.)
        """
        arrays = {name: values.astype(np.float64) for name, values in shapes.attributes.items()}
        widths = [values.shape[1] for values in arrays.values()]
        std = np.array([np.sqrt(values.var(0).mean()) for values in arrays.values()])
        rounding = np.array([1e-6 * np.sqrt(np.square(values).mean()) for values in arrays.values()])
        return cls(
            names=tuple(arrays),
            widths=tuple(widths),
            mean=tuple(np.concatenate([values.mean(0) for values in arrays.values()]).tolist()),
            std=tuple(np.repeat(np.where(std > rounding, std, 1.0), widths).tolist()),  # what never changes is 0
            max_parts=int(shapes.counts.max()),
        )

    @classmethod
    def load(cls, content: Mapping[str, Any], source: str) -> "Layout":
        """The layout that `content` has made plain.

        Raises:
            DataError: it is no layout.
        """
        try:
            names, widths = (tuple(content[name]) for name in ("names", "widths"))
            mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
            layout = cls(names, widths, mean, std, content["max_parts"])
            ints = all(type(k) is int and k > 0 for k in (*widths, layout.max_parts))
            numbers = np.array([mean, std])
            fine = ints and len(names) == len(widths) and numbers.shape == (2, sum(widths))
            fine = fine and bool(np.isfinite(numbers).all() and (numbers[1] > 0).all())
            fine = fine and all(dict(zip(names, widths, strict=True)).get(name) == width for name, width in BOX.items())
        except (KeyError, TypeError, ValueError):
            fine = False
        if not fine:
            raise DataError(f"checkpoint {source} is damaged: its 'layout' is not what it should be")
        return layout

    def content(self) -> dict[str, Any]:
        """The layout as plain values, for a checkpoint."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a sample, (L, F)."""
        return self.max_parts, 1 + sum(self.widths)

    @property
    def attributes(self) -> dict[str, int]:
        """All attributes and their widths, existence first: F numbers."""
        return {EXISTS: 1, **dict(zip(self.names, self.widths, strict=True))}

    @property
    def widths_of_all(self) -> tuple[int, ...]:
        """The widths of all attributes, existence first."""
        return 1, *self.widths

    @property
    def slices(self) -> dict[str, slice]:
        """The place of each attribute among the F numbers."""
        ends = np.cumsum(list(self.attributes.values()))
        return {
            name: slice(int(end) - width, int(end))
            for (name, width), end in zip(self.attributes.items(), ends, strict=True)
        }

    def encode(self, shape: Mapping[str, np.ndarray]) -> Tensor:
        """The numbers of a shape, (L, F): existence is 1 or -1, and the other numbers of absent parts are 0.

        Raises:
            DataError: it has other attributes, or more parts.
        """
        there = {name: values.shape[1] for name, values in shape.items()}
        if there != (known := dict(zip(self.names, self.widths, strict=True))):
            raise DataError(f"a shape has the attributes {with_widths(there)}, not {with_widths(known)}")
        values = np.concatenate([shape[name] for name in self.names], axis=1)
        if len(values) > self.max_parts:
            raise DataError(f"a shape has {len(values)} parts, more than the model's {self.max_parts}")
        x = np.zeros((self.max_parts, 1 + values.shape[1]), np.float32)
        x[:, 0] = -1
        x[: len(values), 0] = 1
        x[: len(values), 1:] = (values - np.array(self.mean)) / np.array(self.std)
        return torch.from_numpy(x)

    def existing(self, x: Tensor) -> np.ndarray:
        """The numbers of the parts that exist in a sample (L, F); at least one does."""
        existence = x[:, 0].cpu().double().numpy()
        exists = existence > 0
        exists[existence.argmax()] = True
        return np.flatnonzero(exists)

    def _by_attribute(self, numbers: np.ndarray) -> Shape:
        """Numbers without existence, (..., F - 1), as an array for each attribute."""
        return dict(zip(self.names, np.split(numbers, np.cumsum(self.widths)[:-1], axis=-1), strict=True))

    def decode(self, x: Tensor) -> Shape:
        """The shape of a sample (L, F): the parts that exist, or the likeliest one, with proper boxes.

        Raises:
            FloatingPointError: the sample is not finite.
        """
        values = x.cpu().double().numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError(
                "a shape is not finite: the model's weights are not, or the sampler diverges with these settings"
            )
        mean = np.array(self.mean)
        shape = self._by_attribute(values[self.existing(x), 1:] * np.array(self.std) + mean)
        shape["box.size"] = np.maximum(shape["box.size"], MIN_SIZE * self._by_attribute(mean)["box.size"].mean())
        shape["box.axes"] = orthonormal(shape["box.axes"])
        return {name: part.astype(np.float32) for name, part in shape.items()}


def with_widths(widths: Mapping[str, int]) -> str:
    """Attributes and their widths in words: box.center (3), box.size (3)."""
    return ", ".join(f"{name} ({width})" for name, width in widths.items())


def orthonormal(axes: np.ndarray) -> np.ndarray:
    """The nearest first axis, and a second one at a right angle to it: (P, 6) -> (P, 6)."""

    def unit(vectors: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.where(norm > 1e-6, vectors / np.maximum(norm, 1e-6), otherwise)

    def across(vectors: np.ndarray) -> np.ndarray:
        return vectors - (vectors * first).sum(1, keepdims=True) * first

    axes = np.asarray(axes, np.float64)
    first = unit(axes[:, :3], np.eye(3)[0])  # the world's where it says nothing
    least = across(np.eye(3)[np.abs(first).argmin(1)])
    least /= np.linalg.norm(least, axis=1, keepdims=True)
    second = unit(across(unit(axes[:, 3:], least)), least)
    return np.concatenate([first, second], axis=1)


class ShapeData(Dataset[tuple[Tensor, int]]):
    """Shapes as a model's input: numbers (L, F) and a label. Parts are in the file's order, which no model sees."""

    def __init__(self, shapes: ShapeSet, layout: Layout | None = None) -> None:
        self.shapes, self.layout = shapes, layout or Layout.of(shapes)
        self.class_names = shapes.class_names
        self.labels = [int(k) for k in shapes.labels]
        self.notes: list[str] = []

    def check(self) -> None:
        """See that the shapes are of the layout.

        Raises:
            DataError: they are not.
        """
        self.layout.encode(self.shapes[int(self.shapes.counts.argmax())])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays."""
        content = hashlib.sha256()
        for name, values in {
            "counts": self.shapes.counts,
            "labels": self.shapes.labels,
            **self.shapes.attributes,
        }.items():
            content.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return content.hexdigest()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, _ = key
        return self.layout.encode(self.shapes[index]), self.labels[index]


class ShapeSpace:
    """The counterpart of an autoencoder for shapes: nothing is encoded, and samples are numbers of shapes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def encode(self, x: Tensor, sample: bool = True) -> Tensor:
        """The numbers themselves."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """The numbers themselves."""
        return x


def fault_of_numbers(path: Path, layout: Layout) -> str | None:
    """The reason why a file does not hold the numbers of a sample (L, F), as np.save writes them; None if it does."""
    try:
        numbers = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds
        return f"is damaged: {first_line(error)}"
    if numbers.shape != layout.shape or numbers.dtype != np.float32 or not np.isfinite(numbers).all():
        return f"is not {' x '.join(map(str, layout.shape))} finite numbers"
    return None
