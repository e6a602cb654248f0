"""Sample many images on all GPUs and pack them into the .npz from which FID is computed.

    torchrun --nproc_per_node=8 sample_ddp.py SDE --ckpt FILE --num-fid-samples 50000     # the paper's sampler
    torchrun --nproc_per_node=2 sample_ddp.py ODE --ckpt FILE --num-fid-samples 500       # two CPU processes
    python sample_ddp.py SDE --ckpt FILE --num-fid-samples 64                             # one process
    torchrun --nproc_per_node=8 sample_ddp.py ODE --ckpt FILE --likelihood --data-path FOLDER

Image i, its class and its noise are functions of (--global-seed, i): the images are the same for any number of
processes and any batch size, and a run that was interrupted continues where it stopped. (An adaptive ODE solver chooses
its steps for a whole batch, so with dopri5 images agree between batch sizes up to its tolerance.) arr_1 of the .npz are
the labels, and the .json beside it says what made it: checkpoint, settings, model evaluations, versions, seconds.
"""

from runtime.errors import UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kinds
from data.pictures import save_npz
from runtime import checkpoint, distributed, precision, progress
from runtime.command_line import Parser, positive_int, whole, with_values
from runtime.device import float64
from runtime.files import replacing, sha256
from sampling import likelihood, manifest
from sampling.arguments import ignore_what_has_no_effect, sampling_parser
from sampling.files import Files, check_room
from sampling.kind import Kind
from sampling.network import ImageNoise, Network, draw, guided_by, say
from train_utils import build_sampler

CFG_SCALE = 1.0


