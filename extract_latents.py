"""Encode a folder of images to latents once, for training without the autoencoder in the loop.

    torchrun --nproc_per_node=8 extract_latents.py --data-path /path/to/imagenet/train --out imagenet-256
    torchrun --nproc_per_node=8 train.py --data-path imagenet-256
    python extract_latents.py --data-path FOLDER --vae VAE_FOLDER --image-size 64 --out latents    # one process

Both the image and its mirror image are kept (--no-flip: the image alone), as the mean and the standard deviation of the
posterior, or the latent where an autoencoder has no posterior, in float32 shards (64 KiB an image of 256 pixels with
SD-VAE, 84 GB for ImageNet). The same command again continues an extraction that was interrupted, on any number of
processes; the bytes are the same in the end. Mean and deviation of each channel over the set come with them, for
train.py's --latent-stats. Images that cannot be read are named, left out, and listed in manifest.json.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kinds
from data import workers
from data.autoencoder import LatentSpace, check_name, load_autoencoder
from data.images import UnreadableImage
from data.latents import (
    ENCODER,
    MANIFEST,
    OF_OLDER_VERSIONS,
    SETTINGS,
    UNSCALED,
    encoder_of,
    read_json,
    shard_batches,
    shard_ranges,
    signed,
)
from data.moments import ChannelMoments, joined_moments, moments_of
from data.sets import ImageFolder, check_same_everywhere, class_counts
from data.skipping import check_readable
from runtime import distributed, precision, progress
from runtime.command_line import Parser, positive_int
from runtime.device import add_device_arg
from runtime.files import replacing, sha256
from runtime.precision import PRECISIONS
from train_utils import add_bad_images_arg, add_flip_arg, add_workers_arg


def make_parser() -> Parser:
    """The parser of extract_latents.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", required=True, help="folder or .zip of images (read as RGB)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the latents to, the --data-path of train.py"
    )
    parser.add_argument(
        "--vae", default="ema", help="ema or mse (SD-VAE), or a diffusers folder of an image autoencoder"
    )
    parser.add_argument(
        "--image-size", type=positive_int, default=256, help="side in pixels to which images are resized and cropped"
    )
    parser.add_argument("--batch-size", type=positive_int, default=32, help="batch size of each process")
    add_device_arg(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32", help="matmul precision of the encoder")
    add_flip_arg(parser, "encode mirror images, too")
    add_bad_images_arg(parser)
    add_workers_arg(parser)
    return parser


SHARD_SIZE = 1024  # images in a shard


class Readable(Dataset[tuple[Tensor | None, int, str]]):
    """The images of a folder with their labels, and ""; where one cannot be read, None, -1 and the reason."""

    def __init__(self, images: ImageFolder) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        try:
            return *self.images[index, False], ""
        except UnreadableImage as error:
            return None, -1, str(error)


def collate(items: list[tuple[Tensor | None, int, str]]) -> tuple[Tensor | None, list[int], list[str]]:
    """The readable images of a batch, their labels, and the reasons of the others."""
    images = [image for image, _, _ in items if image is not None]
    labels = [label for image, label, _ in items if image is not None]
    return torch.stack(images) if images else None, labels, [reason for image, _, reason in items if image is None]


def main(argv: Sequence[str] | None = None) -> None:
    """Encode images to latents as the command line says.

    Raises:
        UsageError: arguments that cannot work together.
        DataError: images or autoencoder cannot be read, or too many images are damaged.
    """
    args = make_parser().parse_args(argv)
    if args.vae == "none":
        raise UsageError("--vae none has no latents to extract; give ema, mse or a diffusers folder")
    kinds.check_images(args.data_path, "an autoencoder")
    process = distributed.setup(device_name=args.device)
    precision.setup(args.precision)
    check_name(args.vae)
    images = ImageFolder(args.data_path, args.image_size)
    check_same_everywhere(images, args.data_path)
    autoencoder = load_autoencoder(args.vae, process.device)  # after the data: it may be fetched
    assert isinstance(autoencoder, LatentSpace)
    if args.image_size % autoencoder.factor:
        raise UsageError(f"--image-size {args.image_size} is not a multiple of the autoencoder's {autoencoder.factor}")
    autoencoder.check_size(args.image_size)
    autoencoder.encode_precision = args.precision
    settings = settings_of(args, autoencoder, images)

    if process.is_main:
        for note in images.notes:
            print(f"Warning: {note}", file=sys.stderr)
        print(f"Classes: {class_counts(images)}")
        open_folder(args.out, settings)
    distributed.barrier()
    shards = shard_ranges(len(images), SHARD_SIZE)
    missing = [k for k in range(len(shards)) if not is_done(args.out, k)]
    distributed.barrier()  # every process has looked before any writes
    if process.is_main and len(missing) < len(shards):
        print(f"continuing: {len(shards) - len(missing)} of {len(shards)} shards are there")
    extract(args, autoencoder, images, {k: shards[k] for k in missing[process.rank :: process.world_size]}, process)
    distributed.barrier()
    if process.is_main:
        manifest = write_manifest(args.out, read_json(args.out / SETTINGS), len(shards), args.max_bad_images)
        total, unreadable = sum(len(s["labels"]) for s in manifest["shards"]), len(manifest["unreadable"])
        print(f"latents of {total:,} images in {len(images.class_names)} classes in {args.out}")
        for name, values in manifest["statistics"].items():
            print(f"{name} of each channel: {' '.join(f'{value:.4g}' for value in values)}")
        if unreadable:
            print(f"{unreadable:,} images could not be read and are left out; {args.out / MANIFEST} lists them")
    distributed.cleanup()


def settings_of(args: argparse.Namespace, autoencoder: LatentSpace, images: ImageFolder) -> dict[str, Any]:
    """The settings that the latents depend on.

    Those that older versions do not have are there only where they differ from what older versions do.
    """
    return {
        "autoencoder": {"name": args.vae, **encoder_of(autoencoder)} | ({} if autoencoder.is_scaled else UNSCALED),
        "image_size": args.image_size,
        "latent_shape": [autoencoder.channels, *[args.image_size // autoencoder.factor] * 2],
        "precision": args.precision,
        "flip": args.flip,
        "class_names": images.class_names,
        "source": {"images": len(images), "listing_sha256": images.digest},
    } | ({} if autoencoder.has_posterior else {"posterior": False})


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, and record the settings in it.

    Raises:
        UsageError: it holds latents of other settings, or something else.
    """
    path = folder / SETTINGS
    if path.is_file():
        found = read_json(path)
        what = {"source": "of other images", "class_names": "of other images"}
        what["flip"] = f"{'without' if settings['flip'] else 'with'} mirror images"
        found = OF_OLDER_VERSIONS | found
        for name, value in settings.items():
            if not is_same(name, found.get(name), value):
                difference = what.get(name, f"with another {name.replace('_', ' ')}")
                raise UsageError(f"--out {folder} holds an extraction {difference}; give another folder")
        for left in [*folder.glob("*.tmp"), *folder.glob("records/*.tmp")]:
            left.unlink()  # half-written when the extraction was killed
    else:
        if folder.is_dir() and any(not left.name.endswith(".tmp") for left in folder.iterdir()):
            raise UsageError(f"--out {folder} is not empty and holds no extraction; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "records").mkdir(exist_ok=True)


def is_same(name: str, found: Any, value: Any) -> bool:
    """Whether a setting is that of the extraction that is continued; an autoencoder may have another name."""
    if name == "autoencoder" and isinstance(found, dict):
        return all(found.get(part) == value[part] for part in ENCODER)
    return found == value


def shard_path(folder: Path, k: int) -> Path:
    """The file of shard k."""
    return folder / f"{k:05d}.npy"


def record_path(folder: Path, k: int) -> Path:
    """The file of the record of shard k."""
    return folder / "records" / f"{k:05d}.json"


def is_done(folder: Path, k: int) -> bool:
    """Whether a shard is there, and its record, which is written after it."""
    if not record_path(folder, k).is_file():
        return False
    size = read_json(record_path(folder, k)).get("bytes")
    path = shard_path(folder, k)
    return size == (path.stat().st_size if path.is_file() else 0)


def extract(
    args: argparse.Namespace,
    autoencoder: LatentSpace,
    images: ImageFolder,
    shards: dict[int, range],
    process: distributed.Process,
) -> None:
    """Encode this process's shards and write each when it is complete."""
    batches = shard_batches(list(shards.values()), args.batch_size)
    loader = DataLoader(
        Readable(images),
        batch_sampler=batches,
        num_workers=args.num_workers,
        collate_fn=collate,
        pin_memory=process.device.type == "cuda",
    )
    start_time, encoded, left_out = time.time(), 0, []
    loaded = workers.loaded_by(workers.start(loader))
    with progress.bar(total=sum(map(len, shards.values())) * process.world_size, desc="images") as bar:
        for k, members in shards.items():
            moments, labels, unreadable = [], [], []
            for _ in shard_batches([members], args.batch_size):
                readable, batch_labels, reasons = next(loaded)
                labels += batch_labels
                unreadable += reasons
                if readable is not None:
                    x = readable.to(process.device, non_blocking=process.device.type == "cuda")
                    views = [x, x.flip(-1)] if args.flip else [x]
                    encoded_views = torch.stack([autoencoder.moments(view) for view in views], dim=1)
                    moments.append(encoded_views.cpu().numpy())  # (n, 2 or 1, 2, C, h, w)
                bar.update((len(batch_labels) + len(reasons)) * process.world_size)
            for reason in unreadable:
                print(f"left out: {reason}", file=sys.stderr)
            left_out += unreadable
            check_readable(left_out, len(images), args.max_bad_images)
            write_shard(args.out, k, moments, labels, unreadable)
            encoded += len(labels)
    if process.is_main and encoded:
        print(f"{encoded * process.world_size / (time.time() - start_time):.1f} images/s")


def write_shard(folder: Path, k: int, moments: list[np.ndarray], labels: list[int], unreadable: list[str]) -> None:
    """Write a shard, then its record; a shard without readable images has a record only."""
    record: dict[str, Any] = {"bytes": 0, "sha256": "", "labels": labels, "unreadable": unreadable}
    if moments:
        path = shard_path(folder, k)
        with replacing(path) as beside, open(beside, "wb") as file:
            np.save(file, np.concatenate(moments))
        record["statistics"] = joined_moments(map(moments_of, moments))
        record |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    with replacing(record_path(folder, k)) as beside:
        beside.write_text(json.dumps(record))


def write_manifest(folder: Path, settings: dict[str, Any], num_shards: int, max_bad_images: float) -> dict[str, Any]:
    """Join the records to the manifest, which completes the folder.

    Raises:
        DataError: too many images could not be read.
    """
    records = [read_json(record_path(folder, k)) for k in range(num_shards)]
    unreadable = [reason for record in records for reason in record["unreadable"]]
    check_readable(unreadable, settings["source"]["images"], max_bad_images)
    shards = [
        {"file": shard_path(folder, k).name, **{name: record[name] for name in ("bytes", "sha256", "labels")}}
        for k, record in enumerate(records)
        if record["labels"]
    ]
    if not shards:
        raise DataError(f"not one of {len(unreadable)} images could be read; the first: {unreadable[0]}")
    found = joined_moments(moments_of_shard(folder, k, record) for k, record in enumerate(records) if record["labels"])
    statistics = {"mean": found.mean, "std": found.std}
    manifest = signed(settings | {"unreadable": unreadable, "shards": shards, "statistics": statistics})
    with replacing(folder / MANIFEST) as beside:
        beside.write_text(json.dumps(manifest) + "\n")
    return manifest


def moments_of_shard(folder: Path, k: int, record: dict[str, Any]) -> ChannelMoments:
    """The moments of a shard; an older version did not write them into its record."""
    if "statistics" in record:
        return ChannelMoments(*record["statistics"])
    latents = np.load(shard_path(folder, k), mmap_mode="r")
    return joined_moments(moments_of(latents[start : start + 32]) for start in range(0, len(latents), 32))


if __name__ == "__main__":
    run_program(main)
