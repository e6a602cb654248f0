"""The cost of a run that can be continued: bookkeeping after each step, the check for finite gradients, saving.

    python benchmarks/bookkeeping.py --model ComboStoc-S/2 --batch-size 8      # a CPU
    python benchmarks/bookkeeping.py --precision bf16 --compile                # a GPU

Each part is timed by itself and set against the time of a step, because a part is far below what repeated timings of a
step differ by.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import measure
from benchmarks.cases import FACTOR, Case, Trained, training_work
from data.autoencoder import latent_size
from kinds import MODEL_NAMES, model_name
from runtime import checkpoint, distributed, precision
from runtime.command_line import Parser, positive_int
from runtime.errors import run_program
from training.bookkeeping import Bookkeeping
from training.step import Step


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of bookkeeping.py."""
    on_gpu = torch.cuda.is_available()
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=model_name, default="ComboStoc-XL/2", help=f"architecture: {MODEL_NAMES}")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="images per step")
    parser.add_argument("--image-size", type=positive_int, default=256, help="side in pixels; latents have an eighth")
    parser.add_argument("--rounds", type=positive_int, default=10 if on_gpu else 5, help="timings of each part")
    parser.add_argument("--json", type=Path, help="file to write the results to, as JSON")
    precision.add_speed_args(parser)
    args = parser.parse_args(argv)
    latent_size(args.image_size, FACTOR, args.model)
    return args


def parts(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of a step and of each part, medians over rounds."""
    kind = "UNSYNC_NONE" if args.model.startswith("SiT") else "UNSYNC_ALL"
    case = Case(args.model, kind, args.batch_size, args.image_size // FACTOR, args.precision, args.compile)
    shared: dict[Case, Trained] = {}
    work = training_work(case, args, device, shared)
    (trained,) = shared.values()
    work.run()  # gradients and moments exist
    books = Bookkeeping(distributed.single(), (), max_bad_steps=10, saved={}, source="")
    step = Step(torch.tensor(0.5, device=device), torch.tensor(False, device=device))
    gradients = [p.grad for p in trained.model.parameters() if p.grad is not None]

    def bookkeeping() -> None:
        torch.manual_seed(distributed.seed_for(0, "step", 1, 0))
        books.add(step)
        books.agree(0)

    def check() -> None:
        bad = ~nn.utils.get_total_norm(gradients).isfinite()
        trained.opt.found_inf = bad.float()

    repeated = measure.interleaved({"bookkeeping": bookkeeping, "check": check}, args.rounds, 20, device)
    seconds = measure.interleaved({"step": work.run}, args.rounds, 1, device) | repeated

    # Saving: training waits for the copy, and goes on while the file is written.
    state = {"model": trained.model.state_dict(), "ema": trained.ema.state_dict(), "opt": trained.opt.state_dict()}
    saver, waits, writes = checkpoint.Saver(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            measure.synchronize(device)
            start = time.perf_counter()
            saver.submit(lambda copy: checkpoint.save(Path(folder) / "a.pt", copy), state)
            waits.append(time.perf_counter() - start)
            saver.wait()
            writes.append(time.perf_counter() - start - waits[-1])
        size = (Path(folder) / "a.pt").stat().st_size
    saver.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": str(case) + f", batch {args.batch_size}",
        "seconds": {name: round(value, 9) for name, value in median.items()},
        "share_of_step": {name: round(median[name] / median["step"], 7) for name in ("bookkeeping", "check")},
        "save": {"gib": round(size / 2**30, 3), "seconds_waited": min(waits), "seconds_written_beside": min(writes)},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Time the parts of a step, and print them."""
    args = parse_args(argv)
    device = distributed.single().device
    precision.setup(args.precision)
    report = {"environment": measure.environment(device)} | parts(args, device)
    seconds, share, save = report["seconds"], report["share_of_step"], report["save"]
    print(f"{report['case']}: a step takes {seconds['step']:.4g} s, of which")
    print(f"seeding, loss window, agreement   {seconds['bookkeeping'] * 1e3:8.3f} ms  {share['bookkeeping']:.4%}")
    print(f"norm of the gradients             {seconds['check'] * 1e3:8.3f} ms  {share['check']:.4%}")
    print(f"a checkpoint of {save['gib']:.2f} GiB: training waits {save['seconds_waited']:.2f} s, ", end="")
    print(f"{save['seconds_written_beside']:.2f} s of writing go on beside it")
    measure.conclude(report, args.json)


if __name__ == "__main__":
    run_program(main)
