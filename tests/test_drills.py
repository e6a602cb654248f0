"""Long checks, by `make drill`."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from PIL import Image

import train
from tests.conftest import ROOT
from tests.faults import metrics
from tests.page_client import API, Client
from tests.test_app import serving

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


def files_of(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["pictures", "shapes"])
def test_twenty_visitors_at_once_leave_nothing_behind(kind, tmp_path):
    """For PAGE_SECONDS (120): uploads, generations, some of which nobody waits for, and new sessions as by reloading.

    After a first round of a few seconds, which loads what is loaded once, memory grows by less than 100 MiB; files and
    threads are as many as then as soon as the visitors have left.
    """
    if kind == "pictures":
        args = [*DIGITS, "--global-batch-size", "16", "--max-steps", "1", "--sample-every", "0"]
    else:
        args = "--data-path shapes --model Parts-XS --num-classes 6 --num-workers 0 --global-batch-size 4".split()
        args += ["--max-steps", "1", "--sample-every", "0"]
    train.main([*args, "--results-dir", str(tmp_path / "results")])
    (ckpt,) = (tmp_path / "results").glob("*/ckpt.pt")
    seconds = float(os.environ.get("PAGE_SECONDS", "120"))
    (tmp_path / "temporary").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path / "temporary"))
        with serving(ckpt, tmp_path / "log.txt") as (port, pid):
            folder = tmp_path / "temporary"
            print(f"\n{kind:14s} memory (MiB)  open files  threads  files")
            states = []
            for name, visitors, lasts in (("first round", 3, 10), ("crowd", 20, seconds)):
                deadline = time.monotonic() + lasts
                with ThreadPoolExecutor(visitors) as pool:
                    done = sum(pool.map(lambda k: visits(port, k, deadline), range(visitors)))  # noqa: B023
                during = files_of(folder)
                wait_until(lambda: files_of(folder) <= 5, 240)
                states.append((*state_of(pid), files_of(folder)))
                memory, *rest = states[-1]
                counts = f"{rest[0]:12d}{rest[1]:9d}{rest[2]:7d}  ({during} during {done} visits)"
                print(f"{name:14s}{memory / 1024:13.1f}{counts}", flush=True)
            (memory, opened, threads, files), (memory_after, opened_after, threads_after, files_after) = states
    assert memory_after < memory + 100 * 1024
    assert opened_after <= opened + 3 and threads_after <= threads + 3 and files_after <= files
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(1)


def visits(port: int, visitor: int, deadline: float) -> int:
    """What one visitor does until then; how often the page was opened."""
    count = 0
    while time.monotonic() < deadline:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http, ExitStack() as open_tab:
            client, count = Client(http, f"{visitor}-{count}"), count + 1
            open_tab.enter_context(http.stream("GET", f"{API}/heartbeat/{client.session}"))
            if client.events("Picture", "upload"):
                grey = Image.new("L", (8, 8), (visitor * 37 + count) % 256)
                grey.save(content := io.BytesIO(), "png")
                assert client.choose("Picture", f"{count}.png", content.getvalue())[0] == 200
            else:
                for number in range(3):
                    assert client.direct("Number", "input", Number=number + count % 5)[0] == 200
            typed = {"Sampler": "ODE euler", "Time points": 4, "Variations": 2, "Seed": count}
            if count % 3 == 0:
                client.join(**typed)  # and away
            else:
                assert client.generate(**typed).startswith("ODE euler")
    return count
