"""The command line of train.py, and what it refuses."""

import argparse
from pathlib import Path

from evaluation.features import EXTRACTORS
from kinds import MODEL_NAMES, model_name
from runtime import precision
from runtime.command_line import (
    Parser,
    count,
    decay,
    folder_name,
    positive_float,
    positive_int,
    weight,
    whole,
    with_values,
)
from runtime.errors import UsageError
from sampling.kind import Kind
from sampling.monitor import MAX_REFERENCE
from train_utils import (
    DEFAULTS,
    add_bad_images_arg,
    add_flip_arg,
    add_preset_arg,
    add_workers_arg,
    guidance_scale,
    parse_transport_args,
    read_method,
)
from transport import PUBLISHED_SDE
from transport.method import SWITCH
from transport.names import BLENDS, COMBOSTOC_TYPES
from transport.timesteps import DRAWS, times_of_today


def make_parser(doc: str | None = None) -> Parser:
    """The parser of train.py, whose docstring is its description."""
    parser = Parser(description=doc)

    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        required=True,
        help="folder or .zip of images (read as RGB), a sub-folder a class or with a dataset.json; a folder of cached "
        "latents; or 'digits'; or an .npz of shapes, see import_shapes.py, or 'shapes'",
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        default=256,
        help="side in pixels to which images are resized and cropped; cached latents bring theirs",
    )
    group.add_argument("--num-classes", type=positive_int, default=1000, help="classes of the model")
    group.add_argument(
        "--vae",
        default="ema",
        help="ema or mse (SD-VAE), none (pixel space), or a diffusers folder of an image autoencoder; cached latents "
        "bring theirs",
    )
    group.add_argument(
        "--latent-stats",
        choices=("config", "data", "none"),
        help="scale of latents: config, the autoencoder's scaling factor; data, mean 0 and deviation 1 in each channel "
        "of cached latents; none; default: config, or data if there is no factor",
    )
    group.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="colour channels of images with --vae none; default: 1 where the pictures are grey, else 3",
    )
    group.add_argument("--encode-bf16", action="store_true", help="run the autoencoder's encoder in bfloat16")
    add_flip_arg(group, "random horizontal flip of half of the images, other ones in each epoch")
    add_bad_images_arg(group)
    add_workers_arg(group)

    group = parser.add_argument_group("training")
    group.add_argument("--model", type=model_name, default="ComboStoc-XL/2", help=f"architecture: {MODEL_NAMES}")
    group.add_argument(
        "--combostoc-type",
        choices=COMBOSTOC_TYPES,
        help="unit with its own timestep: UNSYNC_NONE a sample, VEC a channel, PATCH a position, ALL an entry; of "
        "shapes "
        "PART a part, ATT an attribute, ATT_PART an attribute of a part; default: UNSYNC_ALL, for SiT UNSYNC_NONE, "
        "for shapes UNSYNC_ATT_PART",
    )
    add_method_args(group)
    group.add_argument("--epochs", type=positive_int, default=1400, help="passes over the data")
    group.add_argument("--max-steps", type=positive_int, help="stop at this step, counted from the run's beginning")
    group.add_argument(
        "--global-batch-size", type=positive_int, default=256, help="batch size: images per step, over all processes"
    )
    group.add_argument("--global-seed", type=whole, default=0, help="seed of initialisation, data order and noise")
    group.add_argument("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW")
    group.add_argument(
        "--warmup-steps",
        type=count,
        default=0,
        metavar="N",
        help="raise the learning rate from 0 over the first N steps",
    )
    group.add_argument(
        "--lr-decay",
        type=count,
        default=0,
        metavar="N",
        help="lower the learning rate to 0 over the last N steps of --max-steps or --epochs; default: constant",
    )
    group.add_argument(
        "--betas",
        type=decay,
        nargs=2,
        default=[0.9, 0.999],
        metavar=("B1", "B2"),
        help="decay per step of AdamW's averages of gradients and their squares; default: 0.9 0.999",
    )
    group.add_argument(
        "--weight-decay", type=weight, default=0.0, metavar="W", help="weight decay of AdamW, on all parameters"
    )
    group.add_argument("--ema-decay", type=decay, default=0.9999, help="EMA decay per step, of the averaged weights")
    group.add_argument(
        "--ema-warmup",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="EMA decay of step k: (1 + k) / (10 + k) where that is less than --ema-decay; default: off",
    )
    group.add_argument(
        "--max-grad-norm", type=positive_float, help="gradient-norm clipping threshold; default: no clipping"
    )
    group.add_argument(
        "--max-bad-steps",
        type=positive_int,
        default=10,
        metavar="N",
        help="stop after N steps in a row whose loss or gradients were not finite; fewer are skipped",
    )
    precision.add_speed_args(group)
    group.add_argument(
        "--grad-accum",
        type=positive_int,
        default=1,
        metavar="K",
        help="gradient accumulation: K micro-batches a step",
    )
    group.add_argument(
        "--grad-checkpointing",
        type=count,
        default=0,
        metavar="K",
        help="activation checkpointing: recompute every K-th block in the backward pass, for less memory; 0: none",
    )

    group = parser.add_argument_group("experiment")
    group.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of all experiments")
    group.add_argument(
        "--exp", type=folder_name, default="exp_tmp", help="name of the experiment, in RESULTS_DIR/<model>-<exp>"
    )
    group.add_argument(
        "--ckpt", help="continue this checkpoint: a file, a folder of shards, a published name, or hf://owner/repo/file"
    )
    group.add_argument(
        "--init-from", metavar="CKPT", help="begin a fresh run from the weights of this checkpoint that fit"
    )
    group.add_argument(
        "--ckpt-format",
        choices=["pt", "safetensors"],
        default="pt",
        help="format of kept checkpoints: pt has all that a run needs to continue, safetensors the averaged weights "
        "alone, for sampling",
    )
    group.add_argument("--log-every", type=count, default=100, help="steps between log lines; 0: never")
    group.add_argument(
        "--ckpt-every", type=count, default=50_000, help="steps between kept checkpoints, checkpoints/<step>; 0: never"
    )
    group.add_argument(
        "--reckpt-every",
        type=count,
        default=5_000,
        help="steps between rolling checkpoints, ckpt.pt; 0: only at the end",
    )
    group.add_argument("--sample-every", type=count, default=10_000, help="steps between sample pictures; 0: never")
    group.add_argument(
        "--cfg-scale",
        type=guidance_scale,
        help="classifier-free guidance scale of the sample pictures, 1 for none; default: 4, for shapes none",
    )
    group.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases (WANDB_KEY or `wandb login`, ENTITY, PROJECT)"
    )

    add_eval_args(parser.add_argument_group("evaluation"))
    parse_transport_args(parser)
    parser.set_defaults(prediction=None)  # which depends on the model
    return parser