def add_program_args(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of sample_ddp.py alone."""
    group = parser.add_argument_group("program")
    group.add_argument(
        "--sample-dir", type=Path, default=Path("samples"), help="folder that gets a folder of samples for each setting"
    )
    group.add_argument("--per-proc-batch-size", type=positive_int, default=4, help="batch size of each process")
    group.add_argument("--num-fid-samples", type=positive_int, default=50_000, help="number of samples in all")
    group.add_argument("--global-seed", type=whole, default=0, help="seed of labels and noise")
    group.add_argument(
        "--balanced-labels", action="store_true", help="take the classes in turn; default: draw them at random"
    )
    for flag, name in (("--tf32", "tf32"), ("--no-tf32", "fp32")):  # SiT's names
        group.add_argument(flag, dest="precision", action="store_const", const=name, help=f"same as --precision {name}")


def make_parser() -> Parser:
    """The parser of sample_ddp.py."""
    return sampling_parser(__doc__, add_program_args, vae="ema", cfg_scale=CFG_SCALE, reverse=False)


SETTINGS = "settings.json"
WRITERS = 4  # threads that encode or check pictures
NAMED = 10  # at most this many damaged pictures get a line each that says why they are drawn again


def main(argv: Sequence[str] | None = None) -> None:
    """Draw and pack samples, or score images, as the command line says.

    Raises:
        UsageError: arguments that cannot work together, or with the checkpoint.
        DataError: a file cannot be used.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.likelihood:
        if args.data_path:
            kinds.check_images(args.data_path, "--likelihood")
        likelihood.check_arguments(args, "--likelihood")
    elif args.mode == "ODE" and args.data_path:
        raise UsageError(f"--data-path {args.data_path} is for --likelihood")
    guidance = 1.0 if args.likelihood else CFG_SCALE
    args = with_values(args, {"cfg_scale": guidance if args.cfg_scale is None else args.cfg_scale})
    process = distributed.setup(device_name=args.device)
    precision.setup(args.precision)
    network = kinds.load_network(args, process.device, default_vae="ema")
    args = with_values(args, network.settings)
    build_sampler(args, network.transport)  # complains about bad settings before anything is written
    kind = kinds.of_model(network.config.name)
    args, ignored = ignore_what_has_no_effect(args, parser, argv, kind.without_effect_in_sampling(args))
    say([*network.notes, *ignored] if process.is_main else [])
    if args.likelihood:
        likelihood.score(args, network, process, seed=args.global_seed, batch_size=args.per_proc_batch_size)
    else:
        sample_to_npz(args, network, kind, process)
    distributed.cleanup()


def sample_to_npz(args: argparse.Namespace, network: Network, kind: Kind, process: distributed.Process) -> None:
    """Draw the missing samples into a folder of these settings, then pack all, with a manifest beside the .npz."""
    files, what = kind.files(network), kind.THINGS
    folder = Path(distributed.from_main(lambda: str(make_folder(args, network, files, what))))
    start_time = time.time()
    try:
        drawn_here = sample_images(args, network, files, what, folder, process)
    except FloatingPointError:
        if process.is_main and not any(folder.glob(f"*{files.suffix}")):  # nothing was drawn
            (folder / SETTINGS).unlink(missing_ok=True)
            with suppress(OSError):  # another process may be writing
                folder.rmdir()
        raise
    work = distributed.sum_over_processes(drawn_here.to(float64(process.device)))
    distributed.barrier()  # all pictures are there
    if process.is_main:
        for left in folder.glob("*.tmp"):
            left.unlink()  # half-written when a run was killed
        seconds = time.time() - start_time
        labels = [y for part in batches(range(args.num_fid_samples), 1000) for y in labels_of(args, network, part)]
        npz = folder.with_name(folder.name + ".npz")
        files.pack([files.path(folder, i) for i in range(args.num_fid_samples)], labels, npz)
        drawn, evaluations = map(int, work.tolist())
        run = {"images": drawn, "model_evaluations": evaluations, "seconds": round(seconds, 2)}
        if drawn:
            print(f"{evaluations / drawn:g} model evaluations each, {drawn / seconds:.2f} {what}/s")
        manifest.write(args, network, process, run, json.loads((folder / SETTINGS).read_text()), npz)
        print(f"{args.num_fid_samples} {what} in {folder} and in {npz}")


def sample_images(
    args: argparse.Namespace, network: Network, files: Files, what: str, folder: Path, process: distributed.Process
) -> Tensor:
    """Draw this process's share, every world_size-th, of the samples that are missing or damaged.

    Args:
        files: how samples are written.
        what: plural of a sample, for messages.

    Returns:
        (2,) float64: the number of images, and the sum over them of model evaluations per image.
    """
    there = distributed.from_main(lambda: files.there(folder, args.num_fid_samples))
    faults = faults_in(folder, there, files, process)
    if process.is_main:
        named = [f"{files.path(folder, i)} {fault}; it is drawn again" for i, fault in faults.items()]
        say(named[:NAMED] + [f"and {len(named) - NAMED} more"] * (len(named) > NAMED))
    missing = sorted(set(range(args.num_fid_samples)) - set(there) | faults.keys())
    mine = missing[process.rank :: process.world_size]
    if process.is_main and len(missing) < args.num_fid_samples:
        print(f"continuing: {args.num_fid_samples - len(missing)} of {args.num_fid_samples} {what} are there")
    model = guided_by(args, network)
    writing: list[Future[None]] = []
    evaluations = 0
    with progress.bar(total=len(missing), desc=what) as bar, ThreadPoolExecutor(WRITERS) as pool:
        for indices in batches(mine, args.per_proc_batch_size):
            noise = ImageNoise(args.global_seed, indices)
            y = torch.tensor(labels_of(args, network, indices, noise), device=process.device)
            images, nfe = draw(args, network, noise, y, model)
            evaluations += nfe * len(indices)
            fetched = files.fetch(images)
            finish(writing)
            writing = [pool.submit(write, files, fetched, k, files.path(folder, i)) for k, i in enumerate(indices)]
            bar.update(min(len(indices) * process.world_size, bar.total - bar.n))
        finish(writing)
    return torch.tensor([len(mine), evaluations], dtype=torch.float64)


def faults_in(folder: Path, there: list[int], files: Files, process: distributed.Process) -> dict[int, str]:
    """The faults of samples that are there, by their numbers. All processes check a share, and all get the whole."""
    mine = there[process.rank :: process.world_size]
    with ThreadPoolExecutor(WRITERS) as pool:
        found = list(pool.map(lambda i: files.fault(files.path(folder, i)), mine))
    faults = {i: fault for i, fault in zip(mine, found, strict=True) if fault}
    return dict(sorted(item for part in distributed.gather(faults) for item in part.items()))


def batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The indices in consecutive batches of at most `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def labels_of(
    args: argparse.Namespace, network: Network, indices: Sequence[int], noise: ImageNoise | None = None
) -> list[int]:
    """The class of each image: drawn at random, or in turn (--balanced-labels), or none (--cfg-scale 0).

    Args:
        noise: the images' randomness. A label is drawn from it in every case, so that the noise after it is the same.
    """
    drawn = (noise or ImageNoise(args.global_seed, indices)).labels(network.num_labels)
    if args.cfg_scale == 0:
        return [network.config.num_classes] * len(indices)
    return [i % network.num_labels for i in indices] if args.balanced_labels else drawn.tolist()


def write(files: Files, fetched: Callable[[], np.ndarray], k: int, path: Path) -> None:
    """Write sample k of a batch that may still be on its way from the GPU, while the next one is being sampled."""
    files.write(fetched()[k], path)


def finish(writing: list[Future[None]]) -> None:
    """Wait until pictures are written, and raise what went wrong in writing."""
    for job in writing:
        job.result()


def create_npz_from_sample_folder(
    sample_dir: Path | str, num: int = 50_000, labels: Sequence[int] | None = None, size: int | None = None
) -> Path:
    """Pack the first `num` pictures of a folder, 000000.png and on, into an .npz beside it, whose path is returned.

    Args:
        size: side of the pictures in pixels; by default that of the first one.

    Raises:
        DataError: a picture is damaged, or of another size.
    """
    folder = Path(sample_dir)
    if size is None:
        with Image.open(picture_path(folder, 0)) as first:
            size = first.width
    npz = folder.with_name(folder.name + ".npz")
    save_npz([picture_path(folder, i) for i in range(num)], labels, npz, size)
    return npz


def picture_path(folder: Path, i: int) -> Path:
    """The file of picture i in a folder."""
    return folder / f"{i:06d}.png"


def settings_of(args: argparse.Namespace, network: Network) -> dict[str, object]:
    """All settings that an image depends on, by name."""
    ignored = {
        "sample_dir",
        "per_proc_batch_size",
        "num_fid_samples",
        "ckpt",
        "data_path",
        "compile",
        "device",
        "max_evaluations",
    }
    ignored |= {"likelihood", "reverse", "loss_weight", "train_eps", "guide_ckpt"}
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in ignored}
    settings |= {"checkpoint_sha256": sha256(*checkpoint.files(network.path))}
    if args.guide_ckpt and network.guide_path is not None:
        settings |= {"guide_sha256": sha256(*checkpoint.files(network.guide_path))}
    return settings


def make_folder(args: argparse.Namespace, network: Network, files: Files, what: str) -> Path:
    """Make the folder of these settings, with a record of them, on a disk that has room for the samples.

    Its name says model, step, guidance, sampler and seed, and ends in a digest of all settings, so that images of
    different settings or checkpoints never mix.
    """
    settings = settings_of(args, network)
    parts = [network.config.name.replace("/", "-"), f"{network.step:07d}", f"cfg{args.cfg_scale:g}"]
    parts += [args.mode, args.sampling_method, str(args.num_sampling_steps), f"seed{args.global_seed}"]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    folder = args.sample_dir / "-".join([*parts, digest])
    print(check_room(files, folder, args.num_fid_samples, what))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SETTINGS) as file:
        file.write_text(json.dumps(settings, indent=1) + "\n")
    return folder


if __name__ == "__main__":
    run_program(main)
