"""The arithmetic of a program's matrix products.

fp32  float32
tf32  float32 with 10 bits of mantissa in products, on NVIDIA's Ampere and later; the published setting
bf16  bfloat16 products under autocast; weights, norms, timestep features, residual stream and loss stay float32
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runtime.device import add_device_arg
from runtime.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "tf32", "bf16")


def add_speed_args(group: argparse._ArgumentGroup) -> None:
    """Add --device, --precision and --compile."""
    add_device_arg(group)
    group.add_argument("--precision", choices=PRECISIONS, default="tf32", help="matmul precision")
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the model's blocks with torch.compile: faster after a minute; needs a C++ compiler (g++)",
    )


def check_compiler() -> None:
    """See that there is a compiler for --compile, which generates C++ on CPUs, and launchers in C on GPUs.

    Raises:
        UsageError: there is none.
    """
    names = [os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc"), "clang++", "clang"]
    if not any(map(shutil.which, names)):
        raise UsageError(f"--compile needs a compiler; none of {', '.join(names)} is installed")


def setup(precision: str) -> None:
    """Choose float32 or TF32 for all float32 matrix products of this process."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """A context of float32 products, also where the program has chosen TF32: measurements must not depend on that."""
    import torch

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which to call a model."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
