"""Graded control of shapes: references, and how much of them is kept, by part and by attribute.

A spec says how much is kept, from 0 (regenerate) to 1 (keep); numbers that it does not name are 0. Later items override
earlier ones:

    0.9                          everything, and so the number of parts
    parts:0,2:0.9                parts, by their number in the picture of the reference: completion
    box.size:0.9,code:0.9        an attribute of all parts there are, or all attributes that begin so: assembly
    parts:0:1,box.center:0.5     both
    exists:1,box.size:0.9        with existence kept at 1 there are these parts and no others
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.pictures import grid
from runtime.errors import DataError, UsageError
from sampling.arguments import NUMBER
from sampling.network import Network
from shapes.files import finite_numbers
from shapes.rendering import View, render
from shapes.sets import EMBEDDED, EXISTS, Layout, Shape, ShapeSet, ShapeSpace, names_shapes, open_shapes
from transport.graded import preservation_map

ITEM = rf"(?:parts:(\d+(?:,\d+)*)|([A-Za-z_][\w.]*)):({NUMBER})"


@dataclass
class ShapeControl:
    """Reference shapes, and how much of each number is kept."""

    shapes: list[Shape]
    numbers: Tensor  # (R, L, F)
    keep: Tensor  # (R, L, F) in [0, 1]
    layout: Layout

    def latents(self, network: Network, device: torch.device) -> Tensor:
        """The numbers of the references: (R, L, F)."""
        return self.numbers.to(device)

    def untrained_times(self, network: Network) -> str | None:
        """A sentence that names times of the map which the model was not trained with; None where there are none."""
        return untrained_times(self.keep, network)

    def finish(self, x: Tensor, rows: Tensor) -> Callable[[], np.ndarray]:
        """The numbers of samples: (N, L, F) float32.

        Raises:
            FloatingPointError: from the function returned, if a sample is not finite.
        """
        return finite_numbers(x)

    def sheet(self, samples: np.ndarray, captions: Sequence[str], size: int) -> Image.Image:
        """A picture with a row for each reference: itself, with kept parts in colour, and its samples.

        Parts of samples have the colours of those of the reference, and new ones are pale.
        """
        each = len(samples) // len(self.shapes)
        x = torch.from_numpy(samples)
        made, numbers = [self.layout.decode(one) for one in x], [self.layout.existing(one) for one in x]
        view = View.typical(made, whole=self.shapes)
        tiles, texts = [], []
        for k, (shape, keep, caption) in enumerate(zip(self.shapes, self.keep, captions, strict=True)):
            parts = keep[: len(shape["box.center"])]
            tiles += [render(shape, size, view), render(shape, size, view, faded=(parts.amax(1) == 0).numpy())]
            for i in range(k * each, (k + 1) * each):
                tiles.append(render(made[i], size, view, new_parts(keep, numbers[i]), numbers[i]))
            texts += [f"reference, parts 0 to {len(parts) - 1}", kept_words(parts)]
            texts += [f"{caption} ({i})" for i in range(1, each + 1)]
        return grid(np.stack(tiles), texts, columns=2 + each)


def load_control(args: argparse.Namespace, network: Network) -> ShapeControl:
    """Graded control by --reference and --preserve.

    Raises:
        UsageError, DataError: a reference or a map cannot be used.
    """
    if args.preserve is None or args.preserve_channels or args.preserve_pixels:
        raise UsageError("of a shape --preserve says how much is kept: 0.9, parts:0,2:0.9 or box.size:0.9")
    layout = layout_of(network)
    opened = cache(open_shapes)  # each set once
    shapes = [reference(word, layout, opened) for word in args.reference]
    return make_control(shapes, [keep_map(args.preserve.text, shape, layout) for shape in shapes], layout)


def make_control(shapes: Sequence[Shape], maps: Sequence[Tensor], layout: Layout) -> ShapeControl:
    """Graded control by shapes, and a map of how much is kept of each number.

    Raises:
        DataError: a shape is not of the layout.
    """
    numbers = torch.stack([layout.encode(shape) for shape in shapes])
    return ShapeControl(list(shapes), numbers, torch.stack(list(maps)), layout)


def layout_of(network: Network) -> Layout:
    """The layout of a network of shapes."""
    assert isinstance(network.autoencoder, ShapeSpace)
    return network.autoencoder.layout


def pick(shapes: ShapeSet, index: int, name: str) -> Shape:
    """The shape of a number in a set.

    Args:
        shapes: the set.
        index: the number.
        name: the set's name, for messages.

    Raises:
        DataError: there is none.
    """
    if not 0 <= index < len(shapes):
        raise DataError(f"{name} has {len(shapes):,} shapes, 0 to {len(shapes) - 1}")
    return shapes[index]


def reference(word: str, layout: Layout, opened: Callable[[str], ShapeSet]) -> Shape:
    """The shape that a word names, in a set that is opened by name: FILE.npz:3 or shapes:3; without a number the first.

    Raises:
        UsageError, DataError: there is none, or it is not of the layout.
    """
    name, index = place(word)
    if not names_shapes(name):
        raise UsageError(f"--reference {word} is no shape: give one of a set, as FILE.npz:3 or {EMBEDDED}:3")
    try:
        shape = pick(opened(name), index, name)
        layout.encode(shape)
        return shape
    except DataError as error:
        raise DataError(f"--reference {word}: {error}") from None


def place(word: str) -> tuple[str, int]:
    """The set and the number in FILE.npz:3; without a number, it is 0."""
    name, _, index = word.rpartition(":") if re.search(r":\d+$", word) else (word, "", "0")
    return name, int(index)


def keep_map(spec: str, shape: Shape, layout: Layout) -> Tensor:
    """The map of a spec, how much of each number is kept: (L, F).

    Raises:
        UsageError: it is no spec, or names a part or attribute that there is not.
    """
    m = torch.zeros(layout.shape)
    parts = len(shape["box.center"])
    if re.fullmatch(NUMBER, spec):
        return m + checked(spec, spec)
    if not re.fullmatch(rf"{ITEM}(?:,{ITEM})*", spec):
        raise UsageError(f"--preserve {spec} is neither a number nor items such as parts:0,2:0.9 or box.size:0.9")
    for numbers, name, value in re.findall(ITEM, spec):
        if numbers:
            chosen = [int(k) for k in numbers.split(",")]
            if max(chosen) >= parts:
                raise UsageError(f"--preserve {spec}: the reference has the parts 0 to {parts - 1}, not {max(chosen)}")
            m[chosen] = checked(value, spec)
            continue
        named = [where for attribute, where in layout.slices.items() if f"{attribute}.".startswith(f"{name}.")]
        if not named:
            raise UsageError(f"--preserve {spec}: a part has {', '.join(layout.attributes)}, not {name}")
        for where in named:
            m[: None if name == EXISTS else parts, where] = checked(value, spec)
    return m


def ticked_map(parts: Sequence[int], count: int, attributes: Sequence[str], kept: float, layout: Layout) -> Tensor:
    """The map (L, F) that keeps these attributes of these parts, of `count`, at `kept`.

    Where the existence of all parts is kept, the absence of others is kept, too.
    """
    m = torch.zeros(layout.shape)
    for attribute in attributes:
        everywhere = attribute == EXISTS and len(parts) == count
        m[slice(None) if everywhere else list(parts), layout.slices[attribute]] = kept
    return m


def checked(value: str, spec: str) -> float:
    """The value of an item of a spec, in [0, 1].

    Raises:
        UsageError: it is not.
    """
    if not 0 <= float(value) <= 1:
        raise UsageError(f"--preserve {spec}: {value} is not between 0 and 1")
    return float(value)


def untrained_times(keep: Tensor, network: Network) -> str | None:
    """A sentence that names times of these maps which the model was not trained with; None where there are none."""
    _, parts, numbers = preservation_map(keep, keep).shape
    trained = network.transport.combostoc_type.name.removeprefix("UNSYNC_")
    over_parts = parts > 1 and trained in ("NONE", "ATT", "VEC")
    over_numbers = numbers > 1 and trained in ("NONE", "PART")
    if not (over_parts or over_numbers):
        return None
    what = " and ".join(["parts"] * over_parts + ["attributes"] * over_numbers)
    return f"the model was trained with UNSYNC_{trained}, never with times that differ between {what}"


def new_parts(keep: Tensor, numbers: np.ndarray) -> np.ndarray | None:
    """A mask of a sample's parts, by their numbers, that keep nothing of a reference; None where no part keeps any."""
    kept = (keep.amax(1) > 0).numpy()
    return ~kept[numbers] if kept.any() else None


def kept_words(parts: Tensor) -> str:
    """The share that is kept of parts (P, F), in words."""
    low, high = f"{parts.min():.3g}", f"{parts.max():.3g}"
    return f"kept {low}" if low == high else f"kept {low} to {high}"
