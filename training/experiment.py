"""The folder of one training run: log.txt, its tables, args.json, checkpoints, samples/. One run at a time."""

import argparse
import csv
import json
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

import wandb_utils
from data.pictures import save_image
from evaluation.metrics import report_name
from runtime import checkpoint, distributed
from runtime.errors import DataError, UsageError
from runtime.files import flush, link, replacing
from sampling.kind import Kind

NEWEST, PREVIOUS, NEXT = "ckpt.pt", "ckpt-previous.pt", "ckpt-next.pt"  # the rolling checkpoints
METRICS = ("step", "epoch", "loss", "bad_steps")  # columns of metrics.csv
# Paths need not be UTF-8: so they are written to tables, and read again unchanged.
ENCODING, ERRORS = "utf-8", "surrogateescape"
Stamps = dict[str, int]  # checkpoint's path within the folder -> when it was written, in nanoseconds


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as plain values, for JSON and for a checkpoint that is read without running code."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


def folder_for(args: argparse.Namespace) -> Path:
    """The folder of an experiment: `<results-dir>/<model with - for />-<exp>`."""
    return args.results_dir / f"{args.model.replace('/', '-')}-{args.exp}"


# ---- what a folder holds to continue from --------------------------------------------------------------------------


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint of the highest step that can be read whole, and warnings that name those that cannot.

    Raises:
        DataError: there are checkpoints, and not one can be read.
    """
    found, warnings = [], []
    for path in [folder / name for name in (NEWEST, NEXT, PREVIOUS)]:
        if path.is_file():
            try:
                found.append((checkpoint.step(checkpoint.load(path, verify=False)), path))
            except DataError as error:
                warnings.append(f"Warning: {error}")
    found += [(int(path.stem), path) for path in (folder / "checkpoints").glob("*.pt") if path.stem.isdigit()]
    for _, path in sorted(found, key=lambda entry: entry[0], reverse=True):  # stable: the rolling ones first
        try:
            checkpoint.load(path)
        except DataError as error:
            warnings.append(f"Warning: {error}")
        else:
            return path, warnings
    if warnings:
        raise DataError(f"{folder} holds no checkpoint that can be read; {warnings[0].removeprefix('Warning: ')}")
    return None, []


def stamps(folder: Path) -> Stamps:
    """The time at which each checkpoint of a folder was written, in nanoseconds, by its path within the folder."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*.pt"))}


# ---- the folder of the run -----------------------------------------------------------------------------------------


