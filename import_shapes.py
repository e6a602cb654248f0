"""Turn a folder of meshes into a set of structured shapes: parts, each with an oriented box.

    python import_shapes.py FOLDER --out set.npz
    python import_shapes.py FOLDER --out set.npz --up z --max-parts 32 --split 0.85,0.05,0.1
    python train.py --data-path set.npz --model Parts-S --num-classes 6    # as many as there are classes, or more

FOLDER holds .obj, .gltf, .glb or .ply files, in a sub-folder for each class, or directly: one class then, called like
the folder. A part is an object or a group of an .obj, or a node of a glTF; in a file with only one of them, and in a
.ply, it is a connected component. Its box is exact where the part is a box, and nearly the smallest elsewhere. The axes
of a box are named after the nearest of the world's.

Each shape is centred at x = z = 0, stands on the ground, y = 0, and its longest side is 1 (--keep-scale: it stays as it
is). Meshes that cannot be read are named and left out, and those of more than 512 MiB or 5 million triangles. Materials
and textures are not looked at, and nothing is fetched.
"""

from runtime.errors import DataError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.listing import summary
from data.skipping import check_readable
from runtime import progress
from runtime.command_line import Parser, count, positive_int, unit_float
from shapes.importing import SPLITS, Meshes, TooManyParts, draw_split, find_meshes, printable, shape_of, some
from shapes.mesh_files import UnreadableMesh
from shapes.sets import ShapeSet, from_shapes, save_shapes


def three_shares(value: str) -> tuple[float, ...]:
    """Three shares as an argument, whose sum is 1.

    Raises:
        argparse.ArgumentTypeError: they are something else.
    """
    numbers = tuple(float(word) for word in value.split(","))
    if len(numbers) != 3 or min(numbers) < 0 or not abs(sum(numbers) - 1) < 1e-6:
        raise argparse.ArgumentTypeError(f"{value!r} is not three shares whose sum is 1, like 0.85,0.05,0.1")
    return numbers


def npz(value: str) -> Path:
    """The path of an .npz as an argument.

    Raises:
        argparse.ArgumentTypeError: it has another suffix.
    """
    path = Path(value)
    if path.suffix != ".npz":
        raise argparse.ArgumentTypeError(f"{value!r} does not end in .npz")
    return path


def make_parser() -> Parser:
    """The parser of import_shapes.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of meshes, a sub-folder for each class")
    parser.add_argument(
        "--out", type=npz, required=True, metavar="SET.npz", help="file to write the set to; it may replace one"
    )
    parser.add_argument(
        "--up", choices=("y", "z"), default="y", help="coordinate of the files that points up; with z the front is -y"
    )
    parser.add_argument("--keep-scale", action="store_true", help="leave every shape at its size and place")
    parser.add_argument(
        "--max-parts", type=positive_int, default=256, help="number of parts above which a shape is left out"
    )
    parser.add_argument(
        "--split",
        type=three_shares,
        metavar="TRAIN,VAL,TEST",
        help="shares of each class's shapes for training, validation and test; default: no split",
    )
    parser.add_argument("--seed", type=count, default=0, help="seed of the split")
    parser.add_argument(
        "--max-bad",
        type=unit_float,
        default=0.05,
        metavar="SHARE",
        help="stop when more than this share of the meshes, and more than one, cannot be read; fewer are named and "
        "left out; 0: stop at the first",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Import meshes as the command line says.

    Raises:
        DataError: a folder cannot be read or written, or too many meshes are damaged, or none makes a shape.
    """
    args = make_parser().parse_args(argv)
    if args.out.is_dir():
        raise DataError(f"--out {args.out} is a folder")
    if not os.access(args.out.parent, os.W_OK):
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist, or cannot be written to")
    meshes = find_meshes(args.folder)
    for note in meshes.notes:
        warn(note)
    read, unreadable, large = [], [], 0
    with progress.bar(meshes.paths, desc="meshes") as bar:
        for k, path in enumerate(bar):
            try:
                shape = shape_of(path, z_up=args.up == "z", keep_scale=args.keep_scale, max_parts=args.max_parts)
                read.append((k, shape))
            except TooManyParts:
                large += 1
            except UnreadableMesh as error:
                unreadable.append(str(error))
                warn(f"left out: {error}")
                check_readable(unreadable, len(meshes.paths), args.max_bad, "meshes", "--max-bad")
    left_out = [f"{len(unreadable):,} unreadable"] if unreadable else []
    left_out += [f"{large:,} with more than {args.max_parts:,} parts"] if large else []
    if not read:
        raise DataError(f"no mesh in {args.folder} makes a shape: {', '.join(left_out)}")
    left_out += [f"files that are no meshes: {summary(meshes.others)}"] if meshes.others else []
    shapes = together(args, meshes, read)
    save_shapes(shapes, args.out)
    print("; ".join([told(args.out, shapes), *([f"left out: {', '.join(left_out)}"] if left_out else [])]))


def warn(line: str) -> None:
    """Print a warning on one line, whatever characters a file's name has."""
    print(f"Warning: {line}".replace("\n", "\\n"), file=sys.stderr)


def together(args: argparse.Namespace, meshes: Meshes, read: list[tuple[int, dict[str, np.ndarray]]]) -> ShapeSet:
    """The set of the shapes that could be read, with the classes that have some."""
    kept, labels = np.unique([meshes.labels[k] for k, _ in read], return_inverse=True)
    names = [meshes.class_names[label] for label in kept]
    if gone := [name for name in meshes.class_names if name not in names]:
        warn(f"no shape is left of {len(gone):,} classes, which are left out: {some(gone)}")
    others = {"ids": [printable(os.path.relpath(meshes.paths[k], args.folder)) for k, _ in read]}
    if args.split:
        others["split"] = draw_split(labels.tolist(), args.split, args.seed)
    return from_shapes([shape for _, shape in read], labels.tolist(), names, **others)


def told(path: Path, shapes: ShapeSet) -> str:
    """A line on the content of a set: shapes, classes, parts, splits."""
    classes = f"{len(shapes.class_names):,} class{'es' if len(shapes.class_names) > 1 else ''}"
    parts = f"{shapes.counts.sum():,} parts (median {np.median(shapes.counts):g}, most {shapes.counts.max():,})"
    line = f"{len(shapes):,} shapes of {classes} in {printable(str(path))}: {parts}"
    if shapes.split is not None:
        line += "".join(f", {(shapes.split == name).sum():,} {name}" for name in SPLITS)
    return line


if __name__ == "__main__":
    run_program(main)
