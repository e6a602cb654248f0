"""Long checks, by `make drill`."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from tests.conftest import ROOT
from tests.faults import metrics

DIGITS = "--data-path digits --vae none --image-size 8 --num-classes 10 --num-workers 0 --model ComboStoc-XS/2".split()


@pytest.mark.drill
def test_bf16_follows_the_loss_of_fp32_for_a_thousand_steps(tmp_path):
    """Under the same seed, within 2 % in every hundred steps."""
    losses = {}
    for precision in ("fp32", "bf16"):
        args = [*DIGITS, "--results-dir", str(tmp_path), "--exp", precision, "--precision", precision]
        train.main([*args, "--global-batch-size", "128", "--lr", "1e-3", "--max-steps", "1000", "--log-every", "100"])
        rows = metrics(tmp_path / f"ComboStoc-XS-2-{precision}")
        losses[precision] = [float(row["loss"]) for row in rows]
    print("\nsteps     fp32     bf16  difference")
    for k, (a, b) in enumerate(zip(losses["fp32"], losses["bf16"], strict=True)):
        print(f"{100 * (k + 1):5d}  {a:.5f}  {b:.5f}  {b / a - 1:+.2%}")
    assert len(losses["fp32"]) == 10 and losses["fp32"][-1] < 0.7 * losses["fp32"][0]
    for a, b in zip(losses["fp32"], losses["bf16"], strict=True):
        assert abs(b / a - 1) < 0.02


def state_of(pid: int) -> tuple[int, int, int]:
    """Resident memory in KiB, open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    number = {key: int(status.split(f"{key}:")[1].split()[0]) for key in ("VmRSS", "Threads")}
    return number["VmRSS"], len(list(Path(f"/proc/{pid}/fd").iterdir())), number["Threads"]


@pytest.mark.drill
def test_three_thousand_steps_leave_nothing_behind(tmp_path):
    """With workers, logging, sampling, saving: after step 500 memory grows by less than 2 %, the rest not."""
    args = [*DIGITS, "--num-workers", "2", "--global-batch-size", "64", "--max-steps", "3000", "--log-every", "50"]
    args += ["--reckpt-every", "100", "--ckpt-every", "1000", "--sample-every", "250", "--results-dir", str(tmp_path)]
    log, seen = tmp_path / "ComboStoc-XS-2-exp_tmp" / "log.txt", {}
    command = [sys.executable, str(ROOT / "train.py"), *args]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            steps = re.findall(r"\(step=(\d+)\)", log.read_text()) if log.is_file() else []
            if steps and int(steps[-1]) not in seen:
                with contextlib.suppress(OSError, IndexError):  # it has just ended
                    seen[int(steps[-1])] = state_of(process.pid)
            time.sleep(0.02)
    assert process.returncode == 0
    print("\n step  memory (MiB)  open files  threads")
    for step in [s for s in seen if s % 250 == 0]:
        memory, files, threads = seen[step]
        print(f"{step:5d}{memory / 1024:14.1f}{files:12d}{threads:9d}")
    later = [value for step, value in seen.items() if step > 500]
    memory, files, threads = seen[500]
    assert len(later) > 40 and max(m for m, _, _ in later) < 1.02 * memory
    # More are open for a moment, while a checkpoint, a picture and a log line are written; none stays open.
    assert min(f for step, (_, f, _) in seen.items() if step > 2500) <= files
    assert max(f for _, f, _ in later) <= files + 5
    assert max(t for _, _, t in later) <= threads


@pytest.mark.drill
def test_a_study_that_is_ended_leaves_nothing_running_and_continues(tmp_path):
    """SIGTERM to the study alone, in the middle of training: the trainings save and end, and go on from there."""
    args = ["--out", "study", "--results-dir", ".", "--size", "XS/4", "--max-steps", "400", "--every", "200"]
    args += ["--samples", "20", "--num-sampling-steps", "3", "--seeds", "0", "--jobs", "2"]
    command = [sys.executable, str(ROOT / "experiments" / "ablation.py"), *args]
    settings = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **settings) as process:
        while not any("(step=0000080)" in log.read_text() for log in tmp_path.glob("*/log.txt")):
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
    assert process.returncode == 143
    logs = [log.read_text() for log in tmp_path.glob("*/log.txt")]
    assert 1 <= len(logs) <= 2 and sum("Stopped by SIGTERM" in log for log in logs) >= 1
    finished = subprocess.run(command, **settings, check=True)
    assert "UNSYNC_ALL is closer to the data than UNSYNC_NONE in this many seeds:" in finished.stdout
    assert len((tmp_path / "study.csv").read_text().splitlines()) == 1 + 4 * 2
    assert any("Continuing" in log.read_text() for log in tmp_path.glob("*/log.txt"))
