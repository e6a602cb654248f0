"""The page of shapes without Gradio: references of a set, ticked parts and attributes, samples of them."""

import math
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from page.studio import Service, as_arguments, real, sampler_settings, whole
from runtime.errors import UsageError
from sampling import control
from sampling.network import Network
from shapes import control as parts
from shapes.meshes import write_glb
from shapes.rendering import View, render
from shapes.sets import EMBEDDED, Shape, ShapeSet, open_shapes

PICTURE = 320  # side in pixels of a reference's picture
OPEN_SETS = 4  # sets that are kept open
KEPT_FOLDERS = 200  # folders of scenes that are kept, for all visitors together
ANGLE = 0.8  # angle of view of a camera in 3D, in radians
COLOURS = ("blue", "orange", "green", "red", "purple", "ochre", "teal", "pink", "brown", "olive")  # names of `PALETTE`
MEANINGS = {
    "exists": "whether a part is there",
    "box.center": "where it is",
    "box.size": "how large",
    "box.axes": "how it is turned",
    "code.exponents": "how round",
}


def part_name(number: int) -> str:
    """The name of a part on the page."""
    return f"{number} {COLOURS[number % len(COLOURS)]}"


def attribute_name(attribute: str) -> str:
    """The name of an attribute on the page."""
    return f"{attribute}: {MEANINGS[attribute]}" if attribute in MEANINGS else attribute


@dataclass
class ShapeChoices:
    """The settings of the page of shapes."""

    path: str  # path of the reference's set, or "shapes"
    number: int  # number of the reference in it
    parts: Sequence[int]  # ticked parts
    attributes: Sequence[str]  # ticked attributes
    kept: float  # how much is kept, from 0 to 1, of ticked attributes of ticked parts
    label: int | None
    sampler: str  # mode and method
    points: int
    schedule: str
    variations: int
    seed: int

    def as_arguments(self) -> list[str]:
        """These choices as arguments of sample.py, without the ticks.

        Raises:
            UsageError: a box holds an invalid value.
        """
        return as_arguments(
            self.sampler,
            reference=f"{self.path}:{self.number}",
            preserve=real("How much is kept", self.kept, 0, 1),
            preserve_schedule=self.schedule,
            class_labels=self.label,
            cfg_scale=1,
            **sampler_settings(self.points, self.variations, self.seed),
        )


@dataclass
class Reference:
    """A reference shape, with the texts that the page shows."""

    shape: Shape
    name: str  # of its class and number, for a file
    said: str

    @property
    def parts(self) -> list[int]:
        """The numbers of its parts."""
        return list(range(len(self.shape["box.center"])))

    def picture(self, ticked: Sequence[int]) -> np.ndarray:
        """A picture (S, S, 3) uint8, in which parts that are not ticked are pale."""
        return render(self.shape, PICTURE, View.of([self.shape]), ~np.isin(self.parts, ticked))


