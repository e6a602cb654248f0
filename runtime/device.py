"""The device that a program computes on: that of --device, or else the best that torch finds."""

from __future__ import annotations

import argparse
import platform
from typing import TYPE_CHECKING

from runtime.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps")
WITHOUT_FLOAT64 = ("mps",)


def add_device_arg(group: argparse._ActionsContainer) -> None:
    """Add --device."""
    group.add_argument(
        "--device",
        choices=DEVICES,
        help="compute on the CPU, NVIDIA GPUs (cuda) or a Mac's GPU (mps); default: the first of cuda, mps and cpu "
        "that there is",
    )


def choose(name: str | None, local_rank: int = 0, alone: bool = True) -> torch.device:
    """The device of a process.

    Args:
        name: one of `DEVICES`; None is the best there is.
        local_rank: the process's number on its machine.
        alone: whether the process has no others to talk to. A Mac has one GPU, and its tensors cannot be sent.

    Raises:
        UsageError: there is no such device, or it is for a process that is alone.
    """
    import torch

    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        name = next(kind for kind, is_there in found.items() if is_there and (alone or kind != "mps"))
    if not found[name]:
        there = ", ".join(kind for kind, is_there in found.items() if is_there)
        raise UsageError(f"--device {name}: torch {torch.__version__} finds none here; there is {there}")
    if name == "mps" and not alone:
        raise UsageError("--device mps computes in one process: start it without torchrun, or give --device cpu")
    if name == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible, "
                "and each process must see those of all"
            )
        return torch.device("cuda", local_rank)
    return torch.device(name)


def describe(device: torch.device) -> str:
    """A device in words."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    if device.type == "mps":
        return f"{platform.machine()} GPU (mps)"
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' * (threads > 1)})"


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type not in WITHOUT_FLOAT64


def float64(device: torch.device) -> torch.device:
    """The device on which to compute in float64 with numbers of a device: itself, or the CPU."""
    import torch

    return device if has_float64(device) else torch.device("cpu")
