"""FID, sFID, inception score, KID, precision and recall of samples, without TensorFlow.

    python evaluate.py samples/XYZ.npz VIRTUAL_imagenet256_labeled.npz          # ADM's reference batch
    python evaluate.py samples/XYZ.npz FOLDER --image-size 256                  # against one's own pictures
    python evaluate.py FOLDER --image-size 256 --save-stats mine.npz            # their statistics, once
    python evaluate.py samples/XYZ.npz mine.npz
    python evaluate.py SAMPLES digits --features efficientnet-lite0             # nothing is fetched; is no FID

SAMPLES and REFERENCE are an .npz of images (arr_0, (N, H, W, 3) uint8), a folder of pictures, 'digits', or an .npz of
statistics (mu, sigma, and mu_s, sigma_s for sFID). The FID network's weights are fetched once, or read from --weights.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import distributed
import precision
import progress
from errors import DataError, UsageError, run_program
from evaluation import (
    Statistics,
    compare,
    extract,
    has_images,
    is_statistics,
    load_statistics,
    report_name,
    save_statistics,
    statistics_of,
    warnings_about,
)
from features import EXTRACTORS, Extractor, load_extractor
from files import replacing
from image_sets import open_images
from train_utils import Parser, positive_int


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("samples", metavar="SAMPLES", help="what is evaluated")
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help="what it is compared with")
    parser.add_argument("--features", choices=EXTRACTORS, default="inception", help="network that sees the images")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of inception; default: fetched once")
    parser.add_argument("--image-size", type=positive_int, help="crop pictures of folders to this, as training does")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images at a time")
    parser.add_argument("--save-stats", type=Path, metavar="FILE", help="write the statistics of SAMPLES, an .npz")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if not args.reference and not args.save_stats:
        raise UsageError("nothing to do: give a REFERENCE to compare with, or --save-stats FILE")
    for flag, path in (("--save-stats", args.save_stats), ("--out", args.out)):
        if path and not path.parent.is_dir():
            raise DataError(f"{flag} {path}: folder {path.parent} does not exist")
    if args.out and not args.reference:
        raise UsageError(f"--out {args.out} needs a REFERENCE to compare with")
    device = distributed.single().device
    precision.setup("fp32")
    sources = [s for s in (args.samples, args.reference) if s]
    for source in sources:
        check(source, args)
    extractor = load_extractor(args.features, args.weights, device)
    statistics = [load(source, args, extractor, device) for source in sources]
    if args.save_stats:
        save_statistics(statistics[0], args.save_stats)
        print(f"Statistics of {statistics[0].count:,} images in {args.save_stats}")
    if args.reference:
        report(args, *statistics)


def check(source: str, args: argparse.Namespace) -> None:
    """Open what is to be read, before anything takes time.

    Raises:
        DataError: it is missing or is not what it should be, or there are fewer than two images.
    """
    if Path(source).suffix == ".npz" and is_statistics(Path(source)):
        return
    if (count := len(open_images(source, args.image_size))) < 2:
        raise DataError(f"{source} holds {count} image; a distribution takes two or more")


def load(source: str, args: argparse.Namespace, extractor: Extractor, device: torch.device) -> Statistics:
    """Statistics from a file, or of images.

    ADM's reference batches have the moments of a whole data set and some of its images: both are used.
    """
    path, saved = Path(source), None
    if path.suffix == ".npz" and is_statistics(path):
        if not has_images(path):
            return load_statistics(path, extractor, device)
        if extractor.name == "inception":
            saved = load_statistics(path, extractor, device)
    images = open_images(source, args.image_size)
    batches = progress.bar(images.batches(args.batch_size), total=-(-len(images) // args.batch_size), desc=path.name)
    found = statistics_of(extract(batches, extractor), extractor, device)
    return replace(found, pooled=saved.pooled, spatial=saved.spatial, count=saved.count) if saved else found


def report(args: argparse.Namespace, samples: Statistics, reference: Statistics) -> None:
    results = {report_name(k, samples.extractor): v for k, v in compare(samples, reference).items()}
    for line in warnings_about(samples, reference):
        print(f"Warning: {line}", file=sys.stderr)
    for name, value in results.items():
        if not name.endswith("_std"):
            spread = f" +- {results[f'{name}_std']:.6g}" if f"{name}_std" in results else ""
            print(f"{name:<28} {value:.6g}{spread}")
    if args.out:
        about = {"samples": args.samples, "reference": args.reference, "features": args.features}
        counts = {"sample_count": samples.count, "reference_count": reference.count}
        with replacing(args.out) as beside:
            beside.write_text(json.dumps(about | counts | results, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