def times(value: str) -> str:
    """The draw of times that an argument names, under its present name.

    Raises:
        argparse.ArgumentTypeError: there is no such draw.
    """
    try:
        return times_of_today(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_method_args(parser: argparse._ActionsContainer) -> None:
    """Add the arguments by which the method varies; their defaults are the published method."""
    add_preset_arg(parser, "training")
    parser.add_argument(
        "--times",
        type=times,
        metavar="DRAW",
        help=f"distribution of the training times: {', '.join(DRAWS)}; logit-normal and its blends take :LOC,SCALE, "
        "see docs/training.md#timesteps; default: combostoc",
    )
    parser.add_argument(
        "--halfmixing",
        choices=SWITCH,
        help="on: half of each batch has one time a sample; off: times differ within every sample; default: on for "
        "--times "
        "combostoc and images, else off",
    )
    parser.add_argument(
        "--blend",
        choices=BLENDS,
        default=DEFAULTS["blend"],
        help="with --times combostoc: t = (1 - p) t_sync + p t_async, t_sync one time a sample and t_async one a unit, "
        "with one random p for the batch or for each sample; off: p = 1",
    )
    parser.add_argument(
        "--compensation",
        choices=SWITCH,
        default=DEFAULTS["compensation"],
        help="add to the velocity target a term that points back to where all times are equal (ComboStoc, equation 6)",
    )
    parser.add_argument(
        "--difficulty",
        type=weight,
        default=DEFAULTS["difficulty"],
        metavar="W",
        help="weight of the error-variance loss, by which the model learns to predict the variance of its own "
        "velocity's error, 0.01 for instance; 0: none",
    )


def add_eval_args(parser: argparse._ActionsContainer) -> None:
    """Add --eval-every and the arguments of such evaluations."""
    parser.add_argument("--eval-every", type=count, default=0, help="steps between evaluations; 0: never")
    parser.add_argument(
        "--eval-samples", type=positive_int, default=10_000, help="samples to draw with the averaged weights"
    )
    parser.add_argument(
        "--eval-sampling-steps",
        type=positive_int,
        default=PUBLISHED_SDE.num_steps,
        help="time points of the Euler SDE, without guidance",
    )
    parser.add_argument(
        "--eval-features", choices=EXTRACTORS, help="network that gives an image's features; default: inception"
    )
    parser.add_argument(
        "--eval-weights", type=Path, metavar="FILE", help="weights of inception or dinov2; default: downloaded once"
    )
    parser.add_argument(
        "--eval-reference",
        metavar="FILE",
        help="set that samples are compared with, as REFERENCE of evaluate.py; default: the training images, at most "
        f"{MAX_REFERENCE:,}, or the shapes that are held out; needed with cached latents",
    )


def without_effect(args: argparse.Namespace, typed: set[str], kind: Kind) -> list[str]:
    """Warnings that name the typed arguments that change nothing."""
    lines = []
    if unused := sorted(typed & kind.WITHOUT_EFFECT):
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        lines.append(f"Warning: no effect on {kind.THINGS}: {flags}")
    if args.loss_weight and args.prediction == "velocity":
        lines.append(f"Warning: --loss-weight {args.loss_weight} has no effect on --prediction velocity")
    return lines


def resolve_arguments(args: argparse.Namespace, world_size: int, kind: Kind) -> argparse.Namespace:
    """The arguments with the defaults that depend on the model and the kind of data.

    Raises:
        UsageError: a combination that cannot work; names the values.
    """
    if args.model not in kind.MODELS:
        raise UsageError(
            f"--model {args.model} does not fit --data-path {args.data_path}, which holds {kind.THINGS}: give "
            f"--model {', '.join(list(kind.MODELS)[:3])}, ..."
        )
    usual = kind.usual_method(args.model, args.times).words()
    method = {
        name: getattr(args, name) or usual[name] for name in ("combostoc_type", "times", "halfmixing", "prediction")
    }
    given = {"cfg_scale": args.cfg_scale or kind.CFG_SCALE}
    args = with_values(args, kind.training_defaults(args) | given | method)
    if args.eval_every and args.eval_samples < 2:
        raise UsageError(f"--eval-samples {args.eval_samples} is too few: a distribution takes two or more")
    try:
        read_method(vars(args))
    except UsageError as error:
        hint = ", which --preset fast-async has, too" if args.difficulty and "--difficulty" in str(error) else ""
        raise UsageError(f"{error}{hint}") from None
    if args.model.startswith("SiT") and args.combostoc_type != "UNSYNC_NONE":
        raise UsageError(
            f"--combostoc-type {args.combostoc_type} needs a ComboStoc model; {args.model} takes UNSYNC_NONE"
        )
    if args.combostoc_type == "UNSYNC_NONE":
        for name in ("halfmixing", "blend", "compensation"):
            if (value := getattr(args, name)) != usual[name]:
                raise UsageError(f"--{name} {value} is for asynchronous times, not for UNSYNC_NONE")
    if args.times != "combostoc" and args.blend != usual["blend"]:
        raise UsageError(f"--blend {args.blend} is for --times combostoc, not for {args.times}")
    parts = world_size * args.grad_accum
    if args.global_batch_size % parts:
        raise UsageError(
            f"--global-batch-size {args.global_batch_size} is not divisible by {parts}, "
            f"the processes ({world_size}) times --grad-accum {args.grad_accum}"
        )
    if args.ckpt and args.init_from:
        raise UsageError(
            f"--ckpt {args.ckpt} continues a run, --init-from {args.init_from} begins one: give one of them"
        )
    if args.compile:
        precision.check_compiler()
    return args
