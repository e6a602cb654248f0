"""A network from a checkpoint, with the method that it was trained with."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import download
from models import SiT
from runtime import checkpoint, precision
from runtime.command_line import with_values
from runtime.errors import DataError, UsageError
from runtime.state_dicts import StateDict
from sampling.arguments import DEFAULT_MODEL
from sampling.kind import Kind, Trained
from sampling.network import Network
from train_utils import DEFAULTS, ModelConfig, build_transport, load_weights, read_method, trained_with
from transport.method import ACCEPTED
from transport.solvers import AHEAD_METHODS

# Settings of the method that sampling has flags of, those that it takes from training as they are, and all that is
# checked of a checkpoint, which losses are no part of.
TYPED = ("path_type", "prediction", "loss_weight", "train_eps", "sample_eps", "time_shift")
TRAINED = tuple(name for name in DEFAULTS if name not in (*TYPED, "loss_clamp"))
CHECKED = ("path_type", "prediction", "sample_eps", "time_shift", *TRAINED, "vae")


def load_network(
    args: argparse.Namespace, device: torch.device, default_vae: str, kind_of: Callable[[StateDict], Kind]
) -> Network:
    """Load the checkpoint of the arguments; sizes, classes, path and prediction are its own.

    Arguments left at None are the checkpoint's; `Network.settings` has them.

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
    good = read_checkpoint(path, name, kind_of)
    kind, config, content, trained = good.kind, good.config, good.content, good.args

    def resolved(argument: str, truth: Any) -> Any:
        given = getattr(args, argument)
        if given is not None and given != truth:
            raise UsageError(f"--{argument.replace('_', '-')} {given} contradicts checkpoint {name}, which has {truth}")
        return truth

    settings = {"model": resolved("model", config.name), "num_classes": resolved("num_classes", config.num_classes)}
    for argument in ("path_type", "prediction"):
        given = getattr(args, argument) or DEFAULTS[argument]
        settings[argument] = resolved(argument, trained[argument]) if argument in trained else given
    for argument in ("time_shift", "sample_eps"):
        given = getattr(args, argument)
        settings[argument] = trained.get(argument, DEFAULTS[argument]) if given is None else given
    if "cfg_channels" in vars(args):  # the page takes no such argument, nor a guide
        settings["cfg_channels"] = args.cfg_channels or ("3" if config.in_channels <= 4 else "all")  # of up to 3: all
    output = kind.load_output(args, good, default_vae, device)
    settings |= {"vae": output.vae, "image_size": output.image_size}
    method = {"combostoc_type": kind.usual_method(config.name).combostoc_type}
    method |= {key: trained[key] for key in TRAINED if key in trained}
    method |= {key: settings.get(key, getattr(args, key)) for key in TYPED}
    model, notes = ready(args, good, device)
    guide: SiT | None = None
    guide_path: Path | None = None
    if vars(args).get("guide_ckpt") and args.cfg_scale not in (0, 1):
        guide_path = download.locate(args.guide_ckpt)
        guide, said = load_guide(with_values(args, settings), good, guide_path, device, kind_of)
        notes += said
    return Network(
        model=model,
        config=config,
        autoencoder=output.space,
        input_shape=output.input_shape,
        transport=build_transport(read_method(method), output.attributes),
        image_size=output.image_size,
        class_names=content.get("class_names"),
        path=path,
        step=checkpoint.step(content),
        notes=notes,
        settings=settings,
        guide=guide,
        guide_path=guide_path,
    )


def read_checkpoint(path: Path, source: str, kind_of: Callable[[StateDict], Kind]) -> Trained:
    """A checkpoint that has been read, its model and its training checked.

    Raises:
        DataError: it cannot be loaded, is of no model, or has a record of its training that cannot be.
    """
    content = checkpoint.load(path)
    state = checkpoint.weights(content, source)
    kind = kind_of(state)
    config = kind.model_config(state, source)
    trained = {k: v for k, v in trained_with(content).items() if v is not None}
    check_trained(trained, content.get("class_names"), config, source)
    return Trained(source, kind, config, content, state, trained)


def ready(args: argparse.Namespace, trained: Trained, device: torch.device) -> tuple[SiT, list[str]]:
    """The model of a checkpoint in inference mode, and notes on its weights."""
    model = trained.config.build()
    notes = checkpoint.origin(trained.content, trained.source) + load_weights(model, trained.state, trained.source)
    if args.precision == "bf16":
        model.blocks.to(torch.bfloat16)  # as autocast would at every evaluation
    if args.compile:
        model.compile_blocks()
    return model.to(device).eval().requires_grad_(False), notes


def load_guide(
    args: argparse.Namespace, good: Trained, path: Path, device: torch.device, kind_of: Callable[[StateDict], Kind]
) -> tuple[SiT, list[str]]:
    """The model of --guide-ckpt, and notes on its weights.

    Args:
        good: the checkpoint that is guided.

    Raises:
        UsageError: it predicts something else, of other inputs, or of other classes.
        DataError: it cannot be loaded.
    """
    name, guide = args.guide_ckpt, read_checkpoint(path, args.guide_ckpt, kind_of)
    if guide.kind is not good.kind or inputs(guide.config) != inputs(good.config):
        raise UsageError(
            f"--guide-ckpt {name} holds {guide.config}, checkpoint {good.source} {good.config}: both must have the "
            "same inputs and classes"
        )
    for what in ("path_type", "prediction"):
        if (value := guide.args.get(what) or getattr(args, what)) != getattr(args, what):
            raise UsageError(
                f"--guide-ckpt {name} was trained with {what} {value}, checkpoint {good.source} with "
                f"{getattr(args, what)}: both must have the same"
            )
    for what in ("class_names", *guide.kind.KEPT):
        theirs, ours = guide.content.get(what), good.content.get(what)
        if theirs != ours and (what != "class_names" or (theirs and ours)):
            raise UsageError(f"--guide-ckpt {name} has another {what} than checkpoint {good.source}")
    if args.sampling_method in AHEAD_METHODS and guide.config.name.startswith("SiT"):
        raise UsageError(
            f"--guide-ckpt {name} is {guide.config.name}, which has one time for all of a picture; "
            f"{args.sampling_method} needs a ComboStoc model"
        )
    return ready(args, guide, device)


def inputs(config: ModelConfig) -> tuple[int, int, int]:
    """The sizes that models must have in common to guide one another: channels, input size, classes."""
    return config.in_channels, config.input_size, config.num_classes


def check_trained(trained: dict[str, Any], class_names: list[str] | None, config: ModelConfig, source: str) -> None:
    """See that a checkpoint's record of its training can be.

    Raises:
        DataError: it cannot; names the value.
    """
    for name in CHECKED:
        accepted, fits = ("a name or a folder", lambda v: isinstance(v, str)) if name == "vae" else ACCEPTED[name]
        if name in trained and not fits(trained[name]):
            raise DataError(
                f"checkpoint {source} was trained with {name} {trained[name]!r:.60}; what is known is {accepted}"
            )
    if class_names is not None and len(class_names) > config.num_classes:
        raise DataError(f"checkpoint {source} names {len(class_names)} classes, and its model has {config.num_classes}")
