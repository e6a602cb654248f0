"""FID, sFID, inception score, KID, precision and recall of samples, without TensorFlow.

    python evaluate.py samples/XYZ.npz VIRTUAL_imagenet256_labeled.npz          # ADM's reference batch
    python evaluate.py samples/XYZ.npz FOLDER --image-size 256                  # against one's own pictures
    python evaluate.py FOLDER --image-size 256 --save-stats mine.npz            # their statistics, once
    python evaluate.py samples/XYZ.npz mine.npz
    python evaluate.py samples/XYZ.npz FOLDER --image-size 256 --features dinov2    # FD-DINOv2; is no FID
    python evaluate.py SAMPLES digits --features efficientnet-lite0             # nothing is fetched; is no FID
    python evaluate.py samples/XYZ.npz shapes                                   # structured shapes: Chamfer and others

SAMPLES and REFERENCE are an .npz of images (arr_0, (N, H, W, 3) uint8), a folder of pictures, 'digits', or an .npz of
statistics (mu, sigma, and mu_s, sigma_s for sFID); or both are sets of shapes, an .npz or 'shapes', of which REFERENCE
is the part that was not trained on, where it says so. The weights of inception, FID's network, and of DINOv2's ViT-L/14
are fetched once, or read from --weights.
Under torchrun all processes look at the images; the numbers do not depend on how many.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

from collections.abc import Sequence
from pathlib import Path

import kinds
from evaluation.features import EXTRACTORS
from runtime import distributed, precision
from runtime.command_line import Parser, accepting, positive_int
from runtime.device import add_device_arg

two_or_more = accepting(positive_int, lambda n: n > 1, "is less than 2, between which there are distances")


def make_parser() -> Parser:
    """The parser of evaluate.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("samples", metavar="SAMPLES", help="the set to evaluate")
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help="the set to compare it with")
    parser.add_argument(
        "--features", choices=EXTRACTORS, default="inception", help="network that gives an image's features"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of inception or dinov2; default: downloaded once"
    )
    parser.add_argument(
        "--image-size",
        type=positive_int,
        help="side in pixels to which pictures of folders are resized and cropped; images of an .npz must have it",
    )
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images at a time, for the network")
    add_device_arg(parser)
    parser.add_argument(
        "--points", type=positive_int, default=2048, help="points to draw on each shape's surface, for its distances"
    )
    parser.add_argument(
        "--compared",
        type=two_or_more,
        default=500,
        help="number of shapes of each set, at most, between which distances are computed",
    )
    parser.add_argument("--save-stats", type=Path, metavar="FILE", help="write the statistics of SAMPLES, an .npz")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate samples as the command line says.

    Raises:
        UsageError: arguments that cannot work together.
        DataError: a file cannot be read, or a folder does not exist.
    """
    args = make_parser().parse_args(argv)
    if not args.reference and not args.save_stats:
        raise UsageError("nothing to do: give a REFERENCE to compare with, or --save-stats FILE")
    for flag, path in (("--save-stats", args.save_stats), ("--out", args.out)):
        if path and not path.parent.is_dir():
            raise DataError(f"{flag} {path}: folder {path.parent} does not exist")
    if args.save_stats and args.save_stats.suffix != ".npz":
        raise UsageError(f"--save-stats {args.save_stats} must end in .npz")
    if args.out and not args.reference:
        raise UsageError(f"--out {args.out} needs a REFERENCE to compare with")
    process = distributed.setup(device_name=args.device)
    precision.setup("fp32")
    kinds.of_sets([name for name in (args.samples, args.reference) if name]).evaluate(args, process)
    distributed.cleanup()


if __name__ == "__main__":
    run_program(main)
