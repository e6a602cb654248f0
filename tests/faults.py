"""Runs of train.py that are killed at a chosen moment, started by `tests.forked`."""

import csv
import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from runtime import checkpoint, distributed, files
from sampling import monitor
from tests.conftest import DIGITS_ARGS
from tests.forked import start
from training import experiment
from training import step as training_step
from transport import Transport

STEPS = 40
RUN = [
    *(*DIGITS_ARGS, "--global-batch-size", "64", "--grad-accum", "2", "--max-steps", str(STEPS)),  # 28 steps an epoch
    *("--log-every", "3", "--reckpt-every", "4", "--ckpt-every", "10", "--sample-every", "40"),
]
NAME = "ComboStoc-XS-4-exp_tmp"  # of its folder
MOMENTS = ("step", "half a file", "before renaming", "after renaming", "log")
SILENCE = 3.0  # seconds until a process gives up on one that was stopped


@dataclass(frozen=True)
class Fault:
    """Something that happens to a process.

    Attributes:
        what: a signal, "full disk", "dead worker" or "infinite loss". SIGKILL and SIGSTOP strike the process, other
            signals its process group, data workers included.
        moment: "begin" of a step, or one of `MOMENTS`, the first such after a step has begun: between optimiser and
            average, in the middle of writing a checkpoint, before or after it gets its name, after a line of
            metrics.csv. Or "half a picture", in the middle of writing one in sample_ddp.py, or "evaluation",
            in the middle of the first one of train.py.
        step: of the run, or later where that one is past; or a picture's number.
        rank: the process.
    """

    what: str
    moment: str
    step: int
    rank: int = 0


def strike(fault: Fault) -> None:
    if fault.what == "full disk":  # files cannot grow beyond this, as if it were the disk's end
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, -1))
    elif fault.what == "dead worker":
        worker = multiprocessing.active_children()[0]
        os.kill(worker.pid or 0, signal.SIGKILL)
    elif fault.what in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), signal.Signals[fault.what])
    else:
        os.killpg(os.getpgid(0), signal.Signals[fault.what])


def arm(fault: Fault) -> None:
    """Put the fault into this process."""
    state = {"armed": False, "done": False}

    def hit(moment: str) -> None:
        if state["armed"] and not state["done"] and moment == fault.moment:
            state["done"] = True
            strike(fault)

    def seed_for(*parts: int | str, original=distributed.seed_for) -> int:
        if parts[1] == "step" and int(parts[2]) >= fault.step:
            state["armed"] = True
            if fault.what != "infinite loss":
                hit("begin")
        return original(*parts)

    def training_losses(self, *args, original=Transport.training_losses, **settings):
        terms = original(self, *args, **settings)
        if state["armed"] and not state["done"] and fault.what == "infinite loss":
            state["done"] = True
            terms["loss"] = terms["loss"] + torch.inf  # its gradients are finite
        return terms

    def update_ema(*args, original=training_step.update_ema, **settings) -> None:
        hit("step")
        original(*args, **settings)

    def save(content, file, original=torch.save, **settings) -> None:
        if state["armed"] and not state["done"] and fault.moment == "half a file":
            original(content, file, **settings)
            file.truncate(file.tell() // 2)
            file.flush()
            hit("half a file")
            file.seek(0)
            file.truncate()
        original(content, file, **settings)

    def replace(source, target, original=os.replace) -> None:
        is_checkpoint = str(target).endswith(".pt")
        if is_checkpoint:
            hit("before renaming")
        original(source, target)
        if is_checkpoint:
            hit("after renaming")

    def save_picture(image, file, original=Image.Image.save, **settings) -> None:
        original(image, file, **settings)
        if fault.moment == "half a picture" and int(file.name.partition(".")[0]) >= fault.step:
            os.truncate(file, file.stat().st_size // 2)
            strike(fault)

    def labels(self, classes, original=monitor.ImageNoise.labels):
        hit("evaluation")
        return original(self, classes)

    def flush(path, original=files.flush) -> None:
        original(path)
        if path.name == "metrics.csv":
            hit("log")

    distributed.seed_for, training_step.update_ema, torch.save, os.replace = seed_for, update_ema, save, replace
    Transport.training_losses = training_losses
    experiment.flush = flush
    monitor.ImageNoise = type("Noise", (monitor.ImageNoise,), {"labels": labels})
    if fault.moment == "half a picture":
        Image.Image.save = save_picture


def await_fault(fault: Fault, rank: int) -> None:
    """What the processes of a run begin with, of which it happens to one."""
    if fault.what == "SIGSTOP":
        distributed.TIMEOUT = timedelta(seconds=SILENCE)
    if fault.rank == rank:
        arm(fault)


def launch(
    argv: list[str], log: Path, *, world_size: int = 1, fault: Fault | None = None, program: str = "train"
) -> list[int]:
    """Run until the end or the fault, and return the exit codes. When a process is killed, so are the others.

    In an argument, {rank} is the process's own.
    """
    before = partial(await_fault, fault) if fault is not None else None
    processes = start(program, argv, stdout=log, stderr=log, world_size=world_size, before=before)
    deadline = time.monotonic() + 120
    while any(p.exitcode is None for p in processes):
        ended = [p.exitcode for p in processes if p.exitcode is not None]
        is_stopped = fault is not None and fault.what == "SIGSTOP" and ended
        if -signal.SIGKILL in ended or is_stopped or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.01)
    for process in processes:
        process.join()
    return [p.exitcode or 0 for p in processes]


def random_faults(what: str, count: int, steps: int, world_size: int, seed: int) -> list[Fault]:
    """Random moments in ascending steps."""
    rng = random.Random(seed)
    moments = [MOMENTS[k % len(MOMENTS)] for k in range(count)]
    rng.shuffle(moments)
    chosen = sorted(rng.sample(range(1, steps - 12), count))  # the last save that is sure to be before the end
    # Files are written by the first process.
    return [
        Fault(what, moment, step, rng.randrange(world_size) if moment == "step" else 0)
        for moment, step in zip(moments, chosen, strict=True)
    ]


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Model, average and optimiser of a checkpoint, by name."""
    content = checkpoint.load(path)
    opt = {f"opt.{k}.{name}": v for k, s in content["opt"]["state"].items() for name, v in s.items()}
    return {f"{part}.{k}": v for part in ("model", "ema") for k, v in content[part].items()} | opt


def differences(a: Path, b: Path) -> list[str]:
    """What two experiment folders differ in: tensors of ckpt.pt, or metrics.csv."""
    first, second = tensors_of(a / "ckpt.pt"), tensors_of(b / "ckpt.pt")
    names = [k for k in first.keys() | second.keys() if k not in first or k not in second]
    names += [k for k in first.keys() & second.keys() if not torch.equal(first[k], second[k])]
    same_log = (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()
    return sorted(names) + ["metrics.csv"] * (not same_log)
