"""Faults of every kind: runs are struck, continued by the same command, and compared with one that was not.

    python -m tests.fault_drill              # a table; minutes on two CPU cores
    python -m tests.fault_drill --count 30

A fault is survived if the command that is given again goes on. Data lost: tensors of model, average and optimiser, and
lines of the log, in which a run differs in the end from the uninterrupted one.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import MOMENTS, NAME, RUN, STEPS, Fault, differences, launch, random_faults

WORKERS = ["--num-workers", "2"]


def series(what: str, count: int, world_size: int, seed: int) -> list[Fault]:
    """Faults of a kind in ascending steps."""
    if what.startswith("SIG") and what != "SIGSTOP":
        return random_faults(what, count, STEPS, world_size, seed)
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(1, STEPS - 12), count))
    rank = 0 if what == "full disk" else world_size - 1
    return [Fault(what, "begin", step, rank) for step in steps]


def harm(path: Path, how: str) -> None:
    """Damage a checkpoint."""
    data = bytearray(path.read_bytes())
    if how == "truncated checkpoint":
        data = data[: len(data) // 3]
    elif how == "flipped bit in a checkpoint":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    path.write_bytes(data)


def drill(root: Path, what: str, count: int, world_size: int, seed: int) -> tuple[int, int, str]:
    """Faults of a kind in one run: how many were tried and survived, and what the run lost in the end."""
    argv, log = [*RUN, *WORKERS, "--results-dir", str(root)], root / "output"
    survived = 0
    is_damage = "checkpoint" in what
    for fault in series("SIGKILL" if is_damage else what, count, world_size, seed):
        begun = (root / NAME / "ckpt.pt").is_file()
        codes = launch(argv, log, world_size=world_size, fault=fault)
        if is_damage and (root / NAME / "ckpt-previous.pt").is_file():
            harm(root / NAME / "ckpt.pt", what)
        text = log.read_text()
        survived += any(codes) and "Traceback" not in text and (not begun or "Continuing" in text)
    codes = launch(argv, log, world_size=world_size)
    return survived, count, "all" if any(codes) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="faults a run")
    args = parser.parse_args()
    kinds = ["SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "full disk", "dead worker", "SIGSTOP"]
    kinds += ["truncated checkpoint", "flipped bit in a checkpoint", "empty checkpoint"]
    with tempfile.TemporaryDirectory() as folder:
        whole = {}
        for world_size in (1, 2):
            root = Path(folder) / f"whole {world_size}"
            root.mkdir()
            assert (
                launch([*RUN, "--results-dir", str(root)], root / "output", world_size=world_size) == [0] * world_size
            )
            whole[world_size] = root / NAME
        print(f"Runs of {STEPS} steps, two data workers a process; signals strike at one of: {', '.join(MOMENTS)}")
        print(f"{'fault':30}{'processes':>10}{'tried':>8}{'survived':>10}{'data lost':>11}{'s':>6}")
        failed = False
        for what in kinds:
            for world_size in (1, 2) if what != "SIGSTOP" else (2,):
                root, start_time = Path(folder) / f"{what} {world_size}", time.monotonic()
                root.mkdir()
                survived, tried, lost = drill(root, what, args.count, world_size, seed=world_size)
                missing = [lost] if lost else differences(whole[world_size], root / NAME)
                seconds = time.monotonic() - start_time
                print(f"{what:30}{world_size:10}{tried:8}{survived:10}{len(missing):11}{seconds:6.0f}", flush=True)
                if missing or survived < tried:
                    failed = True
                    print(f"  {missing[:5]}\n{(root / 'output').read_text()[-2000:]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
