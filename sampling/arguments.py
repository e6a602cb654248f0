"""The command lines of the programs that sample."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.command_line import ModeParser, Parser, positive_int, unit_float, whole, with_values
from runtime.precision import add_speed_args
from train_utils import (
    add_preset_arg,
    parse_ode_args,
    parse_sde_args,
    parse_transport_args,
    sampling_scale,
)
from transport import PUBLISHED_SDE
from transport.names import SCHEDULES
from transport.solvers import ODE_SOLVERS

DEFAULT_MODEL = "SiT-XL/2"  # as in SiT's programs
CFG_SCALE = 4.0  # of pictures
VARIATIONS = 4  # of a reference, under graded control
NULL = "null"  # the class of samples without a class, in words


def sampling_parser(
    doc: str | None,
    add_program_args: Callable[[argparse.ArgumentParser], None],
    *,
    vae: str,
    cfg_scale: float,
    reverse: bool,
) -> Parser:
    """A parser with the sub-commands ODE and SDE, each with its own group and what both share.

    Args:
        doc: the program's docstring.
        add_program_args: adds the program's own arguments to a sub-command.
        vae, cfg_scale: the program's defaults.
        reverse: whether ODE offers --reverse.
    """
    parser = Parser(description=doc)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="{ODE,SDE}", parser_class=ModeParser)
    for mode, title in (("ODE", "integrate the probability-flow ODE"), ("SDE", "integrate the SDE")):
        sub = modes.add_parser(mode, help=title, description=title)
        add_model_args(sub, vae)
        group = sub.add_argument_group("sampling")
        group.add_argument(
            "--cfg-scale",
            type=sampling_scale,
            help="classifier-free guidance scale: 1 for no guidance, 0 for samples without a class; default: "
            + (f"{cfg_scale}" if cfg_scale == 1 else f"{cfg_scale}, and 1 for shapes"),
        )
        group.add_argument(
            "--cfg-channels",
            choices=["3", "all"],
            help="channels that guidance works on: the first 3, or all; default: 3 for latents of four channels, "
            "as in published numbers, else all",
        )
        group.add_argument(
            "--guide-ckpt",
            metavar="FILE",
            help="autoguidance: guide away from the model of this checkpoint, smaller or trained for less and of the "
            "same inputs, in place of the model without a class",
        )
        group.add_argument(
            "--guidance-interval",
            type=unit_float,
            nargs=2,
            default=(0.0, 1.0),
            metavar=("LO", "HI"),
            help="guide only while LO <= t <= HI, t from 0 (noise) to 1; outside, the model is not run without "
            "a class, which halves the cost; default: 0 1",
        )
        group.add_argument(
            "--num-sampling-steps",
            type=positive_int,
            default=PUBLISHED_SDE.num_steps,
            help="time points of a fixed-step solver, both ends included: one more than steps; no effect on adaptive "
            "ones",
        )
        add_preset_arg(group, mode)
        add_speed_args(group)
        add_program_args(sub)
        if mode == "ODE":
            parse_ode_args(sub, reverse=reverse)
            group.add_argument("--data-path", help="images for --reverse and --likelihood: a folder, or 'digits'")
        else:
            parse_sde_args(sub)
            sub.set_defaults(likelihood=False, reverse=False)
        parse_transport_args(sub, from_checkpoint=True)
    return parser


def add_model_args(parser: argparse.ArgumentParser, vae: str) -> None:
    """Add the model group: the checkpoint, and what `load_network` reads from it or checks against it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ckpt",
        help="checkpoint: a .pt or .safetensors file, a folder of shards, a published name, or hf://owner/repo/file",
    )
    group.add_argument(
        "--model",
        help=f"architecture; default: read from --ckpt; without --ckpt, a published model that is fetched, "
        f"{DEFAULT_MODEL}",
    )
    group.add_argument(
        "--vae",
        help=f"autoencoder: ema, mse, none or a diffusers folder; default: {vae}, or as trained if that was none or a "
        "folder",
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        help="side of the images in pixels, default: read from the checkpoint; for shapes that of their pictures, "
        "default: 192",
    )
    group.add_argument("--num-classes", type=positive_int, help="number of classes; default: read from the checkpoint")


Rule = tuple[bool, str, tuple[str, ...]]  # whether it applies, why, and to which arguments


