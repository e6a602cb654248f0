import argparse
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import kinds
from runtime import checkpoint
from runtime.distributed import single
from runtime.errors import DataError, UsageError
from tests.conftest import ROOT
from training import experiment
from training.experiment import Experiment, LogFile, folder_for, newest_valid, stamps


def arguments(tmp_path) -> argparse.Namespace:
    return argparse.Namespace(results_dir=tmp_path, model="SiT-XS/2", exp="x")


def content(step: int) -> dict:
    state = {"w": torch.full((1000,), float(step))}
    return {"model": state, "ema": state, "step": step, "args": {}, "class_names": ["a"]}


def save(run: Experiment, step: int, **how) -> None:
    run.save(content(step), **({"rolling": True, "kept": False} | how))
    run.saver.wait()


def opened(tmp_path, start_step: int = 0, source: str = "") -> Experiment:
    run = Experiment(arguments(tmp_path), single(), kinds.IMAGES)
    run.open(arguments(tmp_path), start_step, source, stamps(run.folder))
    return run


@pytest.fixture
def run(tmp_path):
    with opened(tmp_path) as run:
        yield run


def names(run: Experiment) -> set[str]:
    return {str(p.relative_to(run.folder)) for p in run.folder.rglob("*.*") if p.is_file()} - {"log.txt", "args.json"}


def test_the_last_two_rolling_checkpoints_are_kept(run):
    for step in (1, 2, 3):
        save(run, step)
    assert names(run) == {".lock", "ckpt.pt", "ckpt-previous.pt"}
    assert [checkpoint.load(run.folder / name)["step"] for name in ("ckpt.pt", "ckpt-previous.pt")] == [3, 2]


@pytest.mark.parametrize("links", [True, False])
def test_one_that_is_kept_and_rolling_is_written_once(run, monkeypatch, links):
    written = []
    monkeypatch.setattr(checkpoint, "save", lambda path, c, original=checkpoint.save: written.append(original(path, c)))
    if not links:  # a file system without hard links

        def fail(*args):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.link", fail)
    save(run, 1)
    save(run, 2, kept=True)
    assert len(written) == 2
    assert names(run) == {".lock", "ckpt.pt", "ckpt-previous.pt", "checkpoints/0000002.pt"}
    files = ("ckpt.pt", "ckpt-previous.pt", "checkpoints/0000002.pt")
    assert [checkpoint.load(run.folder / name)["step"] for name in files] == [2, 1, 2]
    save(run, 3)  # which leaves the kept one alone
    assert checkpoint.load(run.folder / "checkpoints/0000002.pt")["step"] == 2


def test_kept_ones_may_be_weights_only(run):
    save(run, 1, kept=True, kept_format="safetensors")
    assert names(run) == {".lock", "ckpt.pt", "checkpoints/0000001.safetensors"}
    assert checkpoint.load(run.folder / "checkpoints/0000001.safetensors")["step"] == 1


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(checkpoint.load(path)["model"]["w"].numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("harm", [damage, truncate])
def test_a_damaged_newest_file_is_named_and_the_one_before_it_used(run, harm):
    for step in (1, 2, 3):
        save(run, step, kept=step == 1)
    path, warnings = newest_valid(run.folder)
    assert (path, warnings) == (run.folder / "ckpt.pt", [])
    harm(run.folder / "ckpt.pt")
    path, warnings = newest_valid(run.folder)
    assert path == run.folder / "ckpt-previous.pt"
    assert len(warnings) == 1 and f"checkpoint {run.folder / 'ckpt.pt'} cannot be read" in warnings[0]
    harm(run.folder / "ckpt-previous.pt")
    path, warnings = newest_valid(run.folder)
    assert path == run.folder / "checkpoints" / "0000001.pt" and len(warnings) == 2
    harm(run.folder / "checkpoints" / "0000001.pt")
    with pytest.raises(DataError, match=r"holds no checkpoint that can be read; checkpoint .*ckpt\.pt cannot be read"):
        newest_valid(run.folder)  # a week's work is not begun anew without a word


def test_the_newest_is_that_of_the_highest_step(run):
    save(run, 5)
    save(run, 6, rolling=False, kept=True)
    assert newest_valid(run.folder)[0] == run.folder / "checkpoints" / "0000006.pt"
    save(run, 7)
    assert newest_valid(run.folder)[0] == run.folder / "ckpt.pt"


def test_nothing_to_continue(tmp_path):
    assert newest_valid(tmp_path / "absent") == (None, [])


def test_killed_between_two_names(run, monkeypatch):
    """When the new file is there and ckpt.pt is still, or no longer, the old one."""
    save(run, 1)
    save(run, 2)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "link", stop)
    with pytest.raises(KeyboardInterrupt):
        save(run, 3)
    path, _ = newest_valid(run.folder)
    assert checkpoint.load(path)["step"] == 3
    monkeypatch.undo()
    with run:  # the run ends, and is continued
        pass
    with opened(run.folder.parent, 3, str(path)):
        assert newest_valid(run.folder)[0] == run.folder / "ckpt.pt"
        assert checkpoint.load(run.folder / "ckpt.pt")["step"] == 3


