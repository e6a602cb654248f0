"""The state of a run beside model and optimiser: losses not yet logged, bad steps, images that cannot be read.

All of it goes into a checkpoint, and nothing of it waits for a GPU between two log lines.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.images import UnreadableImage
from data.sets import Items
from runtime import distributed
from runtime.device import has_float64
from runtime.errors import DataError
from training.step import Step


class LossWindow:
    """Mean loss and speed since the last log line. Losses stay on the device until then."""

    def __init__(self, device: torch.device, total: Sequence[float] = (0.0, 0.0)) -> None:
        self.device = device
        self.restart(total)

    def restart(self, total: Sequence[float] = (0.0, 0.0)) -> None:
        """Begin a new window, or go on with the (sum of losses, steps) of an old one."""
        dtype = torch.float64 if has_float64(self.device) else torch.float32
        self.total = torch.tensor(total, dtype=dtype, device=self.device)  # sum of losses, steps
        self.start_clock()

    def start_clock(self) -> None:
        """Start measuring speed: training begins, or goes on, now."""
        self.start_time, self.timed_steps = time.monotonic(), 0

    def add(self, loss: Tensor, bad: Tensor) -> None:
        """Count a step's loss; that of a bad step is left out."""
        one = torch.stack([loss.to(self.total.dtype), torch.ones_like(loss, dtype=self.total.dtype)])
        self.total += torch.where(bad, 0.0, one)
        self.timed_steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as training."""
        start_time = time.monotonic()
        yield
        self.start_time += time.monotonic() - start_time

    def close(self) -> tuple[float, float]:
        """The mean loss over all processes, nan if all steps were bad, and steps per second; a new window begins."""
        loss_sum, steps = distributed.sum_over_processes(self.total).tolist()  # waits for the device
        rate = self.timed_steps / (time.monotonic() - self.start_time)
        self.restart()
        return round(loss_sum / steps, 6) if steps else float("nan"), rate


class BadSteps:
    """A count of skipped steps, on the device; the host reads along without waiting for a GPU.

    Attributes:
        counts: (2,) int64: bad steps in a row up to now, and bad steps in all.
    """

    def __init__(self, device: torch.device, counts: Sequence[int] = (0, 0)) -> None:
        self.counts = torch.tensor(counts, dtype=torch.int64, device=device)
        self.after_good = torch.tensor([0, 1], device=device)
        self.seen = self.counts.cpu()  # as of a step not long ago
        if device.type == "cuda":
            self.seen = self.seen.pin_memory()

    def add(self, bad: Tensor) -> None:
        """Count a step that was bad, or was not."""
        self.counts = torch.where(bad, self.counts + 1, self.counts * self.after_good)
        self.seen.copy_(self.counts, non_blocking=self.counts.is_cuda)

    @property
    def seen_in_a_row(self) -> int:
        """The number of bad steps in a row, as of a step not long ago."""
        return int(self.seen[0])


class Agreement(NamedTuple):
    """The events of a step that all processes know of."""

    signum: int  # of a signal that asks to stop, 0 for none
    diverged: bool  # there have been too many bad steps in a row
    unreadable: dict[int, str]  # images that have just turned out to be unreadable, with the reasons


class Bookkeeping:
    """The books of a run.

    Args:
        process: one of the run's.
        dataset: the items that the run is trained on.
        max_bad_steps: the number of bad steps in a row at which the run counts as diverged.
        saved: a value of `state`, from a checkpoint; {} for a fresh run.
        source: name of the checkpoint, for messages.

    Raises:
        DataError: `saved` is no value of `state`.
    """

    def __init__(
        self,
        process: distributed.Process,
        dataset: Items,
        *,
        max_bad_steps: int,
        saved: dict[str, Any],
        source: str,
    ) -> None:
        self.max_bad_steps = max_bad_steps
        window, bad_steps = saved.get("window", []), saved.get("bad_steps", [0, 0])
        unreadable = saved.get("unreadable", [])
        fit = {
            "window": are(list, window) and all(len(total) == 2 and are(float, total) for total in window),
            "bad_steps": are(int, bad_steps) and len(bad_steps) == 2,
            "unreadable": are(int, unreadable) and min(unreadable, default=0) >= 0,
        }
        for name in [name for name, fits in fit.items() if not fits]:
            raise DataError(
                f"checkpoint {source}: its progress has {name} {saved[name]!r:.60}, which cannot be continued"
            )
        self.window = LossWindow(process.device, share(window, process))
        self.bad_steps = BadSteps(process.device, bad_steps)
        # By one process for all: a file system may not show all of them the same.
        self.unreadable = distributed.from_main(lambda: still_unreadable(unreadable, dataset))
        self.found: dict[int, str] = {}  # by this process's data workers, since the last agreement

    def add(self, step: Step) -> None:
        """Count the loss of a step, and whether it was bad."""
        self.window.add(step.loss, step.bad)
        self.bad_steps.add(step.bad)

    def agree(self, signum: int) -> Agreement:
        """Tell the other processes what happened here in this step, and hear what happened there.

        Args:
            signum: number of a signal that this process has received, or 0.
        """
        for known in self.found.keys() & self.unreadable.keys():
            del self.found[known]
        diverged = self.bad_steps.seen_in_a_row >= self.max_bad_steps
        signum, any_diverged, any_found = distributed.greatest([signum, int(diverged), len(self.found)])
        new: dict[int, str] = {}
        if any_found:
            for found in distributed.gather(self.found):
                new |= found
            self.unreadable |= new
            self.found.clear()
        return Agreement(signum, bool(any_diverged), new)

    def state(self) -> dict[str, Any]:
        """The books as plain values, for a checkpoint. All processes call it; it waits for the device."""
        return {
            "window": distributed.gather(self.window.total.tolist()),
            "bad_steps": self.bad_steps.counts.tolist(),
            "unreadable": sorted(self.unreadable),
        }


def are(kind: type, values: object) -> bool:
    """Whether values is a list of a type; numbers must be finite and fit into 64 bits."""
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        return False
    return kind is list or all(abs(value) < 2**63 for value in values)


def share(totals: list[list[float]], process: distributed.Process) -> Sequence[float]:
    """A process's share of a checkpoint's loss windows, of which there is one per process.

    Its own; or, where the number of processes has changed, the sum of all for the first process.
    """
    if len(totals) == process.world_size:
        return totals[process.rank]
    return [sum(column) for column in zip(*totals, strict=True)] if totals and process.is_main else [0.0, 0.0]


def still_unreadable(indices: Sequence[int], dataset: Items) -> dict[int, str]:
    """Images that could not be read and still cannot be, by index, with the reasons."""
    found = {}
    for index in indices:
        try:
            if index < len(dataset):
                dataset[index, False]
        except UnreadableImage as error:
            found[index] = str(error)
    return found
