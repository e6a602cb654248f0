"""What a process may lack: standard streams, the main thread, what only POSIX has."""

import importlib
import os
import signal
import sys
import threading
from functools import partial

import pytest

import sample
import train
from runtime import signals
from tests.conftest import DIGITS_ARGS, ROOT
from tests.forked import run_forked

PROGRAMS = (
    *("app", "evaluate", "export", "extract_latents"),
    *("import_shapes", "sample", "sample_ddp", "train"),
)
TRAIN = [*DIGITS_ARGS, "--max-steps", "1", "--sample-every", "0", "--log-every", "1"]
SAMPLE = ["--vae", "none", "--num-sampling-steps", "3", "--sampling-method"]


def without_streams(rank: int, closed: tuple[int, ...]) -> None:
    for descriptor in closed:
        os.close(descriptor)
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)


@pytest.mark.parametrize(
    "closed",
    [*(pytest.param(closed, marks=pytest.mark.drill) for closed in ((2,), (1,))), (0, 1, 2)],
    ids=["stderr", "stdout", "all"],
)
def test_training_with_closed_streams(closed, tmp_path):
    workers = ["--num-workers", "1"] if 0 in closed else []
    run_forked("train.py", *TRAIN, *workers, cwd=tmp_path, before=partial(without_streams, closed=closed))
    run = tmp_path / "results" / "ComboStoc-XS-4-exp_tmp"
    assert (run / "ckpt.pt").is_file() and (run / "metrics.csv").read_text().count("\n") == 2
    assert (run / "log.txt").read_text().endswith("Done\n")


@pytest.mark.parametrize(
    "program", ["sample_ddp", *(pytest.param(name, marks=pytest.mark.drill) for name in ("sample", "evaluate"))]
)
def test_programs_with_closed_streams(program, random_checkpoint, tmp_path):
    small = ["--ckpt", random_checkpoint, *SAMPLE]
    arguments, code, made = {
        "sample": (["ODE", *small, "euler"], 0, "sample.png"),
        "sample_ddp": (["SDE", *small, "Euler", "--num-fid-samples", "3"], 0, "samples/*.npz"),
        "evaluate": (["absent", "digits", "--features", "efficientnet-lite0"], 1, ""),
    }[program]
    before = partial(without_streams, closed=(0, 1, 2))
    ran = run_forked(f"{program}.py", *arguments, cwd=tmp_path, check=False, before=before)
    assert ran.returncode == code and (not made or list(tmp_path.glob(made)))


def as_on_windows(rank: int) -> None:
    """Import the programs anew where there is nothing that only POSIX has."""
    ours = [name for name, module in sys.modules.items() if is_of_the_programs(getattr(module, "__file__", None))]
    for name in ours:
        del sys.modules[name]
    for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix"):
        sys.modules[name] = None  # type: ignore[assignment]
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBUS", "SIGKILL", "pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK"):
        delattr(signal, name)
    for name in ("fork", "geteuid", "getuid", "set_blocking", "setpgid", "sched_getaffinity"):
        delattr(os, name)
    for name in PROGRAMS:
        importlib.import_module(name)
    files = importlib.import_module("runtime.files")
    files.WINDOWS = True
    opened = os.open

    def opens_no_folder(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *args, **kwargs)

    files.os.open = opens_no_folder


def is_of_the_programs(file: str | None) -> bool:
    parts = os.path.relpath(file, ROOT).split(os.sep) if file else [".."]
    return parts[0] not in ("..", "tests", ".venv")


def test_the_programs_start_and_train_without_what_only_posix_has(tmp_path):
    ran = run_forked("train.py", *TRAIN, cwd=tmp_path, before=as_on_windows)
    assert "Done" in ran.stderr and (tmp_path / "results" / "ComboStoc-XS-4-exp_tmp" / "ckpt.pt").is_file()


@pytest.mark.drill
def test_samples_without_what_only_posix_has(random_checkpoint, tmp_path):
    argv = ["SDE", "--ckpt", random_checkpoint, *SAMPLE, "Euler", "--num-fid-samples", "3"]
    run_forked("sample_ddp.py", *argv, cwd=tmp_path, before=as_on_windows)
    assert list(tmp_path.glob("samples/*.json"))


def in_a_thread(call) -> None:
    """Call it, and raise what it raises."""
    raised = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_programs_run_in_any_thread_and_again(random_checkpoint, tmp_path, capfd):
    handlers = [signal.getsignal(s) for s in signals.STOPPING]
    for k, call in enumerate((in_a_thread, lambda run: run(), in_a_thread)):
        steps = [*TRAIN, "--max-steps", str(k + 1), "--results-dir", str(tmp_path)]
        call(lambda steps=steps: train.main(steps))
        assert f"Saved {tmp_path}" in capfd.readouterr().err
        call(
            lambda: sample.main(
                ["ODE", "--ckpt", str(random_checkpoint), *SAMPLE, "euler", "--out", f"{tmp_path}/s.png"]
            )
        )
    assert [signal.getsignal(s) for s in signals.STOPPING] == handlers


def test_a_run_in_a_thread_stops_when_it_is_asked_to(tmp_path, monkeypatch):
    step = train.training_step

    def asked(*args, **kwargs):
        signals.stop()
        return step(*args, **kwargs)

    monkeypatch.setattr(train, "training_step", asked)
    with pytest.raises(SystemExit) as ended:
        in_a_thread(lambda: train.main([*TRAIN, "--max-steps", "50", "--results-dir", str(tmp_path)]))
    assert ended.value.code == 128 + signal.SIGTERM
    log = (tmp_path / "ComboStoc-XS-4-exp_tmp" / "log.txt").read_text()
    assert "Stopped by SIGTERM at step 1; the same command continues" in log
