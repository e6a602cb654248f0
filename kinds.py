"""The kinds of data there are, and which one a path, a model or a checkpoint is of."""

import argparse
from pathlib import Path

import torch

from runtime.errors import UsageError
from runtime.state_dicts import StateDict
from sampling import images, loading
from sampling.arguments import pictures_parser
from sampling.kind import Kind
from sampling.network import Network
from shapes import kind as shapes
from train_utils import ModelConfig

IMAGES: Kind = images
SHAPES: Kind = shapes
KINDS: tuple[Kind, ...] = (SHAPES, IMAGES)  # asked in this order; images take whatever is left

MODELS = {name: constructor for kind in reversed(KINDS) for name, constructor in kind.MODELS.items()}
MODEL_NAMES = "; ".join(kind.MODEL_NAMES for kind in reversed(KINDS))


def of_data(data_path: str) -> Kind:
    """The kind of --data-path."""
    return next(kind for kind in KINDS if kind.is_data(data_path))


def of_model(model: str) -> Kind:
    """The kind of a model's name."""
    return next(kind for kind in KINDS if model in kind.MODELS)


def of_state(state: StateDict) -> Kind:
    """The kind of a state dict."""
    return next(kind for kind in KINDS if kind.is_model(state))


def of_sets(names: list[str]) -> Kind:
    """The kind of the sets that evaluate.py compares, by their content."""
    return next(kind for kind in KINDS if any(kind.is_set(name) for name in names))


def model_name(value: str) -> str:
    """The name of a model as an argument.

    Raises:
        argparse.ArgumentTypeError: there is no such model.
    """
    if value not in MODELS:
        raise argparse.ArgumentTypeError(f"unknown model {value!r}; choose from {MODEL_NAMES}")
    return value


def model_config(state: StateDict, source: str) -> ModelConfig:
    """The model of a state dict.

    Raises:
        DataError: it is none that is known.
    """
    return of_state(state).model_config(state, source)


def load_network(args: argparse.Namespace, device: torch.device, default_vae: str) -> Network:
    """The network of --ckpt or --model, see `sampling.loading.load_network`."""
    return loading.load_network(args, device, default_vae, of_state)


def open_network(ckpt: str | Path, *flags: str, device: str | torch.device = "cpu") -> Network:
    """The network of a checkpoint, for programs and notebooks of one's own.

    Args:
        ckpt: what sample.py takes as --ckpt: a file, a published name, or hf://owner/repo/file.
        flags: others of sample.py's ODE mode that concern the network: "--vae", FOLDER for instance.

    Raises:
        UsageError, DataError: see `sampling.loading.load_network`.
    """
    args = pictures_parser(None).parse_args(["ODE", "--ckpt", str(ckpt), *flags])
    return load_network(args, torch.device(device), default_vae="mse")


def check_images(data_path: str, job: str) -> None:
    """See that --data-path holds images, for a job that takes nothing else.

    Raises:
        UsageError: it holds another kind of data.
        DataError: the path does not exist, or holds no data.
    """
    kind = of_data(data_path)
    kind.check_path(data_path)
    if kind is not IMAGES:
        raise UsageError(f"{job} takes images; --data-path {data_path} holds {kind.THINGS}")
