"""Images as a kind of data, see `sampling/kind.py`: pixels, latents of an autoencoder, or cached latents."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.autoencoder import Autoencoder, LatentSpace, check_channels, latent_size, load_autoencoder
from data.caches import is_latents, open_latents
from data.feed import Data, Space, load_images, load_latents
from data.pictures import fault_of, save_image, save_npz, to_uint8, to_uint8_later
from data.scaling import KEY, Scaling
from data.sets import check_path as check_path
from evaluation.report import evaluate as evaluate
from models import ComboStoc_models, SiT, SiT_models
from runtime.distributed import Process
from runtime.errors import UsageError
from runtime.state_dicts import StateDict
from sampling.files import Files
from sampling.image_control import load_control as load_control
from sampling.kind import Output, Trained
from sampling.monitor import Monitor
from sampling.network import Network
from train_utils import IMAGE_MODEL_NAMES, ModelConfig, image_model_config
from transport import Method
from transport.timesteps import halfmixes

THINGS = "images"
MODELS: Mapping[str, Callable[..., SiT]] = ComboStoc_models | SiT_models
MODEL_NAMES = IMAGE_MODEL_NAMES
CFG_SCALE = 4.0
WITHOUT_EFFECT: frozenset[str] = frozenset()
KEPT: tuple[str, ...] = (KEY,)
EVALUATION_COLUMNS: tuple[str, ...] = (
    *("step", "features", "reference", "samples", "sampling_steps"),
    *("FD", "sFD", "IS", "KD", "precision", "recall"),
)
DEFAULT_EXTRACTOR = "inception"

# The rest of the interface, which has modules of its own.
model_config, evaluator = image_model_config, Monitor


# ---- models and the method -----------------------------------------------------------------------------------------


def usual_method(model: str, times: str | None = None) -> Method:
    """The paper's setting; the published draw is half-mixed, others are not."""
    drawn = times or Method.times
    combostoc_type = "UNSYNC_NONE" if model.startswith("SiT") else "UNSYNC_ALL"
    return Method(combostoc_type=combostoc_type, times=drawn, use_halfmixing=halfmixes(drawn, None))


def is_model(state: StateDict) -> bool:
    """True: images are the kind of every state dict that no other kind has claimed."""
    return True


def config_for(model: str, input_shape: tuple[int, ...], num_classes: int) -> ModelConfig:
    """The model of this name for inputs (C, H, W)."""
    return ModelConfig(model, input_shape[1], input_shape[0], num_classes, learn_sigma=True)


# ---- training ------------------------------------------------------------------------------------------------------


def is_data(data_path: str) -> bool:
    """True: images are the kind of every path that no other kind has claimed."""
    return True


def supply(args: argparse.Namespace, typed: set[str]) -> dict[str, Any]:
    """The arguments that cached latents bring: image size, autoencoder, mirror images."""
    latents = open_latents(args.data_path, labels=False)
    return latents.supply(args, typed) if latents is not None else {}


def training_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """The default network of features in evaluations.

    Raises:
        UsageError: --channels with an autoencoder.
    """
    if args.channels and args.vae != "none":
        raise UsageError(f"--channels {args.channels} is for --vae none; an autoencoder takes RGB")
    return {"eval_features": args.eval_features or DEFAULT_EXTRACTOR}


def check_start(found: ModelConfig, args: argparse.Namespace, source: str) -> None:
    """See that the autoencoder fits the model that is continued.

    Raises:
        UsageError: it does not.
    """
    if args.vae != "none" or not is_latents(args.data_path):  # latents may be trained on without what decodes them
        check_channels(args.vae, found.in_channels, source)


def load_data(
    args: argparse.Namespace, process: Process, found: ModelConfig | None, saved: dict[str, Any], source: str
) -> Data:
    """The training set: images, encoded in every step, or cached latents."""
    if (latents := open_latents(args.data_path)) is not None:
        return load_latents(args, process, latents, saved, source)
    return load_images(args, process, found.in_channels if found else None, saved, source)


# ---- sampling ------------------------------------------------------------------------------------------------------


def load_output(args: argparse.Namespace, trained: Trained, default_vae: str, device: torch.device) -> Output:
    """The autoencoder of a checkpoint's model, and the sizes that follow.

    Raises:
        UsageError: an argument does not fit the model.
        DataError: the autoencoder cannot be loaded.
    """
    config, source = trained.config, trained.source
    trained_vae = trained.args.get("vae") or ("none" if config.in_channels in (1, 3) else None)
    vae = args.vae or (default_vae if trained_vae in (None, "ema", "mse") else trained_vae)
    autoencoder = load_space(vae, args.image_size, config, device, source)
    size = config.input_size * autoencoder.factor
    if args.image_size not in (None, size):
        raise UsageError(f"--image-size {args.image_size} contradicts checkpoint {source}, which has {size}")
    if isinstance(autoencoder, LatentSpace):
        autoencoder.check_size(size)
        if KEY in trained.content:
            autoencoder.scale, autoencoder.shift = Scaling.load(trained.content[KEY], config.in_channels, source)
    return Output(autoencoder, (config.in_channels, config.input_size, config.input_size), size, vae)


def load_space(vae: str, image_size: int | None, config: ModelConfig, device: torch.device, source: str) -> Autoencoder:
    """The autoencoder of a name, checked against the model of a checkpoint, and against an image size if one is given.

    Raises:
        UsageError: it does not fit the model.
        DataError: it cannot be loaded.
    """
    check_channels(vae, config.in_channels, source)
    autoencoder = load_autoencoder(vae, device, config.in_channels)
    if autoencoder.channels != config.in_channels:
        raise UsageError(
            f"--vae {vae} has {autoencoder.channels} channels, the model of checkpoint {source} {config.in_channels}"
        )
    if image_size is not None:
        latent_size(image_size, autoencoder.factor, config.name)
    return autoencoder


def check_sampling(args: argparse.Namespace, network: Network) -> None:
    """See that the arguments of sample.py are for images.

    Raises:
        UsageError: one is for shapes.
    """
    if args.glb is not None:
        raise UsageError(f"--glb {args.glb} is for shapes; {network.config.name} makes images")
    for word in args.reference or []:
        if not is_reference(word):
            raise UsageError(f"--reference {word} is no picture; {network.config.name} makes images")


def without_effect_in_sampling(args: argparse.Namespace) -> Iterable[tuple[bool, str, tuple[str, ...]]]:
    """No rules beyond those of all kinds."""
    return ()


def pictures(x: Tensor, space: Space, size: int | None = None) -> np.ndarray:
    """Images as 8-bit pictures: (N, S, S, 3)."""
    return to_uint8(x)


def write_besides(args: argparse.Namespace, x: np.ndarray | Tensor, network: Network) -> None:
    """Nothing is written: the picture is all there is."""


def files(network: Network) -> Files:
    """The files of images: a .png per sample, and an .npz of all pixels."""
    size = network.image_size
    return Files(
        suffix=".png",
        size=3 * size**2,
        packed=3 * size**2,
        fetch=to_uint8_later,
        write=lambda picture, path: save_image(Image.fromarray(picture), path),
        fault=partial(fault_of, size=size),
        pack=lambda paths, labels, npz: save_npz(paths, labels, npz, size),
    )


def is_reference(word: str) -> bool:
    """Whether a word of --reference is a file."""
    return Path(word).is_file()


def is_set(name: str) -> bool:
    """True: images are the kind of every set that no other kind has claimed."""
    return True
