"""The page of images without Gradio: painted maps, choices as sample.py's arguments, samples of them.

The page of shapes shares `Service` and the choices of the sampler, see page/shape_studio.py.
"""

import argparse
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.pictures import to_uint8
from runtime.command_line import Parser
from runtime.errors import UsageError
from sampling import control, image_control
from sampling.arguments import pictures_parser
from sampling.network import Network, guided_by, with_progress
from train_utils import build_graded_sampler
from transport import ODE_METHODS, SDE_METHODS

CANVAS = 384  # side in pixels to which pictures are enlarged at least, by a whole factor, to be painted on
TILE = 112  # side in pixels to which pictures on the sheet are enlarged at least
OPACITY = 0.6  # of paint, so that the reference shows through

MAX_VARIATIONS = 8  # so that a click cannot ask for more memory than there is
MAX_POINTS = 1000
MAX_GUIDANCE = 15
MAX_WHOLE = 2**53  # the largest whole number that a browser tells from the next one
SAMPLERS = (*(f"ODE {method}" for method in ODE_METHODS), *(f"SDE {method}" for method in SDE_METHODS))
ANY_CLASS = -1
SCHEDULE_NAMES = [("same number everywhere", "number"), ("same size (Euler)", "size")]


# ---- messages ------------------------------------------------------------------------------------------------------


def in_words(error: Exception, path: str | None) -> str:
    """A mistake as a page shows it, with the file's name alone in place of its path."""
    return f"**{str(error).replace(str(path), Path(str(path)).name)}**"


def note(text: str, side: int) -> Image.Image:
    """A grey square with a text on it, in place of a picture."""
    picture = Image.new("RGB", (side, side), "gainsboro")
    font = ImageFont.load_default(size=side / 20)
    ImageDraw.Draw(picture).text((side / 2, side / 2), text, fill="dimgrey", font=font, anchor="mm")
    return picture


# ---- typed values --------------------------------------------------------------------------------------------------


def real(name: str, value: Any, low: float, high: float) -> float:
    """The number in a box; browsers and programs send anything.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    if value is None:
        raise UsageError(f"{name} is empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise UsageError(f"{name}: {short(value)} is not a number from {low} to {high}")


def whole(name: str, value: Any, low: int = -MAX_WHOLE, high: int = MAX_WHOLE) -> int:
    """The whole number in a box; 3.0 is one.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    if (number := real(name, value, low, high)) % 1 == 0:
        return int(number)
    raise UsageError(f"{name}: {short(value)} is not a whole number")


def short(value: Any) -> str:
    """A value for a message, on one line, however long it is."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


# ---- paint ---------------------------------------------------------------------------------------------------------


def brush_colour(strength: float) -> str:
    """A brush's colour in CSS, from violet for 0 to yellow for 1.

    Its red alone tells the strength in hundredths; green and blue are for the eye.
    """
    s = round(100 * strength) / 100
    return f"rgba({round(255 * s)}, {round(215 * s**2)}, {round(170 * (1 - s))}, {OPACITY})"


def paint_over(base: Tensor, layers: Sequence[Image.Image]) -> Tensor:
    """A map with what was painted over it, averaged over the area of each of its pixels: (S, S).

    Args:
        base: (S, S), the map where nothing is painted.
        layers: painted with `brush_colour`, transparent elsewhere, of any size.
    """
    m = base.double()
    for layer in layers:
        rgba = torch.from_numpy(np.array(layer.convert("RGBA"))).double()
        painted = (rgba[..., 3] > 255 * OPACITY / 2).double()
        strength = (rgba[..., 0] / 2.55).round() / 100
        paint, cover = F.adaptive_avg_pool2d(torch.stack([painted * strength, painted]), len(m))
        m = paint + (1 - cover) * m
    return m.float()


def enlarged(images: Tensor, at_least: int) -> Tensor:
    """Pictures (..., S, S) enlarged by a whole factor, so that a pixel stays a square."""
    zoom = math.ceil(at_least / images.shape[-1])
    return images.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)


# ---- samples -------------------------------------------------------------------------------------------------------


@dataclass
class Choices:
    """The settings of the page of images."""

    reference: str  # a picture's path
    layers: Sequence[Image.Image]
    elsewhere: float  # how much is kept where nothing is painted
    label: int | None
    guidance: float
    sampler: str  # mode and method
    points: int
    schedule: str
    variations: int
    seed: int
    factors: Sequence[float] = field(default_factory=list)  # of the latent channels, where there are several

    def as_arguments(self) -> list[str]:
        """These choices as arguments of sample.py, without the painting.

        Raises:
            UsageError: a box holds an invalid value.
        """
        factors = [real(f"Channel {k}", factor, 0, 1) for k, factor in enumerate(self.factors, start=1)]
        return as_arguments(
            self.sampler,
            reference=self.reference,
            preserve=real("Kept where nothing is painted", self.elsewhere, 0, 1),
            preserve_channels=",".join(map(str, factors)) or None,
            preserve_schedule=self.schedule,
            class_labels=self.label,
            cfg_scale=1 if self.label is None else real("Guidance", self.guidance, 1, MAX_GUIDANCE),
            **sampler_settings(self.points, self.variations, self.seed),
        )


def sampler_settings(points: Any, variations: Any, seed: Any) -> dict[str, int]:
    """The typed settings of any sampler, under the names of sample.py.

    Raises:
        UsageError: a box holds an invalid value.
    """
    return {
        "num_sampling_steps": whole("Time points", points, 2, MAX_POINTS),
        "variations": whole("Variations", variations, 1, MAX_VARIATIONS),
        "seed": whole("Seed", seed),
    }


def as_arguments(sampler: str, **values: Any) -> list[str]:
    """Choices as arguments of sample.py, without those that are None.

    Args:
        sampler: mode and method, one of `SAMPLERS`.

    Raises:
        UsageError: there is no such sampler.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"Sampler: {short(sampler)} is none of {', '.join(SAMPLERS)}")
    mode, method = sampler.split()
    flags = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return [mode, f"--sampling-method={method}", *(f"--{name}={value}" for name, value in flags.items())]


