"""Write PartNet's chairs, tables and storage furniture, as cuboids, as sets of shapes that train.py reads.

    python experiments/partnet.py partnet-cuboids.npz --out results/partnet    # results/partnet/chair.npz and two more

The file has, for each category C, C_counts (N,), C_parts (P, 15: centre, edge lengths, the axes as rows), C_ids and
C_split, as ShapeAssembly's executor makes them of its programs for PartNet (Jones et al., 2020). Shapes with more than
--max-parts parts, some 1 %, are left out: every part is a token.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from runtime.command_line import Parser, positive_int
from runtime.errors import DataError, first_line, run_program
from shapes.sets import ShapeSet, save_shapes


def cuboids(arrays: dict[str, np.ndarray], category: str) -> ShapeSet:
    """A category as a set of its own."""
    counts, parts = arrays[f"{category}_counts"], arrays[f"{category}_parts"]
    attributes = {"box.center": parts[:, :3], "box.size": parts[:, 3:6], "box.axes": parts[:, 6:12]}
    split, ids = arrays[f"{category}_split"], arrays[f"{category}_ids"]
    return ShapeSet(attributes, counts, np.zeros(len(counts), np.int32), [category], split, ids)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the sets of PartNet's cuboids.

    Raises:
        DataError: the file cannot be read.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("cuboids", type=Path, metavar="FILE", help="partnet-cuboids.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the sets to")
    parser.add_argument(
        "--max-parts", type=positive_int, default=24, help="number of parts above which a shape is left out"
    )
    args = parser.parse_args(argv)
    try:
        with np.load(args.cuboids) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{args.cuboids} cannot be read: {first_line(error)}") from None
    args.out.mkdir(parents=True, exist_ok=True)
    for category in sorted(name.removesuffix("_counts") for name in arrays if name.endswith("_counts")):
        shapes = cuboids(arrays, category)
        kept = shapes.select(np.flatnonzero((shapes.counts <= args.max_parts) & (shapes.split != "")))
        save_shapes(kept, args.out / f"{category}.npz")
        print(f"{len(kept):,} of {len(shapes):,} shapes in {args.out / f'{category}.npz'}")


if __name__ == "__main__":
    run_program(main)
