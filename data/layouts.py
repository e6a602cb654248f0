"""Folders that are no classes: splits of a data set, wrappers around it, and labels that lie in a file beside them."""

import csv
import io
import json
import re

from data.dataset_json import NAME as DATASET_JSON
from data.formats import HELP
from data.listing import Children, Folder, Tree
from runtime.errors import DataError

SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|dev|eval)"
    r"([ _-]?(set|split|data|images?|imgs?|\d{4}|\d+x\d+))*",
    re.IGNORECASE,
)
WRAPPERS = {
    *("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "data", "dataset", "datasets"),
    *("ilsvrc", "ilsvrc2012", "imagenet", "cls-loc", "cls_loc", "imagefolder"),
}
COMPANIONS = {  # folders that lie beside wrappers and splits
    *("annotations", "annotation", "anno", "labels", "label", "masks", "mask", "meta", "metadata", "captions"),
    *("imagesets", "devkit", "ground_truth", "gt", "segmentation", "segmentationclass", "segmentationobject"),
    *("attributes", "bboxes", "boxes", "lists", "splits", "vae-sd", "latents", "features"),
}
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx", ".mat", ".pkl")
OF_LABELS = re.compile(r"label|annot|attr|metadata|identity", re.IGNORECASE)
IMAGEFOLDER = re.compile(r"metadata\.(jsonl|csv|parquet)", re.IGNORECASE)  # the table of Hugging Face's ImageFolder
LABEL_COLUMNS = {"label", "labels", "class", "classes", "category", "categories", "target", "class_name", "class_id"}
NUMBERED = re.compile(r"\d{5}")


def check(tree: Tree) -> list[str]:
    """Warnings about sub-folders that may be no classes.

    Raises:
        DataError: they certainly are none; says what to give instead.
    """
    top = tree.children()
    folders, root = top.folders, tree.root
    if not folders:
        return []
    first = tree.children(folders[0])
    if parts := splits_of(top):
        if len(folders) > 1 or first.folders:
            shown = ", ".join(folders[:4]) + ", ..." * (len(folders) > 4)
            meant = advice(tree, deepest(tree, ""))
            raise DataError(
                f"data folder {root} holds {shown}, which look like parts of a data set, not classes: {meant}; where "
                "they are classes, give them other names"
            )
    elif len(folders) == 1 and not first.pictures and is_data_set(tree, folders[0], first):
        raise DataError(
            f"data folder {root} holds {folders[0]} alone, which is no class but a data set: "
            f"{advice(tree, deepest(tree, folders[0]))}"
        )
    notes = check_tables(tree, top, first)
    splits, wrappers = [f for f in folders if SPLIT.fullmatch(f)], [f for f in folders if f.lower() in WRAPPERS]
    if len(folders) == 1 and parts:
        notes.append(f"all pictures are of one class, {folders[0]}, the only folder in {root}")
    elif len(splits) > 1 or wrappers:
        notes.append(f"{', '.join(splits if len(splits) > 1 else wrappers)} in {root} are taken for classes")
    if len([f for f in first.folders if SPLIT.fullmatch(f)]) > 1:
        notes.append(
            f"{root / folders[0]} holds {', '.join(first.folders[:4])}, all of which are of class {folders[0]}"
        )
    if len(folders) > 1 and DATASET_JSON in first.files:
        notes.append(f"{root / folders[0] / DATASET_JSON} is not looked into: {folders[0]} is taken for a class")
    if len(folders) > 1 and all(map(NUMBERED.fullmatch, folders)):
        notes.append(
            f"the folders {folders[0]}, {folders[1]}, ... in {root} are taken for classes, which those of FFHQ and of "
            "StyleGAN's dataset_tool are not"
        )
    return notes


def is_data_set(tree: Tree, name: str, children: Children) -> bool:
    """Whether a folder holds labels, or splits and wrappers with classes in them."""
    if DATASET_JSON in children.files:
        return True
    return bool(splits_of(children)) and bool(tree.children(deepest(tree, name)).folders)


def splits_of(children: Children) -> list[str]:
    """The splits and wrappers among folders, where nothing else but what belongs to them is there."""
    parts = [f for f in children.folders if SPLIT.fullmatch(f) or f.lower() in WRAPPERS]
    others = {f.lower() for f in children.folders if f not in parts}
    return parts if others <= COMPANIONS else []


def deepest(tree: Tree, name: str) -> str:
    """The folder of classes that splits and wrappers lead to, the training split before others."""
    children = tree.children(name)
    parts = [] if children.pictures or DATASET_JSON in children.files else splits_of(children)
    if not parts:
        return name
    best = min(parts, key=lambda part: (not part.lower().startswith("train"), part.lower() not in WRAPPERS))
    return deepest(tree, f"{name}/{best}" if name else best)


def advice(tree: Tree, name: str) -> str:
    """The --data-path to give so that a folder of a tree is used, as advice in words."""
    meant = tree.root / name if isinstance(tree, Folder) else f"a .zip of {name} alone"
    children = tree.children(name)
    needed = (
        "" if children.folders or DATASET_JSON in children.files else f", with a folder for each class (see {HELP})"
    )
    return f"give --data-path {meant}{needed}"


def check_tables(tree: Tree, top: Children, first: Children) -> list[str]:
    """Warnings about files that may hold the labels.

    Raises:
        DataError: they do, or there is only one folder beside them.
    """
    root, folders = tree.root, top.folders
    for name in filter(IMAGEFOLDER.fullmatch, top.files):
        if found := columns(tree, name) & LABEL_COLUMNS:
            raise DataError(
                f"{root / name} holds labels ({min(found)}), and the folders beside it need be no classes: see {HELP}; "
                "where they are the classes, move the file away"
            )
    beside = [f for f in top.files if is_table(f)]
    tables = [f for f in beside if not IMAGEFOLDER.fullmatch(f)]
    if len(folders) == 1 and first.pictures:
        tables += [f for f in top.files if f.lower().endswith((".csv", ".tsv")) and f not in beside]
        within = [f"{folders[0]}/{f}" for f in first.files if is_table(f)]
        if tables := tables + within * (len(within) == 1):  # more are one for each picture
            raise DataError(
                f"data folder {root} holds one folder, {folders[0]}, and {tables[0]}, in which the labels may be: see "
                f"{HELP}; where all pictures are of one class, move the file away"
            )
    notes = [f"{root / name} is not looked into: the folders in {root} are the classes" for name in beside]
    if DATASET_JSON in top.files:
        notes.append(f"{root / DATASET_JSON} has no labels: the folders in {root} are the classes")
    return notes


def is_table(name: str) -> bool:
    """Whether a file may hold labels, by its name."""
    return name.lower().endswith(TABLE_SUFFIXES) and OF_LABELS.search(name) is not None


def columns(tree: Tree, name: str) -> set[str]:
    """The names of a table's columns, in small letters; an empty set where its first line cannot be read."""
    if name.lower().endswith(".parquet"):
        return {"label"}  # as far as one knows
    line = next(iter(tree.content(name).decode("utf-8-sig", "replace").splitlines()), "")
    if not name.lower().endswith(".jsonl"):
        return {column.strip().lower() for column in next(csv.reader(io.StringIO(line)), [])}
    try:
        row = json.loads(line)
    except ValueError:
        return set()
    return {str(column).lower() for column in row} if isinstance(row, dict) else set()