@dataclass
class Counter:
    """A progress bar for `with_progress` that calls a function."""

    tell: Callable[[int, int | None], None]
    total: int | None
    n: int = 0

    def update(self) -> None:
        """Count an evaluation, and tell it."""
        self.n += 1
        self.tell(self.n, self.total)


class Service:
    """A network that a page generates with, for one visitor at a time."""

    def __init__(self, network: Network, device: torch.device, precision: str) -> None:
        self.network, self.device, self.precision = network, device, precision
        self.busy, self.closed = threading.Lock(), False

    def close(self) -> None:
        """End what is being generated. (Python cannot end well while another thread is in the midst of a model.)"""
        self.closed = True
        self.busy.acquire()

    def parser(self) -> Parser:
        """The parser of sample.py, for its checks and defaults."""
        return pictures_parser(None)

    def settings(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The settings that sample.py makes of arguments, in this service's precision.

        Raises:
            UsageError: it does not take them.
        """
        return self.parser().understand([*arguments, f"--precision={self.precision}"])

    def known_class(self, label: Any) -> int | None:
        """The number of a class that a box holds; None for any class.

        Raises:
            UsageError: the model has no such class.
        """
        return None if label in (None, ANY_CLASS) else whole("Class", label, 0, self.network.num_labels - 1)

    def samples(
        self,
        args: argparse.Namespace,
        keep: control.Control,
        label: int | None,
        tell: Callable[[int, int | None], None],
    ) -> tuple[np.ndarray, str, list[str]]:
        """Samples of one reference, their caption, and lines that tell the work it took and any warning.

        Args:
            args: sample.py's arguments.
            keep: the reference, and how much of it is kept.
            label: the class; None is no class.
            tell: is called with how often the model has been evaluated, and how often it will be if that is known.

        Raises:
            UsageError: a setting is not accepted.
            FloatingPointError: the samples are not finite.
        """
        network = self.network
        sampler = build_graded_sampler(args, network.transport, keep.keep, keep.keep)  # complains about bad settings

        def count(n: int, total: int | None) -> None:
            if self.closed:
                raise UsageError("the program ends")
            tell(n, total)

        model = with_progress(guided_by(args, network), Counter(count, sampler.evaluations))
        settings = {"seed": args.seed, "variations": args.variations, "batch_size": args.batch_size}
        with self.busy:
            labels = [network.config.num_classes if label is None else label]
            samples, nfe = control.generate(args, network, keep, labels, model, self.device, **settings)
        said = [f"{args.mode} {args.sampling_method}: {nfe} model evaluations"]
        if warning := keep.untrained_times(network):
            said.append(f"**warning:** {warning}")
        return samples, "sample" if label is None else network.class_name(label), said


class Studio(Service):
    """The page of images without Gradio."""

    def canvas(self, reference: str) -> Image.Image:
        """A reference as the model gets it, large enough to paint on.

        Raises:
            DataError: the file cannot be read, or not be cropped.
        """
        images = image_control.load_references([reference], self.network)
        return Image.fromarray(to_uint8(enlarged(images, CANVAS))[0])

    def generate(self, choices: Choices, tell: Callable[[int, int | None], None]) -> tuple[Image.Image, list[str]]:
        """A picture of reference, map and samples, and lines that tell the work it took and any warning.

        Args:
            choices: what the page is set to.
            tell: see `Service.samples`.

        Raises:
            UsageError, DataError: it cannot be done.
            FloatingPointError: the samples are not finite.
        """
        network = self.network
        choices = replace(choices, label=self.known_class(choices.label))
        args = self.settings(choices.as_arguments())
        control.check_arguments(args)
        base = image_control.pixel_maps(args.preserve, args.reference, network.image_size)
        painted = torch.stack([paint_over(m, choices.layers) for m in base])
        keep = image_control.make_control(
            image_control.load_references(args.reference, network), painted, args.preserve_channels, network
        )
        samples, caption, said = self.samples(args, keep, choices.label, tell)
        zoom = math.ceil(TILE / network.image_size)
        shown = replace(keep, images=enlarged(keep.images, TILE))
        return shown.sheet(samples.repeat(zoom, 1).repeat(zoom, 2), [caption]), said
