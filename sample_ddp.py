"""Sample many images on all GPUs and pack them into the .npz from which FID is computed.

    torchrun --nproc_per_node=8 sample_ddp.py SDE --ckpt FILE --num-fid-samples 50000     # the paper's sampler
    torchrun --nproc_per_node=2 sample_ddp.py ODE --ckpt FILE --num-fid-samples 500       # two CPU processes
    python sample_ddp.py SDE --ckpt FILE --num-fid-samples 64                             # one process
    torchrun --nproc_per_node=8 sample_ddp.py ODE --ckpt FILE --likelihood --data-path FOLDER

Image i, its class and its noise are functions of (--global-seed, i): the images are the same for any number of
processes and any batch size, and a run that was interrupted continues where it stopped. (An adaptive ODE solver chooses
its steps for a whole batch, so with dopri5 images agree between batch sizes up to its tolerance.)
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import distributed
import likelihood
from errors import UsageError, run_program
from pictures import save_image, save_npz, to_uint8
from sampling import ImageNoise, Network, guided, load_network, sampling_parser
from train_utils import build_sampler, positive_int

CFG_SCALE = 1.0


def add_program_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("program")
    group.add_argument("--sample-dir", type=Path, default=Path("samples"), help="a folder for each setting goes here")
    group.add_argument("--per-proc-batch-size", type=positive_int, default=4, help="images at a time in a process")
    group.add_argument("--num-fid-samples", type=positive_int, default=50_000, help="images in all")
    group.add_argument("--global-seed", type=int, default=0, help="of labels and noise")
    group.add_argument(
        "--tf32", action=argparse.BooleanOptionalAction, default=True, help="TF32 matrix products on Ampere and later"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = sampling_parser(__doc__, add_program_args, vae="ema", cfg_scale=CFG_SCALE, reverse=False)
    args = parser.parse_args(argv)
    if args.likelihood:
        likelihood.check_arguments(args, "--likelihood")
    args.cfg_scale = args.cfg_scale or CFG_SCALE
    process = distributed.setup()
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    torch.backends.cudnn.allow_tf32 = args.tf32
    network = load_network(args, process.device, default_vae="ema")
    build_sampler(args, network.transport)  # complains about bad settings before anything is written
    if args.likelihood:
        likelihood.score(args, network, process, seed=args.global_seed, batch_size=args.per_proc_batch_size)
    else:
        sample_to_npz(args, network, process)
    distributed.cleanup()


def sample_to_npz(args: argparse.Namespace, network: Network, process: distributed.Process) -> None:
    """Draw what is missing into a folder of its own, then pack it."""
    folder = args.sample_dir / folder_name(args, network)
    if process.is_main:
        claim_folder(folder, settings_of(args, network))
    distributed.barrier()
    sample_images(args, network, folder, process)
    distributed.barrier()  # all pictures are there
    if process.is_main:
        npz = folder.with_suffix(".npz")
        save_npz([picture_path(folder, i) for i in range(args.num_fid_samples)], npz)
        print(f"{args.num_fid_samples} images in {folder} and in {npz}")


def sample_images(args: argparse.Namespace, network: Network, folder: Path, process: distributed.Process) -> None:
    """Draw this process's images, every world_size-th of those that are not there yet."""
    missing = [i for i in range(args.num_fid_samples) if not picture_path(folder, i).is_file()]
    distributed.barrier()  # every process has counted before any writes
    mine = missing[process.rank :: process.world_size]
    if process.is_main and len(missing) < args.num_fid_samples:
        print(f"continuing: {args.num_fid_samples - len(missing)} of {args.num_fid_samples} images are there")
    shape = (network.config.in_channels,) + (network.config.input_size,) * 2
    model = guided(network.model, args.cfg_scale)
    start_time = time.time()
    bar = tqdm(total=len(missing), desc="images", disable=None if process.is_main else True)
    for start in range(0, len(mine), args.per_proc_batch_size):
        indices = mine[start : start + args.per_proc_batch_size]
        noise = ImageNoise(args.global_seed, indices)
        y = noise.labels(network.config.num_classes).to(process.device)
        z = noise.randn(shape, process.device)
        sampler = build_sampler(args, network.transport, **({"randn": noise.randn_like} if args.mode == "SDE" else {}))
        images = to_uint8(network.autoencoder.decode(sampler(z, model, y=y)[-1]))
        for i, image in zip(indices, images, strict=True):
            save_image(Image.fromarray(image), picture_path(folder, i))
        bar.update(min(len(indices) * process.world_size, bar.total - bar.n))
    bar.close()
    if process.is_main and mine:
        rate = len(mine) / (time.time() - start_time)
        print(f"{sampler.nfe} model evaluations a batch, {rate * process.world_size:.2f} images/s")


def picture_path(folder: Path, i: int) -> Path:
    return folder / f"{i:06d}.png"


def folder_name(args: argparse.Namespace, network: Network) -> str:
    """Model, checkpoint, guidance, sampler and seed, readable."""
    parts = [network.config.name.replace("/", "-"), network.path.stem, f"{network.step:07d}"]
    parts += [f"cfg{args.cfg_scale:g}", args.mode, args.sampling_method, str(args.num_sampling_steps)]
    if args.mode == "SDE":
        parts += [args.diffusion_form, str(args.last_step), f"{args.last_step_size:g}"]
    return "-".join([*parts, f"seed{args.global_seed}"])


def settings_of(args: argparse.Namespace, network: Network) -> dict[str, object]:
    """Everything that an image depends on."""
    ignored = {"sample_dir", "per_proc_batch_size", "num_fid_samples", "ckpt", "data_path"}
    ignored |= {"likelihood", "reverse", "loss_weight", "train_eps"}
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in ignored}
    with open(network.path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 24):
            digest.update(block)
    return settings | {"checkpoint_sha256": digest.hexdigest()}


def claim_folder(folder: Path, settings: dict[str, object]) -> None:
    """Make the folder, or check that what is in it was made with the same settings.

    Raises:
        UsageError: it holds images of other settings.
    """
    record = folder / "settings.json"
    if record.is_file():
        found = json.loads(record.read_text())
        for key in settings:
            if found.get(key) != settings[key]:
                raise UsageError(
                    f"{folder} holds images made with {key} = {found.get(key)}, now it is {settings[key]}; "
                    "remove the folder or give another --sample-dir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
