"""What the programs that sample share: a model ready to use from a checkpoint, guidance, and randomness by image."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import download
from data.autoencoder import Autoencoder, check_channels, latent_size, load_autoencoder
from models import SiT
from runtime import checkpoint, precision
from runtime.distributed import seed_for
from runtime.errors import DataError, UsageError
from sampling.arguments import DEFAULT_MODEL
from shapes.rendering import SIDE
from shapes.sets import Layout, ShapeSpace
from train_utils import (
    TIMES,
    ModelConfig,
    build_graded_sampler,
    build_sampler,
    build_transport,
    default_combostoc_type,
    load_weights,
    method_settings,
    model_config,
    of_shapes,
)
from transport import BLENDS, PATHS, PREDICTIONS, ComboStocType, Transport
from transport.sampler import CLOSED_STEPS


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
    autoencoder: Autoencoder | ShapeSpace
    transport: Transport
    image_size: int  # of shapes the side of their pictures
    class_names: list[str] | None
    path: Path
    step: int
    notes: list[str]  # on what the checkpoint holds, to be said

    @property
    def images(self) -> Autoencoder:
        """The way to images and back.

        Raises:
            UsageError: this is a model of shapes.
        """
        if isinstance(self.autoencoder, ShapeSpace):
            raise UsageError(f"{self.config.name} is a model of shapes; this is for images")
        return self.autoencoder

    @property
    def layout(self) -> Layout | None:
        """What the numbers of a part are; None for images."""
        return self.autoencoder.layout if isinstance(self.autoencoder, ShapeSpace) else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample: (C, h, w), or (L, F) for shapes."""
        if self.layout is not None:
            return self.layout.shape
        return self.config.in_channels, self.config.input_size, self.config.input_size

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
    trained = {k: v for k, v in checkpoint.training_args(content).items() if v is not None}
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

    autoencoder: Autoencoder | ShapeSpace
    attributes = None
    if of_shapes(config.name):
        if "layout" not in content:
            raise DataError(f"checkpoint {name} holds {config.name} without the layout of its shapes")
        autoencoder = ShapeSpace(layout := Layout.load(content["layout"], name))
        if layout.shape[1] != config.in_channels:
            raise DataError(f"checkpoint {name} holds {config}, and a layout of parts of {layout.shape[1]} numbers")
        attributes = layout.widths_of_all
        args.vae, args.image_size = None, args.image_size or SIDE
    else:
        autoencoder = load_images_space(args, config, trained, default_vae, device, name)
        resolve("image_size", config.input_size * autoencoder.factor)

    combostoc_type = trained.get("combostoc_type") or default_combostoc_type(config.name)
    model = config.build()
    notes = checkpoint.origin(content, name) + load_weights(model, state, name)
    if args.precision == "bf16":
        model.blocks.to(torch.bfloat16)  # as autocast would at every evaluation
    if args.compile:
        model.compile_blocks()
    return Network(
        model=model.to(device).eval().requires_grad_(False),
        config=config,
        autoencoder=autoencoder,
        transport=build_transport(args, combostoc_type, **method_settings(trained), attributes=attributes),
        image_size=args.image_size,
        class_names=content.get("class_names"),
        path=path,
        step=checkpoint.step(content),
        notes=notes,
    )


def load_images_space(
    args: argparse.Namespace,
    config: ModelConfig,
    trained: dict[str, Any],
    default_vae: str,
    device: torch.device,
    source: str,
) -> Autoencoder:
    """The autoencoder of an image model's checkpoint or arguments.

    Raises:
        UsageError: it does not fit the model.
        DataError: it cannot be loaded.
    """
    trained_vae = trained.get("vae") or ("none" if config.in_channels in (1, 3) else None)
    args.vae = args.vae or (default_vae if trained_vae in (None, "ema", "mse") else trained_vae)
    check_channels(args.vae, config.in_channels, source)
    autoencoder = load_autoencoder(args.vae, device, config.in_channels)
    if autoencoder.channels != config.in_channels:
        raise UsageError(
            f"--vae {args.vae} has {autoencoder.channels} channels, the model of checkpoint {source} "
            f"{config.in_channels}"
        )
    if args.image_size is not None:
        latent_size(args.image_size, autoencoder.factor, config.name)
    return autoencoder


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
        "times": TIMES,
        "halfmixing": switch,
        "blend": list(BLENDS),
        "compensation": switch,
    }
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        **{name: (", ".join(known), known.__contains__) for name, known in choices.items()},
        "sample_eps": ("a number from 0 to 0.5", lambda v: type(v) in (int, float) and 0 <= v < 0.5),
        "vae": ("a name or a folder", lambda v: isinstance(v, str)),
        "difficulty": ("a weight", lambda v: type(v) in (int, float) and 0 <= v < math.inf),
    }
    for name, (accepted, is_of_its_kind) in kinds.items():
        if name in trained and not is_of_its_kind(trained[name]):
            raise DataError(
                f"checkpoint {source} was trained with {name} {trained[name]!r:.60}; what is known is {accepted}"
            )
    if class_names is not None and len(class_names) > config.num_classes:
        raise DataError(f"checkpoint {source} names {len(class_names)} classes, and its model has {config.num_classes}")


