"""The files of samples of shapes: one of numbers (L, F) for each sample, and a set of all shapes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from runtime.errors import DataError
from runtime.files import replacing
from shapes.sets import Layout, fault_of_numbers, from_shapes, save_shapes


def finite_numbers(x: Tensor) -> Callable[[], np.ndarray]:
    """A function that returns samples as an array, copied and checked at the first call; threads may call it.

    Raises:
        FloatingPointError: from the function returned, if a sample is not finite.
    """
    lock, copied = Lock(), list[np.ndarray]()

    def wait() -> np.ndarray:
        with lock:
            if not copied:
                copied.append(checked(x.float().cpu().numpy()))
        return copied[0]

    return wait


def checked(numbers: np.ndarray) -> np.ndarray:
    """The numbers themselves, which are finite.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    if bad := int((~np.isfinite(numbers).reshape(len(numbers), -1).all(1)).sum()):
        raise FloatingPointError(
            f"{bad} of {len(numbers)} shapes are not finite: the model's weights are not, or the sampler diverges "
            "with these settings"
        )
    return numbers


def write_numbers(numbers: np.ndarray, path: Path) -> None:
    """Write the numbers of a sample as an .npy."""
    with replacing(path) as beside, open(beside, "wb") as file:
        np.save(file, numbers)


def pack_shapes(
    paths: Sequence[Path], labels: Sequence[int], npz: Path, *, layout: Layout, class_names: Sequence[str]
) -> None:
    """Pack files of numbers into a set of shapes, see shapes/sets.py.

    Raises:
        DataError: a file is damaged.
    """
    shapes = []
    for path in paths:
        if fault := fault_of_numbers(path, layout):
            raise DataError(f"{path} {fault}")
        shapes.append(layout.decode(torch.from_numpy(np.load(path))))
    known = [*class_names, *["no class"] * (max(labels) >= len(class_names))]
    save_shapes(from_shapes(shapes, [min(k, len(class_names)) for k in labels], known), npz)
