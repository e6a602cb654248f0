"""Write Fashion-MNIST as a folder of pictures that train.py reads: 60,000 of 28 x 28 in ten classes.

    python experiments/fashion_mnist.py --out results/fashion-mnist

The files are those of Debian's package dataset-fashion-mnist, if it is installed, or are fetched by torchvision; they
are left in results/fashion-mnist-files.
"""

import argparse
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import extract_archive

from data.pictures import save_image
from runtime import progress
from runtime.command_line import Parser
from runtime.errors import DataError, first_line, run_program

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def load(root: Path, debian: Path) -> FashionMNIST:
    """The training set, from files in `root`, of Debian's package, or fetched to `root`.

    Raises:
        DataError: it cannot be fetched.
    """
    raw = root / "FashionMNIST" / "raw"
    if debian.is_dir():
        raw.mkdir(parents=True, exist_ok=True)
        for archive in debian.glob("*.gz"):
            extract_archive(str(archive), str(raw))
    try:
        return FashionMNIST(str(root), train=True, download=True)
    except (RuntimeError, urllib.error.URLError, OSError) as error:
        raise DataError(
            f"Fashion-MNIST cannot be fetched: {first_line(error)} (or install Debian's dataset-fashion-mnist)"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Write Fashion-MNIST as a folder of pictures.

    Raises:
        DataError: the source does not exist, or cannot be fetched.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of the four .gz files")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.source != DEBIAN and not args.source.is_dir():
        raise DataError(f"--source {args.source} does not exist")
    dataset = load(args.out.resolve().with_name(args.out.resolve().name + "-files"), args.source)
    names = [f"{k}-{name.replace('/', '-')}" for k, name in enumerate(dataset.classes)]  # in their usual order
    for name in names:
        (args.out / name).mkdir(parents=True, exist_ok=True)
    for i in progress.bar(range(len(dataset)), desc=str(args.out)):
        image, label = dataset[i]
        save_image(image, args.out / names[label] / f"{i:05d}.png")
    print(f"{len(dataset):,} pictures in {args.out}")


if __name__ == "__main__":
    run_program(main)
