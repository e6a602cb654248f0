"""Write CIFAR-10's training pictures as a folder that train.py reads: 50,000 of 32 x 32 in ten classes.

    python experiments/cifar10.py --out results/cifar10                                # fetched by torchvision
    python experiments/cifar10.py --out results/cifar10 --source cifar-10-batches-py   # from its files, as PNG
    python experiments/cifar10.py --out results/cifar10 --source FOLDER                # from JPEGs, or a .zip of them

JPEGs are those of train/<class>/, or of <class>/ where there is no train/; they are copied as they are. Compressed
pictures are another data set: call it "CIFAR-10, as JPEG"; numbers on it cannot be compared with others. Fetched files
stay in results/cifar10-files.
"""

import argparse
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torchvision.datasets import CIFAR10

from data.formats import open_tree
from data.listing import Tree
from runtime import progress
from runtime.command_line import Parser
from runtime.errors import DataError, first_line, run_program

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = CIFAR10.base_folder


def load(root: Path, *, download: bool) -> CIFAR10:
    """The training set of the files in `root`/cifar-10-batches-py, whose checksums are compared before they are read.

    Raises:
        DataError: they are not whole, or cannot be fetched.
    """
    try:
        return CIFAR10(str(root), train=True, download=download)
    except (RuntimeError, urllib.error.URLError, OSError) as error:
        if download:
            raise DataError(f"CIFAR-10 cannot be fetched: {first_line(error)} (or give --source)") from None
        raise DataError(f"{root / BATCHES} has not all files of CIFAR-10 as they were published") from None


def find_batches(source: Path) -> Path | None:
    """The folder that holds cifar-10-batches-py, where a source is that folder or holds it; else None."""
    if source.resolve().name == BATCHES:
        return source.resolve().parent
    return source if (source / BATCHES).is_dir() else None


def write_batches(dataset: CIFAR10, out: Path) -> int:
    """Write pictures as PNG; returns their number."""
    make_classes(out)
    for i in progress.bar(range(len(dataset)), desc=str(out)):
        image, label = dataset[i]
        image.save(out / CLASSES[label] / f"{i:05d}.png")
    return len(dataset)


def write_files(tree: Tree, out: Path) -> int:
    """Copy the pictures of a folder or a .zip; returns their number.

    Raises:
        DataError: its classes are not CIFAR-10's, or one has no pictures.
    """
    top = "train/" if "train" in tree.children().folders else ""
    names = tree.children(top.rstrip("/")).folders
    if names != sorted(CLASSES):
        found = ", ".join(names[:12]) or "no folders"
        raise DataError(f"{tree.root} holds {found} in place of {BATCHES} or CIFAR-10's classes: {', '.join(CLASSES)}")
    pictures = {name: tree.children(top + name).pictures for name in names}
    if empty := [name for name in names if not pictures[name]]:
        raise DataError(f"{tree.root / (top + empty[0])} holds no pictures")
    make_classes(out)
    for name in progress.bar(names, desc=str(out)):
        for file in pictures[name]:
            (out / name / file).write_bytes(tree.content(f"{top}{name}/{file}"))
    return sum(map(len, pictures.values()))


def make_classes(out: Path) -> None:
    """Make a folder for each class."""
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Write CIFAR-10 as a folder of pictures.

    Raises:
        DataError: the source does not exist, or cannot be used.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--source", type=Path, help="cifar-10-batches-py, or a folder or .zip of JPEGs")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.source is None:
        files = args.out.resolve().with_name(args.out.resolve().name + "-files")
        count = write_batches(load(files, download=True), args.out)
    elif not args.source.exists():
        raise DataError(f"--source {args.source} does not exist")
    elif (root := find_batches(args.source)) is not None:
        count = write_batches(load(root, download=False), args.out)
    else:
        count = write_files(open_tree(args.source), args.out)
    print(f"{count:,} pictures in {args.out}")


if __name__ == "__main__":
    run_program(main)
