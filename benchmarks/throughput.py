"""Images per second, memory and model FLOPs of training and sampling.

    python benchmarks/throughput.py train                                     # ComboStoc-XL/2, UNSYNC_ALL, batch 32
    python benchmarks/throughput.py train --precision bf16 --compile --compare --json train.json
    python benchmarks/throughput.py sample --precision bf16 --compile --compare
    python benchmarks/throughput.py train --model ComboStoc-S/2 --batch-size 8 --precision fp32 --compare \\
        --combostoc-type UNSYNC_ALL UNSYNC_VEC                                # on a CPU: some minutes
    python benchmarks/throughput.py train --data-path random                  # cached latents beside synthetic ones
    python benchmarks/throughput.py batches --model ComboStoc-S/2 --plot cost.png
    python benchmarks/throughput.py sizes                                     # memory and time of S, B, L, XL

--compare does the same work under the predecessor's settings (benchmarks/predecessor.py) and with the SiT of that
size, interleaved in one run, and reports medians of the ratios of each round. Training is the whole step on synthetic
latents; sampling is the paper's Euler SDE, latents only. `bash benchmarks/run_gpu.sh` runs all of it on a GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import kinds
from benchmarks import measure
from benchmarks.cases import FACTOR, RANDOM, Case, sampling_work, synthetic_batches, training_work
from data.autoencoder import latent_size
from models import SiT
from runtime import distributed, precision
from runtime.command_line import Parser, count, positive_int, with_values
from runtime.errors import DataError, first_line, run_program
from runtime.files import replacing
from train_utils import guidance_scale
from transport import ComboStocType
from transport.names import OF_SHAPES

SIZES = ("ComboStoc-S/2", "ComboStoc-B/2", "ComboStoc-L/2", "ComboStoc-XL/2")
GIB = 2**30


# ---- tasks ---------------------------------------------------------------------------------------------------------


def cases_of(args: argparse.Namespace, combostoc_type: str) -> dict[str, Case]:
    """The cases of one ComboStoc type, by their role."""
    ours = Case(
        model=args.model,
        combostoc_type="UNSYNC_NONE" if args.model.startswith("SiT") else combostoc_type,
        batch_size=args.batch_size,
        input_size=args.image_size // FACTOR,
        precision=args.precision,
        compile=args.compile,
        grad_checkpointing=args.grad_checkpointing,
    )
    cases = {"ours": ours}
    if args.data_path:
        cases["cached"] = replace(ours, cached=True)
    if args.compare:
        slow = "tf32" if args.precision == "bf16" else args.precision
        recompute = 1 if args.what == "train" else 0
        cases["predecessor"] = replace(
            ours, predecessor=True, precision=slow, compile=False, grad_checkpointing=recompute
        )
        sit = args.model.replace("ComboStoc", "SiT")
        cases["SiT"] = replace(ours, model=sit, combostoc_type="UNSYNC_NONE")
    return cases


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure all cases of the arguments, interleaved."""
    build = partial(training_work, shared={}) if args.what == "train" else sampling_work
    kinds = args.combostoc_type if args.what == "train" else ["UNSYNC_NONE"]
    roles = {kind: cases_of(args, kind) for kind in kinds}
    cases = {str(case): case for of_kind in roles.values() for case in of_kind.values()}
    works = {name: build(case, args, device) for name, case in cases.items()}
    seconds = measure.interleaved({n: w.run for n, w in works.items()}, args.rounds, args.repeats, device)
    peaks = {p: measure.peak_flops(device, p) for p in {case.precision for case in cases.values()}}
    results = []
    for name, case in cases.items():
        work, median = works[name], statistics.median(seconds[name])
        # beside others, a process's memory on the CPU says nothing about one of them
        alone = device.type == "cuda" or len(cases) == 1
        memory = measure.peak_memory(work.run, size_of(work.tensors()), device) if alone else None
        peak, source = peaks[case.precision]
        results.append(
            asdict(case)
            | {
                "name": name,
                "seconds": [round(s, 6) for s in seconds[name]],
                "images_per_s": round(case.batch_size / median, 3),
                "peak_memory_gib": memory and round(memory / GIB, 3),
                "model_gflops_per_image": round(work.flops / case.batch_size / 1e9, 2),
                "model_tflops_per_s": round(work.flops / median / 1e12, 3),
                "share_of_peak": round(work.flops / median / peak, 4),
                "peak": f"{peak / 1e12:.4g} TFLOP/s, {source}",
            }
        )
        if args.what == "sample":
            results[-1]["seconds_per_evaluation"] = round(median / args.num_sampling_steps, 6)
    ratios = {}
    for kind, of_kind in roles.items():
        suffix = f", {kind}" if args.what == "train" else ""
        for slow, fast in (("predecessor", "ours"), ("ours", "SiT"), ("predecessor", "SiT"), ("cached", "ours")):
            if slow in of_kind and fast in of_kind:
                pair = seconds[str(of_kind[slow])], seconds[str(of_kind[fast])]
                ratios[f"{slow} / {fast}{suffix}"] = round(measure.ratio(*pair), 4)
    return {"results": results, "ratios": ratios}