# ---- sampling ------------------------------------------------------------------------------------------------------


def guided(
    model: SiT,
    cfg_scale: float,
    cfg_channels: int | None = 3,
    interval: tuple[float, float] = (0.0, 1.0),
    precision_name: str = "fp32",
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The model under classifier-free guidance as a function of a plain batch (x, t, y), and of log_variance, see
    `SiT.forward`.

    Args:
        cfg_scale: 1 is no guidance, 0 the null class in place of y.
        cfg_channels: see `SiT.forward_with_cfg`.
        interval: guide where t is in it (arXiv 2404.07724); when it is nowhere, the unconditional half is not computed.
            Entries with times of their own are guided by these; a t of shape (N,) is one time.
        precision_name: one of `runtime.precision.PRECISIONS`.
    """
    low, high = interval
    always = low <= 0 and high >= 1

    def field(x: Tensor, t: Tensor, y: Tensor, **kwargs: bool) -> Tensor:
        with precision.autocast(precision_name, x.device):
            if cfg_scale == 1:
                return model(x, t, y, **kwargs)
            if cfg_scale == 0:
                return model(x, t, torch.full_like(y, model.num_classes), **kwargs)
            scale: float | Tensor = cfg_scale
            if not always:
                inside = (low <= t) & (t <= high)
                if not inside.any():
                    return model(x, t, y, **kwargs)
                if t.ndim > 1:  # each entry by its own time
                    scale = torch.where(inside, cfg_scale, 1.0)[:, :cfg_channels]
            labels = torch.cat([y, torch.full_like(y, model.num_classes)])
            x, t = torch.cat([x, x]), torch.cat([t, t])
            return model.forward_with_cfg(x, t, labels, scale, cfg_channels, **kwargs)[: len(y)]

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
            return noise.pin_memory().to(device, non_blocking=True)  # or every step would wait for the copy
        return noise.to(device)

    def randn_like(self, x: Tensor) -> Tensor:
        """The noise of one step of an SDE."""
        return self.randn(x.shape[1:], x.device).to(x.dtype)

    def rand_like(self, x: Tensor) -> Tensor:
        """Uniform in [0, 1), like x."""
        return torch.stack([torch.rand(*x.shape[1:], generator=g) for g in self.generators]).to(x)


def guided_by(args: argparse.Namespace, network: Network) -> Callable[..., Tensor]:
    """The model under guidance and in the precision of a sampling program's arguments."""
    channels = None if args.cfg_channels == "all" or network.layout is not None else int(args.cfg_channels)
    return guided(network.model, args.cfg_scale, channels, tuple(args.guidance_interval), args.precision)


def draw(
    args: argparse.Namespace,
    network: Network,
    noise: ImageNoise,
    y: Tensor,
    model: Callable[..., Tensor],
    keep: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, int]:
    """Images of the classes y from the randomness of each: (N, C, H, W), or shapes' numbers, (N, L, F); and the model
    evaluations it took.

    Args:
        keep: for graded control, latents to keep something of, and how much: (N, C, h, w) and a preservation map.
    """
    z = noise.randn(network.input_shape, y.device)
    randn: dict[str, Any] = {"randn": noise.randn_like} if args.mode == "SDE" else {}
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
    a_step = {"euler": 1, "dual-loop": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}.get(args.sampling_method)
    if a_step is None:
        return None
    euler_last = args.prediction == "data" and args.sampling_method in CLOSED_STEPS
    return (steps - 1) * a_step + 1 if euler_last else steps * a_step
