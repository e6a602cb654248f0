"""FID, sFID, inception score, KID, precision and recall of samples, without TensorFlow.

    python evaluate.py samples/XYZ.npz VIRTUAL_imagenet256_labeled.npz          # ADM's reference batch
    python evaluate.py samples/XYZ.npz FOLDER --image-size 256                  # against one's own pictures
    python evaluate.py FOLDER --image-size 256 --save-stats mine.npz            # their statistics, once
    python evaluate.py samples/XYZ.npz mine.npz
    python evaluate.py SAMPLES digits --features efficientnet-lite0             # nothing is fetched; is no FID
    python evaluate.py samples/XYZ.npz shapes                                   # structured shapes: Chamfer and others

SAMPLES and REFERENCE are an .npz of images (arr_0, (N, H, W, 3) uint8), a folder of pictures, 'digits', or an .npz of
statistics (mu, sigma, and mu_s, sigma_s for sFID); or both are sets of shapes, an .npz or 'shapes', of which REFERENCE
is the part that was not trained on, where it says so. The FID network's weights are fetched once, or read from
--weights.
Under torchrun all processes look at the images; the numbers do not depend on how many.
"""

import argparse
from pathlib import Path

from runtime.command_line import Parser, positive_int
from runtime.device import add_device_arg
from runtime.errors import begin
from train_utils import EXTRACTORS


def two_or_more(text: str) -> int:
    number = positive_int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{text} is less than 2, between which there are distances")
    return number


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("samples", metavar="SAMPLES", help="what is evaluated")
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help="what it is compared with")
    parser.add_argument("--features", choices=EXTRACTORS, default="inception", help="network that sees the images")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of inception; default: fetched once")
    parser.add_argument(
        "--image-size",
        type=positive_int,
        help="crop pictures of folders to this, as training does; an .npz must have it",
    )
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images at a time")
    add_device_arg(parser)
    parser.add_argument("--points", type=positive_int, default=2048, help="of each shape, on its surface")
    parser.add_argument(
        "--compared",
        type=two_or_more,
        default=500,
        help="shapes of each set, at most, between which distances are taken",
    )
    parser.add_argument("--save-stats", type=Path, metavar="FILE", help="write the statistics of SAMPLES, an .npz")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers as JSON")
    return parser


if __name__ == "__main__":
    begin(make_parser())

import json
import sys
from collections.abc import Iterator, Sequence

import torch

from evaluation.features import load_extractor
from evaluation.statistics import (
    Source,
    Statistics,
    compare,
    open_source,
    report_name,
    save_statistics,
    warnings_about,
    warnings_about_sizes,
)
from runtime import distributed, precision
from runtime.device import float64
from runtime.errors import DataError, UsageError, run_program
from runtime.files import replacing
from shapes.judging import ShapeJudge, held_out
from shapes.sets import holds_shapes, open_shapes


def main(argv: Sequence[str] | None = None) -> None:
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
    if any(holds_shapes(name) for name in (args.samples, args.reference) if name):
        if process.is_main:
            evaluate_shapes(args, process.device)
        distributed.cleanup()
        return
    sources = [open_source(s, args.features, args.image_size) for s in (args.samples, args.reference) if s]
    check_image_size(args.image_size, sources)
    if process.is_main:
        for line in warnings_about_sources(sources):
            print(f"Warning: {line}", file=sys.stderr)
    extractor = None
    if any(source.images is not None for source in sources):  # statistics alone need no network, nor its weights
        extractor = distributed.on_main_first(lambda: load_extractor(args.features, args.weights, process.device))
    found = [source.statistics(extractor, process, args.batch_size) for source in sources]
    statistics = [s for s in found if s is not None]  # none in other processes than the first
    if process.is_main and args.save_stats:
        save_statistics(statistics[0], args.save_stats)
        print(f"Statistics of {args.samples} in {args.save_stats}")
    if process.is_main and args.reference:
        samples, reference = statistics
        report(args, samples, reference, process.device)
    distributed.cleanup()


def evaluate_shapes(args: argparse.Namespace, device: torch.device) -> None:
    """Print the numbers of sets of shapes.

    Raises:
        UsageError, DataError: one of them is none.
    """
    if args.save_stats or not args.reference:
        raise UsageError(f"{args.samples} holds shapes, which have no statistics to save: give a REFERENCE")
    features = None if args.features == EXTRACTORS[0] else args.features
    for flag, value in (("image-size", args.image_size), ("features", features), ("weights", args.weights)):
        if value is not None:
            raise UsageError(f"--{flag} {value} is for images, and {args.samples} is compared with shapes")
    reference, training = held_out(open_shapes(args.reference))
    samples = open_shapes(args.samples)
    settings = {"points": args.points, "compared": args.compared}
    judge = ShapeJudge(reference, training, **settings, device=float64(device))
    results = judge.evaluate(samples)
    for name, value in results.items():
        print(f"{name:<28} {value:.6g}")
    if args.out:
        about = {"samples": args.samples, "reference": args.reference}
        counts = {"sample_count": len(samples), "reference_count": len(reference)}
        with replacing(args.out) as beside:
            beside.write_text(json.dumps(about | counts | results, indent=1) + "\n")


def check_image_size(image_size: int | None, sources: Sequence[Source]) -> None:
    """
    Raises:
        UsageError: the images of a file have another size, or nothing has images. Pictures of folders are cropped.
    """
    if image_size is None:
        return
    sizes = [(source.name, source.images.size) for source in sources if source.images is not None]
    if not sizes:
        raise UsageError(f"--image-size {image_size} crops images, and {sources[0].name} holds none")
    for name, (width, height) in sizes:
        if (width, height) != (image_size, image_size):
            raise UsageError(
                f"--image-size {image_size} crops pictures of folders; {name} holds images of {width} x {height} "
                "pixels, which are taken as they are"
            )


def warnings_about_sources(sources: Sequence[Source]) -> Iterator[str]:
    """What seems to be amiss with samples and reference before they are looked at."""
    if len(sources) < 2:
        return
    samples = sources[0]
    if samples.images is not None and samples.has_moments:
        yield (
            f"{samples.name}, which stands first, holds both images and their statistics, as a reference does: is it "
            "the samples?"
        )
    yield from warnings_about_sizes(*(None if s.images is None else s.images.size for s in sources))


def report(args: argparse.Namespace, samples: Statistics, reference: Statistics, device: torch.device) -> None:
    results = {report_name(k, samples.extractor): v for k, v in compare(samples, reference, device).items()}
    for line in warnings_about(samples, reference):
        print(f"Warning: {line}", file=sys.stderr)
    for name, value in results.items():
        if not name.endswith("_std"):
            spread = f" +- {results[f'{name}_std']:.6g}" if results.get(f"{name}_std") else ""
            print(f"{name:<28} {value:.6g}{spread}")
    if args.out:
        about = {"samples": args.samples, "reference": args.reference, "features": args.features}
        counts = {"sample_count": samples.count, "reference_count": reference.count}
        with replacing(args.out) as beside:
            beside.write_text(json.dumps(about | counts | results, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
