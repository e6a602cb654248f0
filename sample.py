"""Sample a grid of pictures from a checkpoint.

    python sample.py ODE --ckpt results/ComboStoc-XS-2-demo/ckpt.pt             # trained by `make demo`, on any CPU
    python sample.py SDE --ckpt FILE --class-labels 207 360 387 --cfg-scale 4   # one picture a label
    python sample.py ODE --image-size 256 --seed 1                              # SiT-XL/2's published weights, fetched
    python sample.py ODE --ckpt FILE --reference IMG --preserve left:0.9        # graded control: keep most of the left
    python sample.py ODE --ckpt FILE --likelihood --data-path FOLDER            # bits per dimension of images
    python sample.py ODE --ckpt FILE --reverse --data-path FOLDER               # images to noise and back

`python sample.py ODE --help` lists the arguments of a mode.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import kinds
from data.pictures import columns_for, grid, save_image, to_uint8
from runtime import distributed, precision, progress
from runtime.command_line import Parser, with_values
from runtime.files import replacing
from sampling import control, likelihood
from sampling.arguments import NULL, VARIATIONS, ignore_what_has_no_effect, pictures_parser
from sampling.kind import Kind
from sampling.labels import class_labels, default_labels
from sampling.network import ImageNoise, Network, draw, guided_by, say, with_progress
from train_utils import build_graded_sampler, build_sampler


def make_parser() -> Parser:
    """The parser of sample.py."""
    return pictures_parser(__doc__)


REVERSED_IMAGES = 8
UNCONDITIONAL = 8  # pictures without a class


def main(argv: Sequence[str] | None = None) -> None:
    """Sample pictures, or score or map images, as the command line says.

    Raises:
        UsageError: arguments that cannot work together, or with the checkpoint.
        DataError: a file cannot be used.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out {args.out} must end in .png")
    if not args.out.parent.is_dir():
        raise UsageError(f"--out {args.out}: folder {args.out.parent} does not exist")
    if args.mode == "ODE" and (args.likelihood or args.reverse):
        if args.likelihood and args.reverse:
            raise UsageError("--likelihood and --reverse are two different jobs; give one of them")
        job = "--likelihood" if args.likelihood else "--reverse"
        if args.data_path:
            kinds.check_images(args.data_path, job)
        likelihood.check_arguments(args, job)
        args = with_values(args, {"cfg_scale": 1.0})
        if args.class_labels:
            raise UsageError("--class-labels are for sampling; --likelihood and --reverse take the images' own")
        if args.reference:
            raise UsageError("--reference is for sampling; --likelihood and --reverse take --data-path")
    elif args.mode == "ODE" and args.data_path:
        raise UsageError(f"--data-path {args.data_path} is for --likelihood and --reverse; give one of them")
    control.check_arguments(args)
    for word in args.reference or []:
        if not any(kind.is_reference(word) for kind in kinds.KINDS):
            raise DataError(f"--reference {word} does not exist, as a picture or a set of shapes")
    classes = [k for k in args.class_labels or [] if k != NULL]
    if args.cfg_scale == 0 and classes:
        raise UsageError(f"--cfg-scale 0 samples without a class, --class-labels {classes[0]} of one: give one of them")
    without_class = not classes and (args.cfg_scale == 0 or args.class_labels or args.reference)
    if without_class and args.cfg_scale not in (None, 0, 1) and not args.guide_ckpt:
        raise UsageError(f"--cfg-scale {args.cfg_scale:g} guides towards a class: give --class-labels of classes")
    if args.glb is not None and not args.glb.parent.is_dir():
        raise UsageError(f"--glb {args.glb}: folder {args.glb.parent} does not exist")
    if args.glb is not None and args.glb.suffix.lower() != ".glb":
        raise UsageError(f"--glb {args.glb} must end in .glb")

    process = distributed.single(args.device)
    precision.setup(args.precision)
    network = kinds.load_network(args, process.device, default_vae="mse")
    kind = kinds.of_model(network.config.name)
    guidance = 1.0 if without_class else kind.CFG_SCALE
    args = with_values(args, network.settings | {"cfg_scale": guidance if args.cfg_scale is None else args.cfg_scale})
    kind.check_sampling(args, network)
    build_sampler(args, network.transport)  # complains about bad settings before a bar appears
    args, ignored = ignore_what_has_no_effect(args, parser, argv, kind.without_effect_in_sampling(args))
    say([*network.notes, *ignored])
    if args.likelihood:
        likelihood.score(args, network, process, seed=args.seed, batch_size=args.batch_size)
    elif args.reverse:
        reverse(args, network)
    elif args.reference:
        sample_graded(args, network, kind, process.device)
    else:
        sample(args, network, kind, process.device)


