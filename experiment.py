"""The folder of one training run: log.txt, metrics.csv, args.json, ckpt.pt, checkpoints/, samples/."""

import argparse
import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

import distributed
from files import replacing


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as plain values, for JSON and for a checkpoint that is read without running code."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


class Experiment:
    """The folder `<results-dir>/<model with - for />-<exp>`, written by the main process only."""

    def __init__(self, folder: Path, process: distributed.Process) -> None:
        self.folder = folder
        self.process = process
        self.logger = logging.getLogger("train")
        self.logger.handlers.clear()
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO if process.is_main else logging.CRITICAL)

    @staticmethod
    def path_for(args: argparse.Namespace) -> Path:
        return args.results_dir / f"{args.model.replace('/', '-')}-{args.exp}"

    @staticmethod
    def rolling_checkpoint(folder: Path) -> Path:
        return folder / "ckpt.pt"

    def kept_checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"{step:07d}.pt"

    def picture(self, step: int) -> Path:
        return self.folder / "samples" / f"{step:07d}.png"

    def open(self, args: argparse.Namespace, start_step: int) -> None:
        """Make the folder and start the logs; rows of metrics.csv after start_step are dropped."""
        if not self.process.is_main:
            return
        for sub in ("checkpoints", "samples"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        formatter = logging.Formatter("[%(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S")
        for handler in (logging.StreamHandler(), logging.FileHandler(self.folder / "log.txt")):
            handler.setFormatter(formatter)
            self.logger.addHandler(handler)
        with replacing(self.folder / "args.json") as beside:
            beside.write_text(json.dumps(plain(args), indent=1) + "\n")
        metrics = self.folder / "metrics.csv"
        if metrics.is_file():
            header, *rows = metrics.read_text().splitlines(keepends=True) or [""]
            steps = [(row.partition(",")[0], row) for row in rows if row.endswith("\n")]  # a crash may cut the last
            with replacing(metrics) as beside:
                beside.write_text(header + "".join(row for k, row in steps if k.isdigit() and int(k) <= start_step))

    def log_metrics(self, row: dict[str, float]) -> None:
        """One log line and one row of metrics.csv."""
        self.logger.info(
            f"(step={row['step']:07d}) loss {row['loss']:.4f}, {row['steps_per_sec']:.2f} steps/s, "
            f"{row['images_per_sec']:.1f} images/s"
        )
        if self.process.is_main:
            metrics = self.folder / "metrics.csv"
            is_new = not metrics.is_file()
            with open(metrics, "a", newline="") as file:
                writer = csv.DictWriter(file, row.keys())
                if is_new:
                    writer.writeheader()
                writer.writerow(row)


class LossWindow:
    """Mean loss and speed since the last log line. Losses stay on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.total = torch.zeros(2, dtype=torch.float64, device=self.device)  # sum of losses, steps
        self.start_time = time.time()

    def add(self, loss: torch.Tensor) -> None:
        self.total[0] += loss.detach()
        self.total[1] += 1

    def close(self, step: int, epoch: int, global_batch_size: int) -> dict[str, float]:
        """A row of metrics over all processes; the window starts anew."""
        steps = self.total[1].item()
        loss_sum, count = distributed.sum_over_processes(self.total).tolist()  # waits for the device
        rate = steps / (time.time() - self.start_time)
        self.restart()
        return {
            "step": step,
            "epoch": epoch,
            "loss": round(loss_sum / count, 6),
            "steps_per_sec": round(rate, 3),
            "images_per_sec": round(rate * global_batch_size, 1),
        }
