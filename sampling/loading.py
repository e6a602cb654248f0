"""A network from a checkpoint, with what training said of its method."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import download
from models import SiT
from runtime import checkpoint, precision
from runtime.errors import DataError, UsageError
from runtime.state_dicts import StateDict
from sampling.arguments import DEFAULT_MODEL
from sampling.kind import Kind
from sampling.network import Network
from train_utils import ModelConfig, build_transport, load_weights, method_settings, trained_with
from transport.names import BLENDS, PATHS, PREDICTIONS, ComboStocType
from transport.solvers import AHEAD_METHODS
from transport.timesteps import DRAWS, parse_times


def load_network(
    args: argparse.Namespace, device: torch.device, default_vae: str, kind_of: Callable[[StateDict], Kind]
) -> Network:
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
    kind = kind_of(state)
    config = kind.model_config(state, name)
    trained = {k: v for k, v in trained_with(content).items() if v is not None}
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
    args.time_shift = trained.get("time_shift", 1.0) if args.time_shift is None else args.time_shift
    args.sample_eps = trained.get("sample_eps") if args.sample_eps is None else args.sample_eps

    if "cfg_channels" in vars(args):  # the page takes no such argument, nor a guide
        args.cfg_channels = args.cfg_channels or ("3" if config.in_channels <= 4 else "all")  # of up to 3 that is all

    output = kind.load_output(args, config, content, default_vae, device, name)
    trained.setdefault("combostoc_type", kind.usual_method(config.name, None)["combostoc_type"])
    model, notes = ready(args, config, content, state, device, name)
    guide: SiT | None = None
    guide_path: Path | None = None
    if vars(args).get("guide_ckpt") and args.cfg_scale not in (0, 1):
        guide_path = download.locate(args.guide_ckpt)
        guide, said = load_guide(args, Trained(kind, config, content, name), guide_path, device, kind_of)
        notes += said
    return Network(
        model=model,
        config=config,
        autoencoder=output.space,
        input_shape=output.input_shape,
        transport=build_transport(args, **method_settings(trained), attributes=output.attributes),
        image_size=output.image_size,
        class_names=content.get("class_names"),
        path=path,
        step=checkpoint.step(content),
        notes=notes,
        guide=guide,
        guide_path=guide_path,
    )


def ready(
    args: argparse.Namespace,
    config: ModelConfig,
    content: dict[str, Any],
    state: StateDict,
    device: torch.device,
    source: str,
) -> tuple[SiT, list[str]]:
    """The model of a checkpoint in inference mode, and what there is to say of its weights."""
    model = config.build()
    notes = checkpoint.origin(content, source) + load_weights(model, state, source)
    if args.precision == "bf16":
        model.blocks.to(torch.bfloat16)  # as autocast would at every evaluation
    if args.compile:
        model.compile_blocks()
    return model.to(device).eval().requires_grad_(False), notes


@dataclass
class Trained:
    """A checkpoint that has been read."""

    kind: Kind
    config: ModelConfig
    content: dict[str, Any]
    source: str


def load_guide(
    args: argparse.Namespace, good: Trained, path: Path, device: torch.device, kind_of: Callable[[StateDict], Kind]
) -> tuple[SiT, list[str]]:
    """The model of --guide-ckpt, and what there is to say of its weights.

    Args:
        good: the checkpoint that is guided.

    Raises:
        UsageError: it predicts something else, of other inputs, or of other classes.
        DataError: it cannot be loaded.
    """
    name = args.guide_ckpt
    content = checkpoint.load(path)
    state = checkpoint.weights(content, name)
    kind = kind_of(state)
    config = kind.model_config(state, name)
    trained = trained_with(content)
    check_trained({k: v for k, v in trained.items() if v is not None}, content.get("class_names"), config, name)
    if kind is not good.kind or inputs(config) != inputs(good.config):
        raise UsageError(
            f"--guide-ckpt {name} holds {config}, checkpoint {good.source} {good.config}: both must have the same "
            "inputs and classes"
        )
    for what in ("path_type", "prediction"):
        if (value := trained.get(what) or getattr(args, what)) != getattr(args, what):
            raise UsageError(
                f"--guide-ckpt {name} was trained with {what} {value}, checkpoint {good.source} with "
                f"{getattr(args, what)}: both must have the same"
            )
    for what in ("class_names", *kind.KEPT):
        theirs, ours = content.get(what), good.content.get(what)
        if theirs != ours and (what != "class_names" or (theirs and ours)):
            raise UsageError(f"--guide-ckpt {name} has another {what} than checkpoint {good.source}")
    if args.sampling_method in AHEAD_METHODS and config.name.startswith("SiT"):
        raise UsageError(
            f"--guide-ckpt {name} is {config.name}, which has one time for all of a picture; {args.sampling_method} "
            "needs a ComboStoc model"
        )
    return ready(args, config, content, state, device, name)


def inputs(config: ModelConfig) -> tuple[int, int, int]:
    """What models that guide one another must have in common."""
    return config.in_channels, config.input_size, config.num_classes


def check_trained(trained: dict[str, Any], class_names: list[str] | None, config: ModelConfig, source: str) -> None:
    """
    Raises:
        DataError: what a checkpoint says of its training cannot be.
    """
    switch = ("on", "off")
    choices: dict[str, Sequence[str]] = {
        "path_type": list(PATHS),
        "prediction": list(PREDICTIONS),
        "combostoc_type": list(ComboStocType.__members__),
        "times": DRAWS,
        "halfmixing": switch,
        "blend": list(BLENDS),
        "compensation": switch,
    }
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        **{name: (", ".join(known), known.__contains__) for name, known in choices.items()},
        "sample_eps": ("a number from 0 to 0.5", lambda v: type(v) in (int, float) and 0 <= v < 0.5),
        "time_shift": ("a positive number or auto", is_time_shift),
        "vae": ("a name or a folder", lambda v: isinstance(v, str)),
        "difficulty": ("a weight", lambda v: type(v) in (int, float) and 0 <= v < math.inf),
    }
    kinds["times"] = (kinds["times"][0], is_draw)
    for name, (accepted, is_of_its_kind) in kinds.items():
        if name in trained and not is_of_its_kind(trained[name]):
            raise DataError(
                f"checkpoint {source} was trained with {name} {trained[name]!r:.60}; what is known is {accepted}"
            )
    if class_names is not None and len(class_names) > config.num_classes:
        raise DataError(f"checkpoint {source} names {len(class_names)} classes, and its model has {config.num_classes}")


def is_time_shift(value: Any) -> bool:
    """Whether a value is a shift of times."""
    return value == "auto" or (type(value) in (int, float) and 0 < value < math.inf)


def is_draw(times: Any) -> bool:
    """Whether a value is a draw of times by name."""
    try:
        return bool(parse_times(times))
    except (ValueError, AttributeError):
        return False
