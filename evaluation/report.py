"""The comparison of two sets of images that evaluate.py prints and writes."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

import torch

from evaluation.features import load_extractor
from evaluation.metrics import Statistics, compare, report_name
from evaluation.statistics import Source, open_source, save_statistics, warnings_about, warnings_about_sizes
from runtime import distributed
from runtime.distributed import Process
from runtime.errors import UsageError
from runtime.files import replacing


def evaluate(args: argparse.Namespace, process: Process) -> None:
    """Save the statistics of SAMPLES, compare them with REFERENCE, or both.

    Raises:
        UsageError: the arguments do not fit the content of the sources.
        DataError: a source cannot be read.
    """
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
        print_report(args, samples, reference, process.device)


def check_image_size(image_size: int | None, sources: Sequence[Source]) -> None:
    """See that --image-size fits the sources. It crops pictures of folders; the images of a file must have it.

    Raises:
        UsageError: the images of a file have another size, or no source has images.
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
    """Warnings about samples and reference that can be given before their images are looked at."""
    if len(sources) < 2:
        return
    samples = sources[0]
    if samples.images is not None and samples.has_moments:
        yield (
            f"{samples.name}, which stands first, holds both images and their statistics, as a reference does: is it "
            "the samples?"
        )
    yield from warnings_about_sizes(*(None if s.images is None else s.images.size for s in sources))


def print_report(args: argparse.Namespace, samples: Statistics, reference: Statistics, device: torch.device) -> None:
    """Print the numbers of samples against a reference, and write them to --out, if it is given."""
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
