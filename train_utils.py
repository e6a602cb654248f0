"""What the programs share: argument groups, and models, transports and samplers built from arguments.

It is imported to read the command line, and so imports torch only where something is built.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from choices import (
    BLENDS,
    DIFFUSION_FORMS,
    EXTRACTORS,
    LAST_STEPS,
    MODELS,
    ODE_METHODS,
    PATHS,
    PREDICTIONS,
    SDE_METHODS,
    WEIGHTS,
)
from errors import DataError, UsageError, report
from images import MAX_PIXELS

if TYPE_CHECKING:
    from torch import Tensor

    from checkpoint import StateDict
    from models import SiT
    from transport import Transport
    from transport.sampler import SampleFn

MAX_REFERENCE = 50_000  # training images that an evaluation during training looks at
MODEL_NAMES = "{ComboStoc,SiT}-{XL,L,B,S}/{2,4,8} or -XS/{2,4}"


# ---- arguments -----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, printed by one process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        sys.exit(report(self.prog, f"{message} (see {self.prog} --help)", 2))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the program's docstring as it is, and shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0 or "default" in text:
            return text
        return f"{text} (default: %(default)s)".strip()


class ModeParser(Parser):
    """Of a sub-command: it refuses what it does not know itself, and names the help that lists what it does."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def folder_name(value: str) -> str:
    """The end of a folder's name; it may name a folder in it (group/run), and must not lead anywhere else."""
    parts = value.split("/")
    if not all(part.strip() for part in parts) or ".." in parts or not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value!r} cannot be part of a folder's name; letters, digits, - and _ can")
    return value


def model_name(value: str) -> str:
    if value not in MODELS:
        raise argparse.ArgumentTypeError(f"unknown model {value!r}; choose from {MODEL_NAMES}")
    return value


def default_combostoc_type(model: str) -> str:
    """What a model is trained with unless it is said otherwise."""
    return "UNSYNC_NONE" if model.startswith("SiT") else "UNSYNC_ALL"


def none_or_str(value: str) -> str | None:
    """The word None on the command line is None."""
    return None if value == "None" else value


def positive_int(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive whole number")
    return number


def count(value: str) -> int:
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; 0 and more is accepted")
    return number


def positive_float(value: str) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return number


def unit_float(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1]")
    return number


def decay(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1)")
    return number


def guidance_scale(value: str) -> float:
    number = float(value)
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is less than 1, which is no guidance")
    return number


def sampling_scale(value: str) -> float:
    """Of a program that samples: 0 is without a class."""
    return 0.0 if float(value) == 0 else guidance_scale(value)


def add_workers_arg(parser: argparse._ActionsContainer) -> None:
    """Add --num-workers."""
    parser.add_argument(
        "--num-workers",
        type=count,
        default=min(4, os.cpu_count() or 1),
        help="data loading processes for each process; default: 4, or the CPUs if fewer",
    )


def add_bad_images_arg(parser: argparse._ActionsContainer) -> None:
    """Add --max-bad-images."""
    parser.add_argument(
        "--max-bad-images",
        type=unit_float,
        default=0.001,
        metavar="SHARE",
        help="stop when more than this share of the images, and more than one, cannot be read; fewer are named and "
        "left out; 0: stop at the first",
    )


def add_flip_arg(parser: argparse._ActionsContainer, what: str) -> None:
    """Add --flip and --no-flip."""
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"{what}; --no-flip where left and right matter, as in text",
    )


def allowed_bad_images(total: int, max_bad_images: float) -> int:
    """How many of so many images may be unreadable: the share, but one in a small set, unless the share is 0."""
    return max(int(max_bad_images * total), int(max_bad_images > 0))


def check_readable(reasons: Collection[str], total: int, max_bad_images: float) -> None:
    """
    Raises:
        DataError: more images than the share allowed cannot be read.
    """
    if len(reasons) > allowed_bad_images(total, max_bad_images):
        *_, last = reasons
        raise DataError(
            f"{len(reasons):,} of {total:,} images cannot be read, more than --max-bad-images {max_bad_images:g} "
            f"allows; the last: {last}"
        )


def add_eval_args(parser: argparse._ActionsContainer) -> None:
    """Add --eval-every and what belongs to it."""
    parser.add_argument("--eval-every", type=count, default=0, help="steps between evaluations; 0 is never")
    parser.add_argument("--eval-samples", type=positive_int, default=10_000, help="samples of the averaged weights")
    parser.add_argument(
        "--eval-sampling-steps", type=positive_int, default=250, help="time points of the Euler SDE, without guidance"
    )
    parser.add_argument("--eval-features", choices=EXTRACTORS, default="inception", help="network that sees the images")
    parser.add_argument("--eval-weights", type=Path, metavar="FILE", help="of inception; default: fetched once")
    parser.add_argument(
        "--eval-reference",
        metavar="FILE",
        help=f"what evaluate.py takes as REFERENCE; default: the training images, at most {MAX_REFERENCE:,}",
    )


