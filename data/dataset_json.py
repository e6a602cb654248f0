"""`dataset.json`, in which the dataset_tool of StyleGAN and EDM keeps the labels of pictures:

    {"labels": [["00000/img00000000.png", 7], ...]}

Labels are numbers of classes, or one-hot lists, or null in place of all: then there is one class. A mapping from names
to labels is understood, too. The folders of the pictures are no classes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data.listing import Tree
from runtime.errors import DataError, first_line

NAME = "dataset.json"
MAX_CLASSES = 1_000_000


@dataclass
class Labels:
    """Labels by the names of pictures, relative to the folder, and the number of classes."""

    of: dict[str, int] | None  # by name; None: no labels are given, all pictures are of one class
    classes: int


def read_labels(tree: Tree) -> Labels | None:
    """The labels of a tree's `dataset.json`; None where there is no such file, or it has no "labels".

    Raises:
        DataError: it is damaged, lists a picture twice, or a label is none.
    """
    if NAME not in tree.children().files:
        return None
    path = tree.root / NAME
    try:
        content = json.loads(tree.content(NAME), object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    labels = content["labels"]
    if labels is None:
        return Labels(None, 1)
    pairs = labels.items() if isinstance(labels, dict) else labels
    if not isinstance(pairs, Iterable) or isinstance(pairs, str):
        raise DataError(f"{path}: its labels are {labels!r}, not pairs of a name and a label")
    found: dict[str, int] = {}
    classes = 0
    for pair in pairs:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DataError(f"{path}: {shortened(pair)} among its labels is no pair of a name and a label")
        name = str(PurePosixPath(pair[0].replace("\\", "/")))
        if name in found:
            raise DataError(f"{path} lists {name} twice")
        found[name], count = class_number(pair[1], name, path)
        classes = max(classes, count)
    return Labels(found, classes)


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dictionary.

    Raises:
        ValueError: a name stands twice in it.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it lists {next(name for name in names if names.count(name) > 1)} twice")
    return found


def class_number(label: Any, name: str, path: Any) -> tuple[int, int]:
    """A label as a number, and the number of classes that there are at least.

    Raises:
        DataError: it is no label.
    """
    if isinstance(label, list):
        numbers = [k for k, value in enumerate(label) if type(value) in (int, float) and value == 1]
        if len(numbers) != 1 or any(type(v) not in (int, float) or v not in (0, 1) for v in label):
            raise DataError(f"{path}: the label of {name} is {shortened(label)}, which is not one-hot")
        return numbers[0], len(label)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if type(label) is not int:
        raise DataError(f"{path}: the label of {name} is {shortened(label)}; whole numbers from 0 are needed")
    if not 0 <= label < MAX_CLASSES:
        raise DataError(f"{path}: the label of {name} is {label}; numbers from 0 to {MAX_CLASSES - 1:,} are needed")
    return label, label + 1


def shortened(value: Any) -> str:
    """A value in words, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def labels_of(names: Sequence[str], labels: Labels, tree: Tree) -> list[int]:
    """The label of each picture of a tree.

    Raises:
        DataError: one has none, or one that has is not there.
    """
    if labels.of is None:
        return [0] * len(names)
    path = tree.root / NAME
    if absent := [name for name in names if name not in labels.of]:
        raise DataError(f"{path} has no label for {len(absent):,} of {len(names):,} pictures, {absent[0]} first")
    if len(names) < len(labels.of):
        there = set(names)
        gone = [name for name in labels.of if name not in there]
        raise DataError(f"{path} lists {len(gone):,} pictures that are not there, {gone[0]} first")
    return [labels.of[name] for name in names]
