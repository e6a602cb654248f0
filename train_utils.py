"""Helpers that programs share: argument groups, and models, transports and samplers built from arguments."""

import argparse
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from models import SIZES, ComboStoc_models, SiT, SiT_models
from runtime import checkpoint
from runtime.command_line import accepting, count, finite, none_or_str, positive_float, positive_int, unit_float
from runtime.errors import DataError, UsageError
from runtime.state_dicts import StateDict
from transport import PUBLISHED_SDE, Attributes, Method, OdeSettings, Sampler, SdeSettings, Transport
from transport.names import DIFFUSION_FORMS, LAST_STEPS, PREDICTIONS, SCHEDULES, WEIGHTS
from transport.path import PATHS
from transport.sampler import SampleFn
from transport.solvers import ODE_METHODS, SDE_METHODS
from transport.timesteps import times_of_today

# ---- names ---------------------------------------------------------------------------------------------------------

IMAGE_MODEL_NAMES = "{ComboStoc,SiT}-{XL,L,B,S,XS}/{1,2,4,8,16,32}"
# What --preset stands for, in training and in each mode of sampling; the defaults are the published setting.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {  # in time
        "training": {
            "combostoc_type": "UNSYNC_NONE",
            "times": "blend-logit-normal",
            "halfmixing": "off",
            "blend": "batch",
            "compensation": "on",
            "difficulty": 0.0,
        },
        "ODE": {"sampling_method": "heun2", "num_sampling_steps": 17},
        "SDE": {"sampling_method": "Euler", "num_sampling_steps": 64},
    },
    "fast-async": {  # in steps, where entries have times of their own
        "training": {
            "combostoc_type": "UNSYNC_ALL",
            "times": "blend-logit-normal-async",
            "halfmixing": "off",
            "blend": "batch",
            "compensation": "on",
            "difficulty": 0.01,
        },
        "ODE": {"sampling_method": "look-ahead", "num_sampling_steps": 33},
        "SDE": {"sampling_method": "Euler", "num_sampling_steps": 64},
    },
}

DEFAULTS = Method().words()  # of a method's settings, by their names on the command line

# ---- arguments -----------------------------------------------------------------------------------------------------


guidance_scale = accepting(finite, lambda w: w >= 1, "is less than 1, which is no guidance")


def sampling_scale(value: str) -> float:
    """A guidance scale of a program that samples: from 1 on, or 0, which is without a class."""
    return 0.0 if finite(value) == 0 else guidance_scale(value)