def test_a_run_that_saved_while_another_one_started(run):
    """The other has read an older checkpoint."""
    save(run, 1)
    seen = stamps(run.folder)
    save(run, 2)
    with run:  # its end
        pass
    with pytest.raises(UsageError, match=r"another run has saved to .* in this moment: start again"):
        Experiment(arguments(run.folder.parent), single(), kinds.IMAGES).open(arguments(run.folder.parent), 1, "", seen)


def test_metrics_of_another_version_are_put_aside(tmp_path):
    folder = folder_for(arguments(tmp_path))
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,loss,steps_per_sec\n5,1.0,3\n")
    with opened(tmp_path, 5) as run:
        row = {"step": 6, "epoch": 0, "loss": 0.5, "bad_steps": 0}
        run.log_metrics(row, steps_per_sec=1, images_per_sec=2)
    assert (folder / "metrics.csv").read_text() == "step,epoch,loss,bad_steps\n6,0,0.5,0\n"
    assert "3\n" in (folder / "metrics-of-an-older-version.csv").read_text()


@pytest.mark.drill
def test_a_second_run_is_refused(run):
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from tests.training.test_experiment import *
from runtime.errors import run_program
sys.argv = ["train.py"]
run_program(lambda: opened(Path({str(run.folder.parent)!r})))
"""
    command = [sys.executable, "-c", code]
    before = names(run)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"train.py: error: experiment {run.folder} is being trained by process " in result.stderr
    assert "give another --exp" in result.stderr and names(run) == before
    with run:
        pass  # its end
    assert subprocess.run(command).returncode == 0


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", fail)
    with opened(tmp_path) as run:
        assert run.lock is None


def test_a_second_run_in_the_same_process_is_refused(run):
    with pytest.raises(UsageError, match=f"is being trained by process {os.getpid()} on "):
        opened(run.folder.parent)


def test_a_killed_run_leaves_no_lock(tmp_path):
    """Nor do the processes that it has started, which live a little longer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            run = opened(tmp_path)
            os.fork()
            os.write(writing, b"." if run.lock.is_locked else b"?")
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        assert sorted((os.read(reading, 1), os.read(reading, 1))) == [b".", b"?"]  # its own and its child's
        with pytest.raises(UsageError, match=f"process {child} on "):
            opened(tmp_path)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with opened(tmp_path) as run:
            assert run.lock.is_locked
    finally:
        os.killpg(child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)


def test_what_was_half_written_is_removed(tmp_path):
    folder = folder_for(arguments(tmp_path))
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("ckpt-next.pt.123.tmp", "checkpoints/0000001.pt.99.tmp"):
        (folder / name).write_text("half")
    with opened(tmp_path) as run:
        assert names(run) == {".lock"}


def test_the_log_takes_any_name_and_says_when_it_cannot_be_written(tmp_path, monkeypatch):
    handler = LogFile(tmp_path / "log.txt")
    record = logging.makeLogRecord({"msg": "image \udcff 写真.png"})
    handler.emit(record)
    assert (tmp_path / "log.txt").read_text() == "image \\udcff 写真.png\n"

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handler, "flush", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*log\.txt'"):
        handler.emit(record)
    monkeypatch.undo()
    handler.close()