def parse_transport_args(parser: argparse.ArgumentParser, from_checkpoint: bool = False) -> None:
    """Add the transport group; path and prediction default to None where a checkpoint will tell them."""
    path, prediction = (None, None) if from_checkpoint else ("Linear", "velocity")
    source = "; default: read from the checkpoint" if from_checkpoint else ""
    unused = " (of training: no effect here)" if from_checkpoint else ""
    group = parser.add_argument_group("transport")
    group.add_argument("--path-type", choices=PATHS, default=path, help="interpolant" + source)
    group.add_argument("--prediction", choices=PREDICTIONS, default=prediction, help="what the model predicts" + source)
    group.add_argument(
        "--loss-weight", type=none_or_str, choices=WEIGHTS, help="weight of score and noise losses" + unused
    )
    group.add_argument("--sample-eps", type=float, help="distance from t = 0 and 1 in sampling; default: the path's")
    group.add_argument(
        "--train-eps", type=float, help="distance from t = 0 and 1 in training; default: the path's" + unused
    )


def parse_ode_args(parser: argparse.ArgumentParser, reverse: bool = True) -> None:
    """Add the ODE group. `reverse` is for programs that can start from images."""
    group = parser.add_argument_group("ODE")
    group.add_argument("--sampling-method", choices=ODE_METHODS, default="dopri5", help="solver of torchdiffeq")
    group.add_argument("--atol", type=positive_float, default=1e-6, help="absolute tolerance, of all but fixed steps")
    group.add_argument("--rtol", type=positive_float, default=1e-3, help="relative tolerance, of all but fixed steps")
    if reverse:
        group.add_argument(
            "--reverse", action="store_true", help="map the images of --data-path to noise, and back to compare"
        )
    group.add_argument(
        "--likelihood", action="store_true", help="score the images of --data-path in bits per dimension"
    )


def parse_sde_args(parser: argparse.ArgumentParser) -> None:
    """Add the SDE group."""
    group = parser.add_argument_group("SDE")
    group.add_argument("--sampling-method", choices=SDE_METHODS, default="Euler", help="Euler-Maruyama or Heun")
    group.add_argument("--diffusion-form", choices=DIFFUSION_FORMS, default="sigma", help="diffusion coefficient w_t")
    group.add_argument("--diffusion-norm", type=float, default=1.0, help="scale of the diffusion coefficient")
    group.add_argument(
        "--last-step", type=none_or_str, choices=LAST_STEPS, default="Mean", help="the step that ends without noise"
    )
    group.add_argument("--last-step-size", type=float, default=0.04, help="its size; 0 is the same as None")