class Experiment:
    """The folder of a run, while the run writes to it. Only the main process of the run does."""

    def __init__(self, args: argparse.Namespace, process: distributed.Process, kind: Kind) -> None:
        self.folder = folder_for(args)
        self.things = kind.THINGS
        self.columns = {"metrics": METRICS, "evaluations": kind.EVALUATION_COLUMNS}
        self.is_main = process.is_main
        self.logger = logging.getLogger("train")
        self.logger.handlers.clear()
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO if process.is_main else logging.CRITICAL)
        self.saver = checkpoint.Saver()
        self.lock: FileLock | None = None
        self.on_wandb = False

    def open(self, args: argparse.Namespace, start_step: int, source: str, seen: Stamps) -> None:
        """Make the folder ready, in the main process.

        Args:
            start_step, source: step and name of the checkpoint that the run continues; 0 and "" for a fresh run.
            seen: the folder's `stamps` when that was decided.

        Raises:
            UsageError: another run is in it, or has been since.
        """
        for sub in ("checkpoints", "samples"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        self.lock = take_lock(self.folder)
        if stamps(self.folder) != seen:
            raise UsageError(f"another run has saved to {self.folder} in this moment: start again")
        newest = self.folder / NEWEST
        if Path(source).parent in (self.folder, self.folder / "checkpoints") and Path(source) != newest:
            link(Path(source), newest)  # it has a name of its own only because a run was killed
        for left in self.folder.rglob("*.tmp"):
            left.unlink()  # half-written when a run was killed
        formatter = logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S")
        for handler in (logging.StreamHandler(), LogFile(self.folder / "log.txt")):
            handler.setFormatter(formatter)
            self.logger.addHandler(handler)
        with replacing(self.folder / "args.json") as beside:
            beside.write_text(json.dumps(plain(args), indent=1) + "\n")
        for name in self.columns:
            self._cut_table(name, start_step)

    def start_wandb(self, args: argparse.Namespace, is_new: bool) -> None:
        """Start logging to Weights & Biases as well, in the main process."""
        names = wandb_utils.required("ENTITY"), self.folder.name, wandb_utils.required("PROJECT")
        wandb_utils.initialize(args, *names, wandb_utils.run_id(self.folder, is_new=is_new))
        self.on_wandb = True

    def _cut_table(self, name: str, start_step: int) -> None:
        """Drop the rows of a table after start_step."""
        table = self.folder / f"{name}.csv"
        if table.is_file():
            header, *rows = table.read_text(ENCODING, ERRORS).splitlines(keepends=True) or [""]
            if rows and header.strip() != ",".join(self.columns[name]):
                os.replace(table, table.with_name(f"{name}-of-an-older-version.csv"))
                return
            steps = [(row.partition(",")[0], row) for row in rows if row.endswith("\n")]  # a crash may cut the last
            kept = [row for k, row in steps if k.isdigit() and int(k) <= start_step]
            with replacing(table) as beside:
                beside.write_text(header + "".join(kept), ENCODING, ERRORS)
            if not kept:
                table.unlink()  # a header may be cut, too

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.saver.close()
        for handler in self.logger.handlers:
            with suppress(OSError):  # a full disk, which has been told
                handler.close()
        self.logger.handlers.clear()
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def log_metrics(self, row: dict[str, float], steps_per_sec: float, images_per_sec: float) -> None:
        """Write one log line, and one row of metrics.csv, which holds nothing that depends on time."""
        speed = {"steps_per_sec": round(steps_per_sec, 3), "images_per_sec": round(images_per_sec, 1)}
        skipped = f", {row['bad_steps']} bad steps skipped" if row["bad_steps"] else ""
        self.logger.info(
            f"(step={row['step']:07d}) loss {row['loss']:.4f}, {speed['steps_per_sec']:.2f} steps/s, "
            f"{speed['images_per_sec']:.1f} {self.things}/s{skipped}"
        )
        if self.is_main:
            self._append("metrics", row)
        if self.on_wandb:
            wandb_utils.log(row | speed, step=int(row["step"]))

    def has_evaluation(self, step: int) -> bool:
        """Whether a step's row is in evaluations.csv, as the first process sees it."""
        table = self.folder / "evaluations.csv"
        return distributed.from_main(lambda: table.is_file() and f"\n{step}," in table.read_text(ENCODING, ERRORS))

    def log_evaluation(self, about: dict[str, Any], results: dict[str, float], seconds: float) -> None:
        """Write one log line, and one row of evaluations.csv.

        Args:
            about: what was evaluated, by column.
            results: the numbers, by column.
            seconds: how long it took.
        """

        def shown_name(name: str) -> str:  # of images it says by which network
            return report_name(name, about["features"]) if "features" in about else name

        row = about | results
        numbers = {k: v for k, v in row.items() if isinstance(v, float) and not k.endswith("_std")}
        text = ", ".join(f"{shown_name(k)} {v:.5g}" for k, v in numbers.items())
        self.logger.info(f"(step={row['step']:07d}) {text} ({row['samples']:,} samples, {seconds:.0f} s)")
        shown = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        self._append("evaluations", {k: v for k, v in shown.items() if k in self.columns["evaluations"]})
        if self.on_wandb:
            wandb_utils.log({shown_name(k): v for k, v in results.items()}, step=row["step"])

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        """One row of a table."""
        table = self.folder / f"{name}.csv"
        is_new = not table.is_file()
        try:
            with open(table, "a", encoding=ENCODING, errors=ERRORS, newline="") as file:
                writer = csv.DictWriter(file, self.columns[name], lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            flush(table)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(table)) from None

    def save_picture(self, picture: Image.Image, step: int) -> None:
        """Write a picture to samples/, in the main process."""
        path = self.folder / "samples" / f"{step:07d}.png"
        save_image(picture, path)
        self.logger.info(f"Saved {path}")
        if self.on_wandb:
            wandb_utils.log_image(np.asarray(picture), step=step)

    def what_remains(self) -> str:
        """The checkpoints that a failed run leaves, as half a sentence."""
        self.saver.wait()
        if (self.folder / NEWEST).is_file() or any((self.folder / "checkpoints").glob("*")):
            return f"the checkpoints in {self.folder} are of before"
        return "no checkpoint was saved before that"

    def save(self, content: dict[str, Any], *, rolling: bool, kept: bool, kept_format: str = "pt") -> None:
        """Write a checkpoint beside the training that goes on: ckpt.pt, or checkpoints/<step>, or both.

        What was ckpt.pt becomes ckpt-previous.pt.
        """

        def write(copy: dict[str, Any]) -> None:
            newest, previous, following = (self.folder / name for name in (NEWEST, PREVIOUS, NEXT))
            stem = self.folder / "checkpoints" / f"{copy['step']:07d}"
            whole = [stem.with_suffix(".pt")] * (kept and kept_format == "pt") + [following] * rolling
            if kept and kept_format == "safetensors":
                checkpoint.export(stem.with_suffix(".safetensors"), copy)
            for path in whole[:1]:
                checkpoint.save(path, copy)
            for path in whole[1:]:
                link(whole[0], path)
            if rolling:
                if newest.is_file():
                    link(newest, previous)
                os.replace(following, newest)
                flush(self.folder)
            names = [str(stem.with_suffix(f".{kept_format}"))] * kept + [str(newest)] * rolling
            self.logger.info(f"Saved {' and '.join(names)}")

        self.saver.submit(write, content)


class LogFile(logging.FileHandler):
    """A log file that names itself when it cannot be written, as on a full disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what went wrong in writing a record.

        Raises:
            OSError: names the file.
        """
        try:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.baseFilename) from None


def take_lock(folder: Path) -> FileLock | None:
    """A lock on a folder for this run, which the system undoes when the process ends, however it does.

    Returns:
        The lock, to be released; None where the file system knows no locks.

    Raises:
        UsageError: another run has it.
    """
    path = folder / ".lock"
    # Data workers, which outlive a killed run for seconds, do not inherit it. A file that stands for a lock would stay.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = "another process"
        with suppress(OSError):  # Windows lets nobody else read what is locked
            owner = path.read_text(errors="replace").strip() or owner
        raise UsageError(f"experiment {folder} is being trained by {owner}; give another --exp") from None
    except OSError:
        return None
    with suppress(OSError):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return lock