def ignore_what_has_no_effect(
    args: argparse.Namespace, parser: Parser, argv: Sequence[str] | None, of_kind: Iterable[Rule]
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, with those that change nothing at their defaults, so that no record takes them for settings.

    Args:
        args: the arguments that `parser`, a `sampling_parser`, made of `argv`, with the program's and the checkpoint's
            values in them.
        of_kind: the rules of the kind of data, see `sampling.kind.Kind.without_effect_in_sampling`.

    Returns:
        The arguments, and a line for each reason that concerns some that were typed.
    """
    method = args.sampling_method
    defaults = parser.parse_args([args.mode, "--cfg-channels", "3"])  # as records say it where it has no effect
    rules: list[Rule] = [
        (True, "in sampling, only in training", ("loss_weight", "train_eps")),
        (args.cfg_scale in (0, 1), "without guidance", ("cfg_channels", "guidance_interval", "guide_ckpt")),
        (args.guide_ckpt is not None, "on --guide-ckpt, which guides all channels", ("cfg_channels",)),
        *of_kind,
        (args.cfg_scale == 0, "without a class", ("balanced_labels",)),
        (args.likelihood, "on --likelihood", ("num_fid_samples", "sample_dir", "balanced_labels", "out")),
        ("reverse" in args and args.reverse, "on --reverse", ("seed", "batch_size")),
    ]
    if args.mode == "ODE":
        solver = ODE_SOLVERS[method]
        rules.append((solver.adaptive, f"on {method}, which chooses its own steps", ("num_sampling_steps",)))
        rules.append((not solver.uses_tolerance, f"on {method}, whose steps are fixed", ("atol", "rtol")))
        rules.append((not solver.adaptive, f"on {method}, whose steps are counted", ("max_evaluations",)))
    else:
        no_size = args.last_step_size == 0 and args.last_step is not None
        rules.append((no_size, "with --last-step-size 0", ("last_step",)))
        rules.append((args.last_step is None, "with --last-step None", ("last_step_size",)))
    typed, lines = {text.partition("=")[0] for text in (sys.argv[1:] if argv is None else argv)}, []
    for applies, why, names in rules:
        flags = ["--" + name.replace("_", "-") for name in names]
        if applies:
            args = with_values(args, {name: getattr(defaults, name) for name in names if name in defaults})
            if given := [flag for flag in flags if flag in typed]:
                lines.append(f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {why}")
    return args, lines


def pictures_parser(doc: str | None) -> Parser:
    """The parser of sample.py, whose arguments are also those of the page of app.py."""
    return sampling_parser(doc, add_pictures_args, vae="mse", cfg_scale=CFG_SCALE, reverse=True)


def add_pictures_args(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of sample.py alone, and those of graded control."""
    group = parser.add_argument_group("program")
    group.add_argument("--seed", type=whole, default=0, help="random seed; the noise of picture i depends on (seed, i)")
    group.add_argument(
        "--class-labels",
        nargs="+",
        metavar="K",
        help=f"a picture for each label, a class's number or name, or {NULL} for none; default: a choice of classes. "
        f"With --reference: one label for all or one for each; default: {NULL}",
    )
    group.add_argument("--out", type=Path, default=Path("sample.png"), help="picture to write, a .png")
    group.add_argument(
        "--glb", type=Path, metavar="FILE", help="also write sampled shapes to this .glb, side by side in 3D"
    )
    group.add_argument("--batch-size", type=positive_int, default=64, help="pictures that are sampled at a time")
    add_control_args(parser)


# ---- graded control ------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of the picture

REGIONS: dict[str, Box] = {
    "all": (0, 0, 1, 1),
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
REGION = rf"(?:([a-z]+)|({NUMBER}),({NUMBER}),({NUMBER}),({NUMBER})):({NUMBER})"


@dataclass(frozen=True)
class Preserve:
    """A SPEC of --preserve for images: the path of a mask, or boxes with a value each.

    For shapes, `shapes.control` reads the text.
    """

    text: str
    mask: str | None
    boxes: list[tuple[Box, float]]
    fault: str | None = None  # of an image's


def preserve_spec(text: str) -> Preserve:
    """A SPEC of --preserve as an argument: a number, regions, or else the path of a mask.

    Raises:
        argparse.ArgumentTypeError: a box is not within the picture, or a value not in [0, 1].
    """
    if re.fullmatch(NUMBER, text):
        return Preserve(text, None, [(REGIONS["all"], unit_float(text))])
    if not re.fullmatch(rf"{REGION}(?:,{REGION})*", text):
        return Preserve(text, text, [])
    boxes = []
    for name, *corners, value in re.findall(REGION, text):
        if name and name not in REGIONS:
            return Preserve(text, None, [], f"unknown region {name!r}; choose from {', '.join(REGIONS)}")
        x0, y0, x1, y1 = REGIONS[name] if name else map(float, corners)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise argparse.ArgumentTypeError(
                f"box {','.join(corners)} is not x0,y0,x1,y1 with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
            )
        boxes.append(((x0, y0, x1, y1), unit_float(value)))
    return Preserve(text, None, boxes)


def channel_factors(text: str) -> list[float]:
    """Factors in [0, 1] as an argument, separated by commas."""
    return [unit_float(value) for value in text.split(",")]


def add_control_args(parser: argparse.ArgumentParser) -> None:
    """Add the group of graded control."""
    group = parser.add_argument_group("graded control", "generate what is not kept of a reference picture or shape")
    group.add_argument(
        "--reference",
        nargs="+",
        metavar="IMG",
        help="pictures to keep something of, cropped to squares; or shapes, as FILE.npz:3 or shapes:3",
    )
    group.add_argument(
        "--preserve",
        type=preserve_spec,
        metavar="SPEC",
        help="how much to keep, from 0 to 1: a number (0.75), regions (left:0.9,right:0.1; also top, bottom, all), "
        "boxes in fractions of the picture (x0,y0,x1,y1:value), or a grey mask picture, where white keeps; of shapes "
        "a number, parts (parts:0,2:0.9) or attributes (box.size:0.9)",
    )
    group.add_argument(
        "--preserve-channels",
        type=channel_factors,
        metavar="F,F,...",
        help="factors from 0 to 1, one for each latent channel, that multiply --preserve",
    )
    group.add_argument(
        "--preserve-schedule",
        choices=SCHEDULES,
        help="number: every entry reaches the data in equally many steps, smaller ones where more is kept; size: all "
        "steps are equally large (ODE euler, SDE Euler); default: number",
    )
    group.add_argument(
        "--preserve-pixels", action="store_true", help="paste pixels that are kept at 1 over the decoded picture"
    )
    group.add_argument(
        "--variations",
        type=positive_int,
        metavar="N",
        help=f"number of samples of each reference; default: {VARIATIONS}",
    )