def typed_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the arguments that were given on the command line, as opposed to left at their default."""
    untouched = object()
    defaults = vars(parser.parse_args(argv))
    seen = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, untouched)))
    return {name for name, value in vars(seen).items() if value is not untouched}


# ---- models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """A model of the registry and its sizes, all of which a state dict shows."""

    name: str
    input_size: int
    in_channels: int
    num_classes: int
    learn_sigma: bool

    def __str__(self) -> str:
        """For messages: a user's checkpoint against a user's arguments."""
        variant = "" if self.learn_sigma else " without learn_sigma"
        shape = f"{self.in_channels} x {self.input_size} x {self.input_size}"
        return f"{self.name}{variant} for inputs of {shape} and {self.num_classes} classes"

    def build(self, **kwargs: Any) -> SiT:
        from models import ComboStoc_models, SiT_models

        return (ComboStoc_models | SiT_models)[self.name](
            input_size=self.input_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            learn_sigma=self.learn_sigma,
            **kwargs,
        )


def model_config(state: StateDict, source: str) -> ModelConfig:
    """Read family, size, patch, channels, classes and learn_sigma from a state dict.

    Raises:
        DataError: it is not a model of the registries.
    """
    from models import SIZES

    try:
        _, num_tokens, width = state["pos_embed"].shape
        _, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
        num_labels = state["y_embedder.embedding_table.weight"].shape[0]
        out_channels = state["final_layer.linear.weight"].shape[0] // patch**2
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise DataError(f"checkpoint {source} holds no SiT or ComboStoc model: {error} is missing") from None
    family = "ComboStoc" if "t_embedder.patchEmb.proj.weight" in state else "SiT"
    size = next((s for s, (d, w, *_) in SIZES.items() if (d, w) == (depth, width)), None)
    name = f"{family}-{size}/{patch}"
    if name not in MODELS:
        raise DataError(
            f"checkpoint {source} holds a {family} of depth {depth}, width {width} and patch {patch}, "
            f"which is none of {', '.join(MODELS)}"
        )
    return ModelConfig(name, math.isqrt(num_tokens) * patch, in_channels, num_labels - 1, out_channels > in_channels)


def check_weights(model: SiT, state: StateDict, source: str) -> None:
    """
    Raises:
        DataError: a tensor is missing, left over or of another shape; the first is named.
    """
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in state:
            raise DataError(f"checkpoint {source} lacks {key}")
        if key not in own:
            raise DataError(f"checkpoint {source} has {key}, which the model does not have")
        if state[key].shape != own[key].shape:
            raise DataError(
                f"checkpoint {source} has {key} of shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
            )


def load_weights(model: SiT, state: StateDict, source: str) -> None:
    """Load a state dict strictly.

    Raises:
        DataError: see `check_weights`.
    """
    check_weights(model, state, source)
    model.load_state_dict(state)


def latent_size(image_size: int, factor: int, model: str) -> int:
    """Side of a model's input for an image size.

    Raises:
        UsageError: the autoencoder's factor and the patch do not divide it.
    """
    patch_size = int(model.rpartition("/")[2])
    if image_size**2 > MAX_PIXELS:
        raise UsageError(f"--image-size {image_size} is too large: more than {MAX_PIXELS:,} pixels")
    if image_size < 1 or image_size % (factor * patch_size):
        raise UsageError(
            f"--image-size {image_size} is not a multiple of {factor * patch_size} "
            f"(autoencoder factor {factor}, patch {patch_size})"
        )
    return image_size // factor


# ---- transport and samplers ----------------------------------------------------------------------------------------


def add_method_args(parser: argparse._ActionsContainer) -> None:
    """Add what ComboStoc's training may vary; the defaults are the published method."""
    switch = ("on", "off")
    parser.add_argument(
        "--halfmixing", choices=switch, default="on", help="asynchronous times in half of each batch; off: in all of it"
    )
    parser.add_argument(
        "--blend",
        choices=BLENDS,
        default="batch",
        help="mix asynchronous times with a synchronous one, by a weight for the batch or for each sample",
    )
    parser.add_argument(
        "--compensation",
        choices=switch,
        default="on",
        help="turn the velocity of asynchronous samples towards the diagonal",
    )


def method_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as `create_transport` calls it, the published method where nothing is said."""
    import transport

    return {
        "use_halfmixing": values.get("halfmixing", "on") == "on",
        "use_blend": transport.BLENDS[values.get("blend", "batch")],
        "use_compensation": values.get("compensation", "on") == "on",
    }


def build_transport(args: argparse.Namespace, combostoc_type: str = "UNSYNC_NONE", **method: Any) -> Transport:
    """The transport of the transport group's arguments, and of `method_settings`."""
    from transport import create_transport

    names = ("path_type", "prediction", "loss_weight", "train_eps", "sample_eps")
    try:
        return create_transport(*(getattr(args, name) for name in names), combostoc_type, **method)
    except ValueError as error:
        raise UsageError(str(error)) from None


def sampler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """A mode's arguments as `Sampler`'s methods call them."""
    if args.mode == "SDE":
        names = ("sampling_method", "diffusion_form", "diffusion_norm", "last_step", "last_step_size")
    else:
        names = ("sampling_method", "atol", "rtol")
    return {name: getattr(args, name) for name in names} | {"num_steps": args.num_sampling_steps}


def build_sampler(args: argparse.Namespace, transport: Transport, **kwargs: Any) -> SampleFn:
    """The sampler of a mode's arguments (`args.mode` is ODE or SDE); kwargs go to the sampler's method."""
    from transport import Sampler

    sampler = Sampler(transport)
    if args.mode == "SDE":
        make = sampler.sample_sde
    else:
        make = sampler.sample_ode_likelihood if args.likelihood else sampler.sample_ode
    return checked(make, **sampler_settings(args), **kwargs)


def build_graded_sampler(
    args: argparse.Namespace, transport: Transport, reference: Tensor, preserve: Tensor | float, **kwargs: Any
) -> SampleFn:
    """The same under graded control."""
    from transport import Sampler

    settings = sampler_settings(args) | {"mode": args.mode, "schedule": args.preserve_schedule}
    return checked(Sampler(transport).sample_graded, reference, preserve, **settings, **kwargs)


def checked(make: Callable[..., SampleFn], *args: Any, **settings: Any) -> SampleFn:
    """
    Raises:
        UsageError: a setting is not accepted.
    """
    try:
        return make(*args, **settings)
    except ValueError as error:
        raise UsageError(str(error)) from None
