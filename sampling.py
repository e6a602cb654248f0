"""What the programs that sample share: a model ready to use from a checkpoint, guidance, and randomness by image."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import download
import precision
from autoencoder import Autoencoder, check_channels, load_autoencoder
from distributed import seed_for
from errors import DataError, UsageError
from models import SiT
from precision import add_speed_args
from train_utils import (
    MODEL_NAMES,
    ModelConfig,
    ModeParser,
    Parser,
    build_graded_sampler,
    build_sampler,
    build_transport,
    default_combostoc_type,
    latent_size,
    load_weights,
    method_settings,
    model_config,
    model_name,
    parse_ode_args,
    parse_sde_args,
    parse_transport_args,
    positive_int,
    sampling_scale,
    unit_float,
)
from transport import ADAPTIVE_METHODS, BLENDS, PATHS, PREDICTIONS, ComboStocType, Transport

NULL = "null"  # the class of samples without a class, in words

# Solvers of an ODE that ask for no tolerance; the implicit ones correct their steps to it.
WITHOUT_TOLERANCE = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")

DEFAULT_MODEL = "SiT-XL/2"  # as in SiT's programs

# ---- arguments -----------------------------------------------------------------------------------------------------


def sampling_parser(
    doc: str, add_program_args: Callable[[argparse.ArgumentParser], None], *, vae: str, cfg_scale: float, reverse: bool
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
            help=f"classifier-free guidance, 1 for none, 0 for samples without a class; default: {cfg_scale}",
        )
        group.add_argument(
            "--cfg-channels",
            choices=["3", "all"],
            default="3",
            help="guide the first 3 channels, as published numbers do, or all",
        )
        group.add_argument(
            "--guidance-interval",
            type=unit_float,
            nargs=2,
            default=(0.0, 1.0),
            metavar=("LO", "HI"),
            help="guide while t, from 0 (noise) to 1, is in it; outside, an evaluation costs half; default: 0 1",
        )
        group.add_argument(
            "--num-sampling-steps", type=positive_int, default=250, help="time points, both ends included, of fixed steps"
        )
        add_speed_args(group)
        add_program_args(sub)
        if mode == "ODE":
            parse_ode_args(sub, reverse=reverse)
            group.add_argument("--data-path", help="images to score: a folder, or 'digits'")
        else:
            parse_sde_args(sub)
            sub.set_defaults(likelihood=False, reverse=False)
        parse_transport_args(sub, from_checkpoint=True)
    return parser


def add_model_args(parser: argparse.ArgumentParser, vae: str) -> None:
    """Add the model group: the checkpoint, and what `load_network` reads from it or checks against it."""
    group = parser.add_argument_group("model")
    group.add_argument("--ckpt", help="a .pt or .safetensors file, a published name, or hf://owner/repo/file")
    group.add_argument(
        "--model",
        type=model_name,
        help=f"{MODEL_NAMES}; default: read from the checkpoint, and without one {DEFAULT_MODEL}",
    )
    group.add_argument(
        "--vae",
        help=f"ema, mse, none or a diffusers folder; default: {vae}, or as trained if that was none or a folder",
    )
    group.add_argument("--image-size", type=positive_int, help="default: read from the checkpoint")
    group.add_argument("--num-classes", type=positive_int, help="default: read from the checkpoint")


def ignore_what_has_no_effect(args: argparse.Namespace, parser: Parser, argv: Sequence[str] | None) -> list[str]:
    """Put arguments that change nothing back to their defaults, so that they do not seem to be settings.

    Args:
        args: what `parser`, of `sampling_parser`, made of `argv`, with the program's and the checkpoint's values in it.

    Returns:
        A line for each reason that concerns arguments that were typed.
    """
    method, defaults = args.sampling_method, parser.parse_args([args.mode])
    rules: list[tuple[bool, str, tuple[str, ...]]] = [
        (True, "in sampling, only in training", ("loss_weight", "train_eps")),
        (args.cfg_scale in (0, 1), "without guidance", ("cfg_channels", "guidance_interval")),
        (args.cfg_scale == 0, "without a class", ("balanced_labels",)),
        (args.likelihood, "on --likelihood", ("num_fid_samples", "sample_dir", "balanced_labels", "out")),
        ("reverse" in args and args.reverse, "on --reverse", ("seed", "batch_size")),
    ]
    if args.mode == "ODE":
        rules.append((method in ADAPTIVE_METHODS, f"on {method}, which chooses its own steps", ("num_sampling_steps",)))
        rules.append((method in WITHOUT_TOLERANCE, f"on {method}, whose steps are fixed", ("atol", "rtol")))
    else:
        no_size = args.last_step_size == 0 and args.last_step is not None
        rules.append((no_size, "with --last-step-size 0", ("last_step",)))
        rules.append((args.last_step is None, "with --last-step None", ("last_step_size",)))
    typed, lines = {text.partition("=")[0] for text in (sys.argv[1:] if argv is None else argv)}, []
    for applies, why, names in rules:
        flags = ["--" + name.replace("_", "-") for name in names]
        if applies:
            vars(args).update({name: getattr(defaults, name) for name in names if name in defaults})
            if given := [flag for flag in flags if flag in typed]:
                lines.append(f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {why}")
    return lines


def say(lines: Sequence[str]) -> None:
    """What a program has to say beside its results."""
    for line in lines:
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)


# ---- a model from a checkpoint -------------------------------------------------------------------------------------


@dataclass
class Network:
    """A trained model in inference mode and what belongs to it."""

    model: SiT
    config: ModelConfig
    autoencoder: Autoencoder
    transport: Transport
    image_size: int
    class_names: list[str] | None
    path: Path
    step: int

    @property
    def num_labels(self) -> int:
        """Classes that have been trained: those of the data, which may be fewer than the model has room for."""
        return len(self.class_names) if self.class_names else self.config.num_classes

    def class_name(self, k: int) -> str:
        """What to write under a picture of class k."""
        if k == self.config.num_classes:
            return "no class"
        return self.class_names[k] if self.class_names and k < len(self.class_names) else str(k)


def load_network(args: argparse.Namespace, device: torch.device, default_vae: str) -> Network:
    """Load the checkpoint of the arguments; sizes, classes, path and prediction are its own.

    Arguments left at None are filled in from the checkpoint.

    Raises:
        UsageError: an argument contradicts the checkpoint.
        DataError: a file cannot be loaded.
    """
    if args.compile:
        precision.check_compiler()
    low, high = args.guidance_interval
    if low > high:
        raise UsageError(f"--guidance-interval {low:g} {high:g} is empty: LO must not be greater than HI")
    name = args.ckpt or download.pretrained_name(args.model or DEFAULT_MODEL)
    if not name:
        published = ", ".join(dict.fromkeys(m for _, _, m in download.PRETRAINED.values()))
        raise UsageError(
            f"--model {args.model} has no published weights: give --ckpt FILE, or one that has them: {published}"
        )
    path = download.locate(name)
    content = checkpoint.load(path)
    state = checkpoint.weights(content, name)
    config = model_config(state, name)
    trained = checkpoint.training_args(content)
    check_trained(trained, content.get("class_names"), config, name)

    def resolve(argument: str, truth: Any) -> None:
        given = getattr(args, argument)
        if given is not None and given != truth:
            raise UsageError(f"--{argument.replace('_', '-')} {given} contradicts checkpoint {name}, which has {truth}")
        setattr(args, argument, truth)

    resolve("model", config.name)
    resolve("num_classes", config.num_classes)
    for argument, default in (("path_type", "Linear"), ("prediction", "velocity")):
        if argument in trained:
            resolve(argument, trained[argument])
        else:
            setattr(args, argument, getattr(args, argument) or default)
    args.sample_eps = trained.get("sample_eps") if args.sample_eps is None else args.sample_eps

    trained_vae = trained.get("vae") or ("none" if config.in_channels in (1, 3) else None)
    args.vae = args.vae or (default_vae if trained_vae in (None, "ema", "mse") else trained_vae)
    check_channels(args.vae, config.in_channels, name)
    autoencoder = load_autoencoder(args.vae, device, config.in_channels)
    if autoencoder.channels != config.in_channels:
        raise UsageError(
            f"--vae {args.vae} has {autoencoder.channels} channels, the model of checkpoint {name} {config.in_channels}"
        )
    if args.image_size is not None:
        latent_size(args.image_size, autoencoder.factor, config.name)
    resolve("image_size", config.input_size * autoencoder.factor)

    combostoc_type = trained.get("combostoc_type") or default_combostoc_type(config.name)
    model = config.build()
    load_weights(model, state, name)
    if args.precision == "bf16":
        model.blocks.to(torch.bfloat16)  # as autocast would at every evaluation
    if args.compile:
        model.compile_blocks()
    return Network(
        model=model.to(device).eval().requires_grad_(False),
        config=config,
        autoencoder=autoencoder,
        transport=build_transport(args, combostoc_type, **method_settings(trained)),
        image_size=args.image_size,
        class_names=content.get("class_names"),
        path=path,
        step=checkpoint.step(content),
    )


def check_trained(trained: dict[str, Any], class_names: list[str] | None, config: ModelConfig, source: str) -> None:
    """
    Raises:
        DataError: what a checkpoint says of its training cannot be.
    """
    kinds: dict[str, Callable[[Any], bool]] = {
        "path_type": lambda v: v in list(PATHS),
        "prediction": lambda v: v in list(PREDICTIONS),
        "combostoc_type": lambda v: v in ComboStocType.__members__,
        "sample_eps": lambda v: v is None or (type(v) in (int, float) and 0 <= v < 0.5),
        "vae": lambda v: isinstance(v, str),
        "halfmixing": lambda v: v in ("on", "off"),
        "blend": lambda v: v in list(BLENDS),
        "compensation": lambda v: v in ("on", "off"),
    }
    for name, is_of_its_kind in kinds.items():
        if name in trained and not is_of_its_kind(trained[name]):
            raise DataError(f"checkpoint {source} is damaged: it was trained with {name} {trained[name]!r}")
    if class_names is not None and len(class_names) > config.num_classes:
        raise DataError(
            f"checkpoint {source} is damaged: it names {len(class_names)} classes and has {config.num_classes}"
        )


# ---- sampling ------------------------------------------------------------------------------------------------------


def guided(
    model: SiT,
    cfg_scale: float,
    cfg_channels: int | None = 3,
    interval: tuple[float, float] = (0.0, 1.0),
    precision_name: str = "fp32",
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The model under classifier-free guidance as a function of a plain batch (x, t, y).

    Args:
        cfg_scale: 1 is no guidance, 0 the null class in place of y.
        cfg_channels: see `SiT.forward_with_cfg`.
        interval: guide where t is in it (arXiv 2404.07724); when it is nowhere, the unconditional half is not computed.
            Entries with times of their own are guided by these; a t of shape (N,) is one time.
        precision_name: one of `precision.PRECISIONS`.
    """
    low, high = interval
    always = low <= 0 and high >= 1

    def field(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with precision.autocast(precision_name, x.device):
            if cfg_scale == 1:
                return model(x, t, y)
            if cfg_scale == 0:
                return model(x, t, torch.full_like(y, model.num_classes))
            scale: float | Tensor = cfg_scale
            if not always:
                inside = (low <= t) & (t <= high)
                if not inside.any():
                    return model(x, t, y)
                if t.ndim > 1:  # each entry by its own time
                    scale = torch.where(inside, cfg_scale, 1.0)[:, :cfg_channels]
            labels = torch.cat([y, torch.full_like(y, model.num_classes)])
            x, t = torch.cat([x, x]), torch.cat([t, t])
            return model.forward_with_cfg(x, t, labels, scale, cfg_channels)[: len(y)]

    return field


class ImageNoise:
    """The randomness of each image as a function of (seed, its index) alone.

    One generator an image, on the CPU: the same numbers in any batch, on any process, on any device.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed_for(seed, "image", i)) for i in indices]

    def labels(self, num_classes: int) -> Tensor:
        """A uniform class label for each image: (N,)."""
        return torch.cat([torch.randint(num_classes, (1,), generator=g) for g in self.generators])

    def randn(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Standard normal (N, *shape)."""
        noise = torch.stack([torch.randn(*shape, generator=g) for g in self.generators])
        if device.type == "cuda":
            noise = noise.pin_memory()  # or every step would wait for the copy
        return noise.to(device, non_blocking=True)

    def randn_like(self, x: Tensor) -> Tensor:
        """The noise of one step of an SDE."""
        return self.randn(x.shape[1:], x.device).to(x.dtype)

    def rand_like(self, x: Tensor) -> Tensor:
        """Uniform in [0, 1), like x."""
        return torch.stack([torch.rand(*x.shape[1:], generator=g) for g in self.generators]).to(x)


def guided_by(args: argparse.Namespace, network: Network) -> Callable[..., Tensor]:
    """The model under guidance and in the precision of a sampling program's arguments."""
    channels = None if args.cfg_channels == "all" else int(args.cfg_channels)
    return guided(network.model, args.cfg_scale, channels, tuple(args.guidance_interval), args.precision)


def draw(
    args: argparse.Namespace,
    network: Network,
    noise: ImageNoise,
    y: Tensor,
    model: Callable[..., Tensor],
    keep: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Images of the classes y from the randomness of each: (N, C, H, W), and the model evaluations it took.

    Args:
        keep: for graded control, latents to keep something of, and how much: (N, C, h, w) and a preservation map.
    """
    z = noise.randn((network.config.in_channels,) + (network.config.input_size,) * 2, y.device)
    randn = {"randn": noise.randn_like} if args.mode == "SDE" else {}
    if keep is None:
        sampler = build_sampler(args, network.transport, **randn)
    else:
        sampler = build_graded_sampler(args, network.transport, *keep, **randn)
    return network.autoencoder.decode(sampler(z, model, y=y)[-1]), sampler.nfe


def with_progress(model: Callable[..., Tensor], bar: tqdm) -> Callable[..., Tensor]:
    """The model, advancing a progress bar with every evaluation."""

    def evaluated(*args: Any, **kwargs: Any) -> Tensor:
        output = model(*args, **kwargs)
        bar.update()
        return output

    return evaluated


def evaluations(args: argparse.Namespace) -> int | None:
    """How often a sampler will evaluate the model, None where an adaptive solver decides."""
    steps = args.num_sampling_steps - 1
    if args.mode == "SDE":
        last = args.last_step is not None and args.last_step_size > 0
        return steps * {"Euler": 1, "Heun": 2}[args.sampling_method] + last
    return {"euler": steps, "midpoint": 2 * steps, "heun2": 2 * steps, "heun3": 3 * steps, "rk4": 4 * steps}.get(
        args.sampling_method
    )
