"""Structured shapes as a kind of data, see `sampling/kind.py`."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.feed import Data, Space
from models import SiT
from runtime.distributed import Process
from runtime.errors import DataError, UsageError
from runtime.state_dicts import StateDict
from sampling.files import Files
from sampling.kind import Output, Trained
from sampling.network import Network
from shapes.control import layout_of, place
from shapes.control import load_control as load_control
from shapes.files import finite_numbers, pack_shapes, write_numbers
from shapes.judging import NUMBERS
from shapes.judging import evaluate as evaluate
from shapes.meshes import write_glb
from shapes.monitor import ShapeMonitor
from shapes.network import Parts_models, PartsConfig, parts_config
from shapes.rendering import SIDE, View, render
from shapes.sets import (
    EMBEDDED,
    Layout,
    ShapeData,
    ShapeSpace,
    check_shapes,
    fault_of_numbers,
    holds_shapes,
    names_shapes,
    open_shapes,
)
from train_utils import ModelConfig
from transport import Method

THINGS = "shapes"
MODELS: Mapping[str, Callable[..., SiT]] = Parts_models
MODEL_NAMES = "Parts-{B,S,XS} for shapes"
CFG_SCALE = 1.0
WITHOUT_EFFECT = frozenset({"image_size", "vae", "latent_stats", "channels", "encode_bf16", "flip", "max_bad_images"})
KEPT: tuple[str, ...] = ("layout",)
EVALUATION_COLUMNS: tuple[str, ...] = ("step", "reference", "samples", "sampling_steps", *NUMBERS)

# The rest of the interface, which has modules of its own.
model_config, evaluator = parts_config, ShapeMonitor
is_data, check_path, is_set = names_shapes, check_shapes, holds_shapes


# ---- models and the method -----------------------------------------------------------------------------------------


def usual_method(model: str, times: str | None = None) -> Method:
    """The paper's setting for shapes: all samples are asynchronous, and the model predicts data."""
    return Method(
        prediction="data", combostoc_type="UNSYNC_ATT_PART", times=times or Method.times, use_halfmixing=False
    )


def is_model(state: StateDict) -> bool:
    """Whether a state dict has ComboStoc's timestep embedding and no embedding of positions."""
    return "pos_embed" not in state and "t_embedder.patchEmb.proj.weight" in state


def config_for(model: str, input_shape: tuple[int, ...], num_classes: int) -> PartsConfig:
    """The model of this name for inputs (L, F)."""
    return PartsConfig(model, 0, input_shape[1], num_classes, learn_sigma=False)


# ---- training ------------------------------------------------------------------------------------------------------


def supply(args: argparse.Namespace, typed: set[str]) -> dict[str, Any]:
    """No arguments: a set of shapes has no settings."""
    return {}


def training_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """No defaults: shapes are judged in one way.

    Raises:
        UsageError: an argument is for images.
    """
    for name in ("eval_features", "eval_weights"):
        if (value := getattr(args, name)) is not None:
            raise UsageError(f"--{name.replace('_', '-')} {value} is for images, not for shapes")
    return {}


def check_start(found: ModelConfig, args: argparse.Namespace, source: str) -> None:
    """Accept any model of shapes; its layout is compared when the data are there."""


def load_data(
    args: argparse.Namespace, process: Process, found: ModelConfig | None, saved: dict[str, Any], source: str
) -> Data:
    """The shapes of the training split, in the layout of the checkpoint, or of their own.

    Raises:
        DataError: the data do not fit the layout, or there are none for training.
    """
    shapes = open_shapes(args.data_path).of_split("train")
    if not len(shapes):
        raise DataError(f"--data-path {args.data_path} holds no shapes for training: none is of the split 'train'")
    layout = Layout.load(saved["layout"], source) if "layout" in saved else Layout.of(shapes)
    dataset = ShapeData(shapes, layout)
    try:
        dataset.check()
    except DataError as error:
        raise DataError(f"--data-path {args.data_path} does not fit checkpoint {source}: {error}") from None
    about = {"layout": layout.content()}
    return Data(dataset, lambda x: x, layout.shape, ShapeSpace(layout), about, attributes=layout.widths_of_all)


# ---- sampling ------------------------------------------------------------------------------------------------------


def load_output(args: argparse.Namespace, trained: Trained, default_vae: str, device: torch.device) -> Output:
    """The layout of a checkpoint's model.

    Raises:
        DataError: the checkpoint has none, or one that does not fit the model.
    """
    config, source = trained.config, trained.source
    if "layout" not in trained.content:
        raise DataError(f"checkpoint {source} holds {config.name} without the layout of its shapes")
    layout = Layout.load(trained.content["layout"], source)
    if layout.shape[1] != config.in_channels:
        raise DataError(f"checkpoint {source} holds {config}, and a layout of parts of {layout.shape[1]} numbers")
    return Output(ShapeSpace(layout), layout.shape, args.image_size or SIDE, None, layout.widths_of_all)


def check_sampling(args: argparse.Namespace, network: Network) -> None:
    """Accept all of sample.py's arguments, which are for shapes, too."""


def without_effect_in_sampling(args: argparse.Namespace) -> Iterable[tuple[bool, str, tuple[str, ...]]]:
    """The rules of shapes: they are guided in all numbers and not encoded, and sample_ddp.py draws no pictures."""
    yield args.cfg_scale not in (0, 1), "on shapes, which are guided in all numbers", ("cfg_channels",)
    yield True, "on shapes, which are not encoded", ("vae",)
    yield "num_fid_samples" in args, "on shapes, which are no pictures", ("image_size",)


def pictures(x: Tensor, space: Space, size: int | None = None) -> np.ndarray:
    """Renderings of samples (N, L, F) in one view: (N, S, S, 3) uint8.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    assert isinstance(space, ShapeSpace)
    shapes = [space.layout.decode(sample) for sample in x]
    view = View.typical(shapes)
    return np.stack([render(shape, size or SIDE, view) for shape in shapes])


def write_besides(args: argparse.Namespace, x: np.ndarray | Tensor, network: Network) -> None:
    """Write the shapes side by side to --glb, if it is given."""
    if args.glb is not None:
        layout = layout_of(network)
        write_glb([layout.decode(torch.as_tensor(sample)) for sample in x], args.glb)
        print(f"the shapes in {args.glb}")


def files(network: Network) -> Files:
    """The files of shapes: an .npy of numbers per sample, and a set of shapes."""
    names, layout = network.class_names or [str(k) for k in range(network.num_labels)], layout_of(network)
    return Files(
        suffix=".npy",
        size=4 * prod(layout.shape),
        packed=0,
        fetch=finite_numbers,
        write=write_numbers,
        fault=partial(fault_of_numbers, layout=layout),
        pack=partial(pack_shapes, layout=layout, class_names=names),
    )


def is_reference(word: str) -> bool:
    """Whether a word of --reference names the embedded set, or an .npz that is there, with or without a number."""
    name, _ = place(word)
    return name == EMBEDDED or (names_shapes(name) and Path(name).is_file())