def size_of(tensors: list[Tensor]) -> int:
    """The bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def gib(size: float | None) -> str:
    """A number of GiB in words."""
    return "-" if size is None else f"{size:.1f}"


def print_comparison(report: dict[str, Any], what: str) -> None:
    """Print the results and the ratios of a report as tables in Markdown."""
    print(f"\n| {what} | images/s | peak GiB | model GFLOP an image | TFLOP/s | of the peak |")
    print("| --- | --- | --- | --- | --- | --- |")
    for r in report["results"]:
        print(
            f"| {r['name']}, batch {r['batch_size']} | {r['images_per_s']:.4g} | {gib(r['peak_memory_gib'])} | "
            f"{r['model_gflops_per_image']:.0f} | {r['model_tflops_per_s']:.3g} | {r['share_of_peak']:.0%} |"
        )
    if report["ratios"]:
        print("\n| time of | ratio |\n| --- | --- |")
        for name, value in report["ratios"].items():
            print(f"| {name} | {value:.3f} |")


def batches(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds per image of a training step at the batch size, twice it, and so on up to the largest that fits."""
    case = cases_of(args, args.combostoc_type[0])["ours"]
    work = training_work(case, args, device, {})
    work.run()
    free, size, steps = available_bytes(device), args.batch_size, {}
    while size <= args.max_batch_size:
        step = partial(work.on, *next(synthetic_batches(replace(case, batch_size=size), device)))
        try:
            extra = measure.peak_memory(step, 0, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        steps[size] = step
        if device.type == "cpu" and 2 * extra > 0.8 * free:  # the system would kill, not complain
            break
        size *= 2
    while True:
        try:
            seconds = measure.interleaved({str(n): s for n, s in steps.items()}, args.rounds, args.repeats, device)
            break
        except torch.OutOfMemoryError:  # what fits alone need not fit after the others
            steps.popitem()
            torch.cuda.empty_cache()
    sizes = list(steps)
    per_image = [statistics.median(seconds[str(n)]) / n for n in sizes]
    if args.plot:
        plot_cost(sizes, per_image, f"{case}\n{measure.environment(device)['device']}", args.plot)
    return asdict(case) | {"batch_sizes": sizes, "seconds_per_image": [round(s, 6) for s in per_image]}


def available_bytes(device: torch.device) -> int:
    """The free memory of a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def plot_cost(sizes: Sequence[int], per_image: Sequence[float], title: str, path: Path) -> None:
    """Draw the time per image against the batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(sizes, [s / per_image[0] for s in per_image], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("batch size")
    axes.set_ylabel(f"time an image, batch {sizes[0]} = 1")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=150)


def sizes(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Memory and time of a training step for each size, with and without recomputing, each in a process of its own."""
    rows = []
    for name in SIZES:
        for recompute in (0, 1):
            if row := in_own_process(args, name, recompute):
                rows.append(row | {"parameters": sum(p.numel() for p in meta_model(row).parameters())})
    print(
        f"\n| training, {args.precision}, batch {args.batch_size} | parameters | recomputed | peak GiB | s an image |"
    )
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['model']} {row['combostoc_type']} | {row['parameters'] / 1e6:.0f} M | "
            f"{'every block' if row['grad_checkpointing'] else 'none'} | {row['peak_memory_gib']:.1f} | "
            f"{1 / row['images_per_s']:.3g} |"
        )
    return {"results": rows}


def in_own_process(args: argparse.Namespace, model: str, recompute: int) -> dict[str, Any] | None:
    """The result of `train` for one model in a process of its own, whose memory is measured; None where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        flags = ["--model", model, "--grad-checkpointing", recompute, "--json", path, "--rounds", args.rounds]
        flags += ["--batch-size", args.batch_size, "--precision", args.precision, "--repeats", args.repeats]
        flags += ["--image-size", args.image_size] + ["--compile"] * args.compile
        subprocess.run([sys.executable, __file__, "train", *map(str, flags)], stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["results"][0] if path.is_file() else None


def meta_model(row: dict[str, Any]) -> SiT:
    """The model of a row of results, on the device meta, without memory."""
    case = Case(**{field.name: row[field.name] for field in fields(Case)})
    with torch.device("meta"):
        return case.config.build()


# ---- the program ---------------------------------------------------------------------------------------------------


def image_model(value: str) -> str:
    """The name of a model of images as an argument.

    Raises:
        argparse.ArgumentTypeError: it is of another kind, or there is no such model.
    """
    if kinds.of_model(kinds.model_name(value)) is not kinds.IMAGES:
        raise argparse.ArgumentTypeError(f"{value} is a model of shapes; images are measured")
    return value


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of throughput.py."""
    on_gpu = torch.cuda.is_available()
    parser = Parser(description=__doc__)
    tasks = parser.add_subparsers(dest="what", required=True, metavar="{train,sample,batches,sizes}")
    for what, title in (
        ("train", "training steps"),
        ("sample", "sampling"),
        ("batches", "cost of an image in training against the batch size"),
        ("sizes", "memory and time of training for all sizes of model"),
    ):
        sub = tasks.add_parser(what, help=title, description=title)
        if what != "sizes":
            sub.add_argument("--model", type=image_model, default="ComboStoc-XL/2", help=kinds.IMAGES.MODEL_NAMES)
        default = {"sizes": 2, "batches": 8}.get(what, 32)
        help = "images at a time" if what != "batches" else "the smallest"
        sub.add_argument("--batch-size", type=positive_int, default=default, help=help)
        if what in ("train", "batches"):
            names = [c.name for c in ComboStocType if c.name not in OF_SHAPES]
            several = {"nargs": "+", "metavar": "TYPE"} if what == "train" else {"nargs": 1}
            sub.add_argument("--combostoc-type", choices=names, help=", ".join(names), **several)
            sub.add_argument("--grad-checkpointing", type=count, metavar="K", help="recompute every K-th block")
        if what == "sample":
            sub.add_argument("--num-sampling-steps", type=positive_int, default=250, help="model evaluations a sample")
            sub.add_argument("--cfg-scale", type=guidance_scale, default=1.0, help="classifier-free guidance")
        if what in ("train", "sample"):
            sub.add_argument("--compare", action="store_true", help="also the predecessor's settings, and SiT")
        if what == "train":
            sub.add_argument("--data-path", help=f"cached latents to measure beside synthetic ones, or '{RANDOM}'")
            sub.add_argument("--num-workers", type=count, default=4, help="data loading processes")
        if what == "batches":
            sub.add_argument("--max-batch-size", type=positive_int, default=4096, help="stop here even if more fits")
            sub.add_argument("--plot", type=Path, help="draw the result into this PNG file")
        sub.add_argument("--image-size", type=positive_int, default=256, help="pixels; latents have an eighth")
        sub.add_argument("--rounds", type=positive_int, default=10 if on_gpu else 5, help="timings of each case")
        repeats = (1 if what == "sample" else 10) if on_gpu else 1
        sub.add_argument("--repeats", type=positive_int, default=repeats, help="runs that a timing spans")
        sub.add_argument("--json", type=Path, help="also write the results here")
        precision.add_speed_args(sub)
        sub.set_defaults(data_path=None, compare=False, grad_checkpointing=0, combostoc_type=["UNSYNC_ALL"])
    args = parser.parse_args(argv)
    if args.what != "sizes":
        latent_size(args.image_size, FACTOR, args.model)
    if args.data_path:  # a timing must outlast what the workers have ready when it starts
        args = with_values(args, {"repeats": max(args.repeats, 8 * args.num_workers)})
    if args.compile:
        precision.check_compiler()
        torch._dynamo.config.cache_size_limit = 64  # a case may be compiled for each of its batch sizes
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print the numbers.

    Raises:
        DataError: there is too little memory.
    """
    args = parse_args(argv)
    device = distributed.single().device
    task = {"train": compare, "sample": compare, "batches": batches, "sizes": sizes}[args.what]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    with tempfile.TemporaryDirectory() as folder:
        args = with_values(args, {"latents_folder": Path(folder)})
        try:
            report = {"environment": measure.environment(device), "settings": settings} | task(args, device)
        except torch.OutOfMemoryError as error:
            raise DataError(f"{first_line(error)} Try a smaller --batch-size.") from None
    if args.what in ("train", "sample"):
        print_comparison(report, {"train": "training", "sample": "sampling"}[args.what])
    elif args.what == "batches":
        for n, s in zip(report["batch_sizes"], report["seconds_per_image"], strict=True):
            print(f"batch {n:5d}: {s:.4g} s an image")
    measure.conclude(report, args.json)


if __name__ == "__main__":
    run_program(main)