def sample(args: argparse.Namespace, network: Network, kind: Kind, device: torch.device) -> None:
    """Draw one picture for each class label and write them as a grid."""
    default = default_labels(network.num_labels) if args.cfg_scale else [NULL] * UNCONDITIONAL
    labels = class_labels(args.class_labels or map(str, default), network)
    drawn = []
    start_time = time.time()
    starts = range(0, len(labels), args.batch_size)
    total = build_sampler(args, network.transport).evaluations
    with progress.bar(total=total and total * len(starts), desc="model evaluations") as bar:
        model = with_progress(guided_by(args, network), bar)
        for start in starts:
            y = torch.tensor(labels[start : start + args.batch_size], device=device)
            noise = ImageNoise(args.seed, range(start, start + len(y)))
            x, nfe = draw(args, network, noise, y, model)
            drawn.append(x)
        samples = torch.cat(drawn)
        finished = kind.pictures(samples, network.autoencoder, network.image_size)
        rate = len(finished) / (time.time() - start_time)
    captions = [network.class_name(k) for k in labels]
    save_image(grid(finished, captions, columns_for(labels)), args.out)
    print(f"{len(labels)} pictures in {args.out}")
    kind.write_besides(args, samples, network)
    print(f"{args.mode} {args.sampling_method}: {nfe} model evaluations a batch, {rate:.2f} {kind.THINGS}/s")


def sample_graded(args: argparse.Namespace, network: Network, kind: Kind, device: torch.device) -> None:
    """Draw variations of each reference that keep what the map says, and write all side by side."""
    variations = args.variations or VARIATIONS
    labels = class_labels(args.class_labels or [NULL], network)
    labels *= len(args.reference) if len(labels) == 1 else 1
    keep = kind.load_control(args, network)
    total = build_graded_sampler(args, network.transport, keep.keep, keep.keep).evaluations  # or complains
    if warning := keep.untrained_times(network):
        print(f"{Path(__file__).name}: warning: {warning}", file=sys.stderr)
    batches = math.ceil(len(args.reference) * variations / args.batch_size)
    with progress.bar(total=total and total * batches, desc="model evaluations") as bar:
        model = with_progress(guided_by(args, network), bar)
        settings = {"seed": args.seed, "variations": variations, "batch_size": args.batch_size}
        samples, nfe = control.generate(args, network, keep, labels, model, device, **settings)
    captions = [network.class_name(k) for k in labels] if args.class_labels else ["sample"] * len(args.reference)
    save_image(keep.sheet(samples, captions, network.image_size), args.out)
    print(f"{variations} samples of each of {len(args.reference)} references in {args.out}")
    kind.write_besides(args, samples, network)
    print(f"{args.mode} {args.sampling_method}: {nfe} model evaluations a batch")


def reverse(args: argparse.Namespace, network: Network) -> None:
    """Map the first images of --data-path to noise and back; write originals above reconstructions, and the noise.

    Raises:
        FloatingPointError: the noise is not finite.
    """
    dataset = likelihood.images_of(args, network)
    images, y = likelihood.load_batch(dataset, range(min(REVERSED_IMAGES, len(dataset))), network)
    latents = network.images.encode(images, sample=False)
    with progress.bar(desc="model evaluations") as bar:
        model = with_progress(guided_by(args, network), bar)
        z = build_sampler(args, network.transport, reverse=True)(latents, model, y=y)[-1]
        back = build_sampler(args, network.transport)(z, model, y=y)[-1]
    if not z.isfinite().all():
        raise FloatingPointError(
            "the noise of the images is not finite: the model's weights are not, or the solver diverges with these "
            "settings"
        )
    rows = np.concatenate([to_uint8(images), to_uint8(network.images.decode(back))])
    save_image(grid(rows, columns=len(images)), args.out)
    noise_file = args.out.with_suffix(".noise.npy")
    with replacing(noise_file) as beside, open(beside, "wb") as file:
        np.save(file, z.cpu().numpy())
    error = ((back - latents).norm() / latents.norm()).item()
    print(f"noise of {len(images)} images in {noise_file}")
    print(f"its mean {z.mean():.3f} and standard deviation {z.std():.3f} would be 0 and 1 for a perfect model")
    print(f"images and their reconstructions in {args.out}; relative error {error:.2e}")


if __name__ == "__main__":
    run_program(main)
