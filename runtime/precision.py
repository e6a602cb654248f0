"""In which arithmetic a program's matrix products run.

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
        help="compile the blocks: a minute at the start; needs a C++ compiler (g++)",
    )


def check_compiler() -> None:
    """What --compile generates is compiled in turn, on CPUs as C++, on GPUs by Triton with its launchers in C.

    Raises:
        UsageError: there is no compiler.
    """
    names = [os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc"), "clang++", "clang"]
    if not any(map(shutil.which, names)):
        raise UsageError(f"--compile needs a compiler; none of {', '.join(names)} is installed")


def setup(precision: str) -> None:
    """Choose between float32 and TF32 for all float32 products of this process."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """float32 where a program's own choice may be TF32: what is measured must not depend on that."""
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
    """The context to call a model in."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