class ShapeStudio(Service):
    """The page of shapes without Gradio."""

    def __init__(self, network: Network, device: torch.device, precision: str, folder: Path) -> None:
        super().__init__(network, device, precision)
        self.layout, self.folder = parts.layout_of(network), folder
        self.folders: deque[Path] = deque()  # of scenes, oldest first
        self.making = threading.Lock()
        self.open = lru_cache(OPEN_SETS)(open_shapes)

    @cached_property
    def embedded(self) -> dict[str, np.ndarray]:
        """The shapes of the embedded set's test split, by class; {} where the model's shapes have other attributes."""
        shapes = self.open(EMBEDDED)
        if {name: v.shape[1] for name, v in shapes.attributes.items()} | {"exists": 1} != self.layout.attributes:
            return {}
        test = np.full(len(shapes), True) if shapes.split is None else shapes.split == "test"
        return {name: np.flatnonzero(test & (shapes.labels == k)) for k, name in enumerate(shapes.class_names)}

    def reference(self, path: str, number: int) -> Reference:
        """The shape of a number in a set.

        Raises:
            DataError: the set cannot be read, has no such shape, or the model cannot know it.
        """
        number = whole("Number", number)
        shapes, shape = self.pick(path, number)
        name = shapes.class_names[shapes.labels[number]]
        count = len(shape["box.center"])
        said = f"{Path(path).name}:{number}, {name}, {count} part{'s' * (count > 1)}"
        return Reference(shape, f"{name}-{number}".replace("/", "-"), said)

    def pick(self, path: str, number: int) -> tuple[ShapeSet, Shape]:
        """A set, and the shape of a number in it.

        Raises:
            DataError: see `reference`.
        """
        shapes = self.open(path)
        shape = parts.pick(shapes, number, path)
        self.layout.encode(shape)  # complains about one that is not of the model's kind
        return shapes, shape

    def scene(self, reference: Reference) -> Path:
        """A .glb of a shape, to look at from all sides."""
        path = self.new_folder() / f"{reference.name}.glb"
        write_glb([reference.shape], path, names=[reference.name.rpartition("-")[0]])
        return path

    def new_folder(self) -> Path:
        """A new folder for a visitor's scenes; of more than `KEPT_FOLDERS`, the oldest is deleted."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with self.making:
            self.folders.append(folder)
            old = [self.folders.popleft() for _ in range(len(self.folders) - KEPT_FOLDERS)]
        for each in old:
            shutil.rmtree(each, ignore_errors=True)
        return folder

    def generate(
        self, choices: ShapeChoices, tell: Callable[[int, int | None], None]
    ) -> tuple[Image.Image, list[Path], list[str]]:
        """A picture, scenes, and lines to show.

        The picture has the reference, its map and samples. The scenes (.glb) are of all samples, and of each. The lines
        tell the work it took, and any warning.

        Args:
            choices: what the page is set to.
            tell: see `Service.samples`.

        Raises:
            UsageError, DataError: it cannot be done.
            FloatingPointError: the samples are not finite.
        """
        number = whole("Number", choices.number)
        choices = replace(choices, number=number, label=self.known_class(choices.label))
        args = self.settings(choices.as_arguments())
        control.check_arguments(args)
        _, shape = self.pick(choices.path, number)
        count = len(shape["box.center"])
        chosen = [whole("Parts that are kept", part, 0) for part in choices.parts]
        if chosen and max(chosen) >= count:
            raise UsageError("other parts are ticked than the reference has: choose it again")
        ticked = parts.ticked_map(chosen, count, choices.attributes, choices.kept, self.layout)
        keep = parts.make_control([shape], [ticked], self.layout)
        made, caption, said = self.samples(args, keep, choices.label, tell)
        x = torch.from_numpy(made)
        samples, numbers = [self.layout.decode(one) for one in x], [self.layout.existing(one) for one in x]
        sheet = keep.sheet(made, [caption], self.network.image_size)
        return sheet, self.scenes(keep, samples, numbers), said

    @staticmethod
    def distance(scene: Path) -> float:
        """The distance from which a camera sees all of a .glb, however it is turned, at Babylon's angle of view."""
        import trimesh

        return float(np.linalg.norm(trimesh.load_scene(scene).extents)) / 2 / math.sin(ANGLE / 2)

    def scenes(self, keep: parts.ShapeControl, samples: Sequence[Shape], numbers: Sequence[np.ndarray]) -> list[Path]:
        """Files of all samples side by side, and of each, coloured as on the sheet."""
        folder, new = self.new_folder(), [parts.new_parts(keep.keep[0], called) for called in numbers]
        paths = [folder / "samples.glb", *(folder / f"sample-{i}.glb" for i in range(1, len(samples) + 1))]
        write_glb(samples, paths[0], faded=new, numbers=numbers)
        for path, sample, faded, called in zip(paths[1:], samples, new, numbers, strict=True):
            write_glb([sample], path, faded=[faded], numbers=[called])
        return paths
