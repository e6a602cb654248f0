"""Checkpoints: written whole or not at all, read without running code from them.

A checkpoint is a dict {"model", "ema", "opt", "step", "args", "class_names"}. The predecessors' files have no step and
hold their arguments as an argparse.Namespace; EMA-only files and .safetensors hold nothing but tensors.
"""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch

from errors import DataError, first_line
from files import replacing

StateDict = dict[str, torch.Tensor]


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; the file at `path` is complete at any moment."""
    with replacing(path) as beside:
        torch.save(checkpoint, beside)


def load(path: str | Path) -> dict[str, Any]:
    """Read a .pt or .safetensors file onto the CPU. Never unpickles code.

    Raises:
        DataError: the file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped, not read: eight processes that resume XL/2 would each hold 11 GB otherwise
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        reason = first_line(error)
        if "GLOBAL" in str(error) or "global" in str(error):
            reason = "it holds Python objects, which are not loaded"
        elif path.suffix != ".safetensors" and not zipfile.is_zipfile(path):
            reason = "it is truncated or no PyTorch checkpoint"
        raise DataError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"checkpoint {path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def weights(checkpoint: dict[str, Any], source: str, prefer: str = "ema") -> StateDict:
    """The EMA weights of a training checkpoint, or the file's only weights.

    Raises:
        DataError: there are none.
    """
    other = "model" if prefer == "ema" else "ema"
    state = checkpoint.get(prefer, checkpoint.get(other, checkpoint))
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"checkpoint {source} holds no model weights (no 'ema', no 'model', not a dict of tensors)")
    return state


def training_args(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The arguments a checkpoint was trained with, {} where it does not say."""
    args = checkpoint.get("args", {})
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, dict) else {}


def step(checkpoint: dict[str, Any]) -> int:
    """Training steps taken; from the optimiser's own count in the predecessors' files, 0 where nothing says."""
    if "step" in checkpoint:
        return int(checkpoint["step"])
    states = checkpoint.get("opt", {}).get("state", {})
    return max((int(s["step"]) for s in states.values() if "step" in s), default=0)
