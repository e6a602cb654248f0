"""Write the averaged weights of a checkpoint to a file of their own, a quarter of the size, or as a diffusers pipeline.

    python export.py results/ComboStoc-XL-2-run/ckpt.pt --out weights.safetensors     # knows how it was trained
    python export.py results/ComboStoc-XL-2-run/ckpt.pt --out weights.pt              # a plain state dict
    python export.py SiT-XL-2-256.pt --out sit.safetensors                            # a published one
    python export.py results/ComboStoc-XL-2-run/ckpt.pt --diffusers pipeline          # opens without this code

CKPT is whatever sample.py takes: a checkpoint of train.py or of the official SiT or ComboStoc code, weights alone, a
published name, or hf://owner/repo/file. Both kinds of file are read by sample.py; the official programs read the .pt.
A model of shapes needs .safetensors, which keeps what its numbers mean.

A pipeline is a folder of weights, autoencoder and code for `DiffusionPipeline.from_pretrained(FOLDER,
custom_pipeline=FOLDER, trust_remote_code=True)`, which needs diffusers and torch alone.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import download
import kinds
from exporting import folder
from runtime import checkpoint
from runtime.command_line import Parser
from train_utils import check_weights


def make_parser() -> Parser:
    """The parser of export.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("ckpt", metavar="CKPT", help="the checkpoint to export")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FILE", help="file to write the weights to, .safetensors or .pt")
    target.add_argument(
        "--diffusers", type=Path, metavar="FOLDER", help="folder to write a diffusers pipeline to; for images only"
    )
    parser.add_argument("--vae", help="autoencoder that goes into the pipeline of --diffusers, as sample.py takes it")
    parser.add_argument("--push-to-hub", metavar="REPO", help="Hub repository to upload the pipeline of --diffusers to")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export a checkpoint as the command line says.

    Raises:
        UsageError: arguments that cannot work together.
        DataError: the checkpoint cannot be read, or a folder does not exist.
    """
    args: argparse.Namespace = make_parser().parse_args(argv)
    if args.diffusers is not None:
        return write_pipeline(args)
    for name in ("vae", "push_to_hub"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)} is for --diffusers FOLDER")
    write_weights(args)


def write_pipeline(args: argparse.Namespace) -> None:
    """Write a checkpoint as a pipeline of diffusers.

    Raises:
        UsageError: the model is not one of images, or the folder is something else.
        DataError: the checkpoint or the autoencoder cannot be read.
    """
    folder.check_folder(args.diffusers)
    if args.push_to_hub:
        folder.check_token(args.push_to_hub)
    content = checkpoint.load(download.locate(args.ckpt))
    if (kind := kinds.of_state(checkpoint.weights(content, args.ckpt))) is not kinds.IMAGES:
        raise UsageError(f"--diffusers is for images; {args.ckpt} holds a model of {kind.THINGS}")
    vae = ["--vae", args.vae] if args.vae else []
    network = kinds.open_network(args.ckpt, *vae)
    for line in network.notes:
        print(f"export.py: {line}", file=sys.stderr)
    folder.write(network, checkpoint.training_args(content), args.diffusers)
    print(f"{network.config} as a pipeline of diffusers in {args.diffusers}")
    if args.push_to_hub:
        print(f"uploaded to {folder.push(args.diffusers, args.push_to_hub)}")


def write_weights(args: argparse.Namespace) -> None:
    """Write the averaged weights of a checkpoint to one file.

    Raises:
        UsageError: the file has another suffix, or is the checkpoint itself.
        DataError: the checkpoint cannot be read, or the folder does not exist.
    """
    if args.out.suffix not in (".safetensors", ".pt"):
        raise UsageError(f"--out {args.out} must end in .safetensors or .pt")
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist")
    path = download.locate(args.ckpt)
    if args.out.exists() and any(args.out.samefile(file) for file in checkpoint.files(path)):
        raise UsageError(f"--out {args.out} is the checkpoint itself, which holds more than is exported")
    content = checkpoint.load(path)
    weights = checkpoint.weights(content, args.ckpt)
    kind = kinds.of_state(weights)
    config = kind.model_config(weights, args.ckpt)
    kept = [name for name in kind.KEPT if name in content]
    if args.out.suffix == ".pt" and kept:
        raise UsageError(
            f"--out {args.out}: of a model of {kind.THINGS} it must end in .safetensors, which keeps the "
            f"{' and '.join(kept)}"
        )
    with torch.device("meta"):  # without memory
        model = config.build()
    lines = checkpoint.origin(content, args.ckpt) + check_weights(model, weights, args.ckpt)
    own = model.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name in own}
    for line in lines:
        print(f"export.py: {line}", file=sys.stderr)
    if args.out.suffix == ".pt":
        checkpoint.save(args.out, {name: tensor.clone() for name, tensor in weights.items()})
    else:
        about = {"step": checkpoint.step(content), "args": checkpoint.training_args(content)}
        about |= {name: content[name] for name in ("class_names", *kind.KEPT) if name in content}
        checkpoint.export(args.out, {"ema": weights, **about})
    print(f"{config} in {args.out}, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_program(main)