def add_workers_arg(parser: argparse._ActionsContainer) -> None:
    """Add --num-workers."""
    parser.add_argument(
        "--num-workers",
        type=count,
        default=min(4, os.cpu_count() or 1),
        help="data-loading workers per process; default: 4, or the number of CPUs if that is less",
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


def time_shift(value: str) -> float | str:
    """A time shift as an argument: a positive number, or the word auto."""
    return value if value == "auto" else positive_float(value)


def parse_transport_args(parser: argparse.ArgumentParser, from_checkpoint: bool = False) -> None:
    """Add the transport group; path and prediction default to None where a checkpoint will tell them."""
    defaults = {} if from_checkpoint else DEFAULTS
    source = "; default: read from the checkpoint" if from_checkpoint else ""
    unused = " (of training: no effect here)" if from_checkpoint else ""
    group = parser.add_argument_group("transport")
    group.add_argument(
        "--path-type",
        choices=PATHS,
        default=defaults.get("path_type"),
        help="interpolant x_t = alpha_t data + sigma_t noise: Linear (t, 1 - t), GVP (sin, cos of pi t / 2) or VP"
        + source,
    )
    group.add_argument(
        "--prediction",
        choices=PREDICTIONS,
        default=defaults.get("prediction"),
        help="quantity that the model predicts" + (source or "; default: velocity, and data for shapes"),
    )
    group.add_argument(
        "--loss-weight",
        type=none_or_str,
        choices=WEIGHTS,
        help="weight over t of a noise, score or data loss; velocity: the weight that makes it the velocity's loss"
        + unused,
    )
    group.add_argument(
        "--time-shift",
        type=time_shift,
        default=defaults.get("time_shift"),
        metavar="A",
        help="time shift t -> t / (A - (A - 1) t)"
        + (", which spaces the steps, adaptive ones too; " if from_checkpoint else ", in training and sampling; ")
        + "auto: A = sqrt(C H W / 4096)"
        + (source or "; default: 1, no shift"),
    )
    if not from_checkpoint:
        group.add_argument(
            "--loss-clamp",
            type=unit_float,
            default=DEFAULTS["loss_clamp"],
            metavar="C",
            help="weight 1 / max(1 - t, C)^2 of the loss with --prediction data --loss-weight velocity; 0: no clamp",
        )
    group.add_argument(
        "--sample-eps", type=float, help="distance kept from t = 0 and t = 1 in sampling; default: the path's own"
    )
    group.add_argument(
        "--train-eps",
        type=float,
        help="distance kept from t = 0 and t = 1 in training; default: the path's own" + unused,
    )


def parse_ode_args(parser: argparse.ArgumentParser, reverse: bool = True) -> None:
    """Add the ODE group. `reverse` is for programs that can start from images."""
    group = parser.add_argument_group("ODE")
    group.add_argument(
        "--sampling-method",
        choices=ODE_METHODS,
        help="ODE solver of torchdiffeq, adaptive or of fixed steps; look-ahead: for models trained with --difficulty",
    )
    group.add_argument("--atol", type=positive_float, help="absolute tolerance of adaptive and implicit solvers")
    group.add_argument("--rtol", type=positive_float, help="relative tolerance of adaptive and implicit solvers")
    group.add_argument(
        "--max-evaluations",
        type=positive_int,
        metavar="N",
        help="model evaluations after which an adaptive solver gives up, as where its tolerances are too small",
    )
    if reverse:
        group.add_argument(
            "--reverse",
            action="store_true",
            help="map the images of --data-path, which it needs, to noise and back, and compare",
        )
    group.add_argument(
        "--likelihood",
        action="store_true",
        help="likelihood of the images of --data-path, which it needs, in bits per dimension",
    )
    set_defaults(parser, OdeSettings())


def parse_sde_args(parser: argparse.ArgumentParser) -> None:
    """Add the SDE group."""
    group = parser.add_argument_group("SDE")
    group.add_argument("--sampling-method", choices=SDE_METHODS, help="SDE solver: Euler-Maruyama or stochastic Heun")
    group.add_argument(
        "--diffusion-form", choices=DIFFUSION_FORMS, help="diffusion coefficient w_t, as a function of t"
    )
    group.add_argument("--diffusion-norm", type=float, help="factor of the diffusion coefficient")
    group.add_argument("--last-step", type=none_or_str, choices=LAST_STEPS, help="final noise-free step")
    group.add_argument("--last-step-size", type=float, help="size of the final step in t; 0: no final step")
    set_defaults(parser, PUBLISHED_SDE)


def set_defaults(parser: argparse.ArgumentParser, settings: OdeSettings | SdeSettings) -> None:
    """Give the flags of a mode's own group the values of these settings; --num-sampling-steps is of both modes."""
    parser.set_defaults(**{name: value for name, value in vars(settings).items() if name != "num_steps"})


class Preset(argparse.Action):
    """An argument that sets all arguments that a name of `PRESETS` stands for."""

    def __init__(self, option_strings: Sequence[str], dest: str, of: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, choices=PRESETS, **kwargs)
        self.of = of

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        for name, value in PRESETS[values][self.of].items():
            setattr(namespace, name, value)


def add_preset_arg(parser: argparse._ActionsContainer, of: str) -> None:
    """Add --preset, for `of`: training, ODE or SDE."""
    flags = {
        preset: " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings[of].items())
        for preset, settings in PRESETS.items()
    }
    parser.add_argument(
        "--preset",
        action=Preset,
        of=of,
        help=f"fast: {flags['fast']}, the fastest in time on small pictures in colour; "
        f"fast-async: {flags['fast-async']}, fewer steps there, but slow on others and unstable at high learning "
        "rates, see docs/study.md; later flags override it",
    )


def typed_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the arguments that were given on the command line, as opposed to left at their default."""
    untouched = object()
    defaults = vars(parser.parse_args(argv))
    seen = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, untouched)))
    return {name for name, value in vars(seen).items() if value is not untouched}


# ---- models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """A model of images and its sizes, all of which can be read from a state dict."""

    name: str
    input_size: int
    in_channels: int
    num_classes: int
    learn_sigma: bool

    def __str__(self) -> str:
        """The model in words, for messages that set a user's checkpoint against a user's arguments."""
        variant = "" if self.learn_sigma else " without learn_sigma"
        shape = f"{self.in_channels} x {self.input_size} x {self.input_size}"
        return f"{self.name}{variant} for inputs of {shape} and {self.num_classes} classes"

    def build(self, **kwargs: Any) -> SiT:
        """The model, freshly initialised."""
        return (ComboStoc_models | SiT_models)[self.name](
            input_size=self.input_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            learn_sigma=self.learn_sigma,
            **kwargs,
        )


def image_model_config(state: StateDict, source: str) -> ModelConfig:
    """The model of images that a state dict belongs to: family, size, patch, channels, classes and learn_sigma.

    Raises:
        DataError: it is no SiT or ComboStoc model of the registries.
    """
    width, in_channels, patch, _ = weight_shape(state, "x_embedder.proj.weight", 4, source)
    num_tokens = weight_shape(state, "pos_embed", 3, source)[1]
    num_labels = weight_shape(state, "y_embedder.embedding_table.weight", 2, source)[0]
    out_channels = weight_shape(state, "final_layer.linear.weight", 2, source)[0] // patch**2
    depth = depth_of(state)
    family = "ComboStoc" if "t_embedder.patchEmb.proj.weight" in state else "SiT"
    size = next((s for s, (d, w, *_) in SIZES.items() if (d, w) == (depth, width)), None)
    if (name := f"{family}-{size}/{patch}") not in ComboStoc_models | SiT_models:
        what = f"a {family} of depth {depth}, width {width} and patch {patch}"
        raise no_such_model(source, what, IMAGE_MODEL_NAMES)
    return ModelConfig(name, math.isqrt(num_tokens) * patch, in_channels, num_labels - 1, out_channels > in_channels)


def weight_shape(state: StateDict, name: str, ndim: int, source: str) -> tuple[int, ...]:
    """The shape of a weight that every model has.

    Raises:
        DataError: the weight is missing, has another number of dimensions, or is not in floats.
    """
    fault = ""
    if name not in state:
        fault = f"{name} is missing"
    elif state[name].ndim != ndim or 0 in state[name].shape:
        fault = f"its {name} is of shape {tuple(state[name].shape)}"
    elif not state[name].is_floating_point():
        fault = f"its {name} is {str(state[name].dtype).removeprefix('torch.')}, which is no float weight"
    if fault:
        raise DataError(f"checkpoint {source} holds no SiT, ComboStoc or Parts model: {fault}")
    return tuple(state[name].shape)


def depth_of(state: StateDict) -> int:
    """The number of blocks in a state dict."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))), default=-1)


def no_such_model(source: str, what: str, known: str) -> DataError:
    """The error of a checkpoint whose sizes are those of no model."""
    return DataError(f"checkpoint {source} holds {what}, which is none of {known}")


def check_weights(model: SiT, state: StateDict, source: str) -> list[str]:
    """Compare a state dict with a model.

    Returns:
        Lines that name tensors left aside because they are no floats: counters, or buffers of positions.

    Raises:
        DataError: a weight is missing, left over, of another shape or no float; the first is named.
    """
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in state:
            raise DataError(f"checkpoint {source} lacks {key}")
        if key not in own:
            if state[key].is_floating_point():
                raise DataError(f"checkpoint {source} has {key}, which the model does not have")
        elif state[key].shape != own[key].shape:
            raise DataError(
                f"checkpoint {source} has {key} of shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
            )
        elif not state[key].is_floating_point():
            kind = str(state[key].dtype).removeprefix("torch.")
            raise DataError(f"checkpoint {source} has {key} as {kind}, which is no float weight")
    left = [key for key in state if key not in own]
    named = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    return [f"{source} has {named}, which the model does not have: no weights, left aside"] if left else []


def load_weights(model: SiT, state: StateDict, source: str) -> list[str]:
    """Load a state dict strictly. Returns lines, see `check_weights`.

    Raises:
        DataError: see `check_weights`.
    """
    lines = check_weights(model, state, source)
    model.load_state_dict(state, strict=False)  # all weights are there; what is left aside is named
    return lines


# ---- transport and samplers ----------------------------------------------------------------------------------------


def trained_with(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments a checkpoint was trained with, {} where it does not say; a draw of times has its present name."""
    values = checkpoint.training_args(content)
    if isinstance(times := values.get("times"), str):
        with suppress(ValueError):  # unknown: to be said by whoever needs it
            values["times"] = times_of_today(times)
    return values


def read_method(values: Mapping[str, Any]) -> Method:
    """The method that arguments describe, by their names on the command line; what is absent or None is the default.

    Raises:
        UsageError: a value that is not accepted, or does not fit the others; settings are named by their flags.
    """
    try:
        return Method.read(values)
    except ValueError as error:
        text = re.sub(rf"\b({'|'.join(DEFAULTS)})\b", lambda found: f"--{found[0].replace('_', '-')}", str(error))
        raise UsageError(text) from None


def build_transport(method: Method, attributes: Attributes | None = None) -> Transport:
    """The transport of a method, for images, or for shapes whose parts have these attributes.

    Raises:
        UsageError: the method is not for them.
    """
    with as_usage_errors():
        return Transport.of(method, attributes)


@contextmanager
def as_usage_errors() -> Iterator[None]:
    """A context in which a ValueError becomes a UsageError, with its words.

    Raises:
        UsageError: in place of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None


def sampler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a mode, under the names that `Sampler`'s methods give them."""
    names = [field.name for field in fields(OdeSettings if args.mode == "ODE" else SdeSettings)]
    return {name: getattr(args, "num_sampling_steps" if name == "num_steps" else name) for name in names}


def build_sampler(args: argparse.Namespace, transport: Transport, **kwargs: Any) -> SampleFn:
    """The sampler of a mode's arguments (`args.mode` is ODE or SDE); kwargs go to the sampler's method.

    Raises:
        UsageError: a setting is not accepted.
    """
    sampler = Sampler(transport)
    make: Callable[..., SampleFn]
    if args.mode == "SDE":
        make = sampler.sample_sde
    else:
        make = sampler.sample_ode_likelihood if args.likelihood else sampler.sample_ode
    with as_usage_errors():
        return make(**sampler_settings(args), **kwargs)


def build_graded_sampler(
    args: argparse.Namespace, transport: Transport, reference: Tensor, preserve: Tensor | float, **kwargs: Any
) -> SampleFn:
    """The sampler of a mode's arguments under graded control.

    Raises:
        UsageError: a setting is not accepted.
    """
    settings = sampler_settings(args) | {"mode": args.mode, "schedule": args.preserve_schedule or SCHEDULES[0]}
    with as_usage_errors():
        return Sampler(transport).sample_graded(reference, preserve, **settings, **kwargs)
