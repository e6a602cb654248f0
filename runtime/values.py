"""The values of a training checkpoint beside its weights: their types, and which of them are absent."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.errors import DataError


def checked_values(content: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The values of a training checkpoint, each of its type, without those that are absent, see `load`.

    Raises:
        DataError: a value is of another type.
    """

    def is_names(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)

    is_plain = (str, int, float)  # others' files say there what it is called, whether there is one, or its decay
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "model": ("a dict of tensors", lambda v: isinstance(v, (dict, *is_plain))),
        "ema": ("a dict of tensors", lambda v: isinstance(v, (dict, *is_plain))),
        "opt": ("an optimiser's state", lambda v: isinstance(v, is_plain) or isinstance(v.get("state"), dict)),
        "step": ("a whole number of steps", lambda v: whole(v) is not None),
        "args": ("a dict or a Namespace", lambda v: isinstance(v, dict | argparse.Namespace)),
        "class_names": ("a list of names", is_names),
        "progress": ("a dict", lambda v: isinstance(v, dict)),
        "layout": ("a dict", lambda v: isinstance(v, dict)),  # of shapes, see shapes/sets.py
        "latent_scale": ("a dict", lambda v: isinstance(v, dict)),  # see data/scaling.py
    }
    if others := [key for key in content if not isinstance(key, str)]:
        raise DataError(f"checkpoint {path} holds a dict with the key {others[0]!r:.40}, which is no name")
    is_ours = bool({"model", "ema"} & content.keys())
    there = {name: value for name, value in content.items() if not is_absent(value)}
    for name, (expected, is_of_its_kind) in kinds.items():
        try:
            fits = name not in there or is_of_its_kind(there[name])
        except AttributeError:
            fits = False
        if not fits and is_ours:
            raise DataError(f"checkpoint {path}: its {name!r} is {described(there[name])}, not {expected}")
        if not fits and not isinstance(there[name], torch.Tensor):
            del there[name]  # of another program, and something else
    if (count := whole(there.get("step"))) is not None:
        there["step"] = count
    if "class_names" in there:
        there["class_names"] = list(there["class_names"])
    if isinstance(there.get("opt"), is_plain):
        del there["opt"]  # its name
    return there


def is_absent(value: Any) -> bool:
    """Whether a value counts as absent: None, or an empty dict, list or tuple."""
    return value is None or (isinstance(value, dict | list | tuple) and not value)


def described(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, torch.Tensor):
        kind = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        return f"{kind}{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" if isinstance(value, dict | list | tuple) else f"{value!r:.40}"


def whole(value: Any) -> int | None:
    """A number of steps, given as an int, a whole float, a NumPy number or a tensor of one; None for anything else."""
    if isinstance(value, torch.Tensor):
        is_one = value.numel() == 1 and value.layout == torch.strided and value.device.type == "cpu"
        value = value.item() if is_one and not value.is_complex() and value.untyped_storage().nbytes() else None
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if type(value) in (int, float) and 0 <= value < 2**62 and value == int(value) else None
