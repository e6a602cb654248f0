"""The cases of the benchmarks, and the work of each made ready."""

import argparse
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import extract_latents
from benchmarks import measure, predecessor
from data.autoencoder import draw_posterior
from data.feed import feed, load_batches
from data.latents import CachedLatents, is_extraction
from data.order import BatchOrder
from models import SiT
from runtime import precision
from runtime.errors import UsageError
from sampling.network import guided
from train_utils import ModelConfig
from training.step import build_optimizer, training_step
from transport import PUBLISHED_SDE, ComboStocType, Sampler, create_transport, timestep_shape

CHANNELS, FACTOR, CLASSES = 4, 8, 1000  # SD-VAE and ImageNet
RANDOM = "random"  # in place of a folder of cached latents: random ones, in shards of the usual size


@dataclass(frozen=True)
class Case:
    """A model and the settings with which it works."""

    model: str
    combostoc_type: str
    batch_size: int
    input_size: int
    precision: str
    compile: bool
    grad_checkpointing: int = 0
    predecessor: bool = False  # under the predecessor's settings
    cached: bool = False  # latents of --data-path instead of synthetic ones

    @property
    def config(self) -> ModelConfig:
        """The model of the case."""
        return ModelConfig(self.model, self.input_size, CHANNELS, CLASSES, learn_sigma=True)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of a batch, (N, C, H, W)."""
        return self.batch_size, CHANNELS, self.input_size, self.input_size

    def __str__(self) -> str:
        """The case in words, for tables."""
        words = [self.model if self.model.startswith("SiT") else f"{self.model} {self.combostoc_type}"]
        words += ["predecessor's settings"] * self.predecessor + [self.precision] + ["compiled"] * self.compile
        words += [f"recomputing every {self.grad_checkpointing}. block"] * (self.grad_checkpointing > 1)
        words += ["recomputing every block"] * (self.grad_checkpointing == 1 and not self.predecessor)
        return ", ".join(words + ["cached latents"] * self.cached)


@dataclass
class Work:
    """The work of a case, made ready."""

    run: Callable[[], None]  # does the work on a batch of its own
    on: Callable[[Tensor, Tensor], None]  # does the work on the given batch
    flops: int  # floating-point operations of the model on one batch
    tensors: Callable[[], list[Tensor]]  # the tensors that live between runs


@dataclass
class Trained:
    """The state that a training step changes. Cases that differ in their batches only share it: 12.6 GiB for XL/2."""

    model: SiT
    ema: SiT
    opt: torch.optim.AdamW

    def tensors(self) -> list[Tensor]:
        """All tensors of the state: parameters, averages, gradients and moments."""
        states = [v for state in self.opt.state.values() for v in state.values()]
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return [*self.model.parameters(), *self.ema.parameters(), *grads, *states]


def build_model(case: Case, device: torch.device) -> SiT:
    """A model whose output depends on all weights, unlike a fresh one's."""
    torch.manual_seed(0)
    model = case.config.build(grad_checkpointing=case.grad_checkpointing).to(device)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)
    return model


def build_trained(case: Case, device: torch.device) -> Trained:
    """The state of a case before its first step."""
    model = build_model(case, device).train()
    ema = deepcopy(model).requires_grad_(False).eval()
    if case.predecessor:
        predecessor.condition_every_token(model)
        return Trained(model, ema, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0))
    if case.compile:
        model.compile_blocks()
    return Trained(model, ema, build_optimizer(model, 1e-4))


def training_work(case: Case, args: argparse.Namespace, device: torch.device, shared: dict[Case, Trained]) -> Work:
    """The work of a whole training step: draws, loss, gradients, AdamW, average."""
    key = replace(case, combostoc_type="", batch_size=0, cached=False)
    trained = shared[key] = shared.get(key) or build_trained(case, device)
    transport = create_transport(combostoc_type=case.combostoc_type)
    batches = cached_batches(args, case, device) if case.cached else synthetic_batches(case, device)

    def on(x1: Tensor, y: Tensor) -> None:
        precision.setup(case.precision)
        model, ema, opt = trained.model, trained.ema, trained.opt
        if case.predecessor:
            predecessor.training_step(model, ema, opt, transport, x1, y)
        else:
            training_step(model, ema, opt, transport, x1, y, ema_decay=0.9999, precision_name=case.precision)

    # the asynchronous half and the synchronous one, whatever the case spends on the latter
    half = case.batch_size // 2
    async_shape = timestep_shape((half, *case.x_shape[1:]), ComboStocType[case.combostoc_type])
    flops = measure.model_flops(case.config, [async_shape, (case.batch_size - half,)], training=True)
    return Work(lambda: on(*next(batches)), on, flops, trained.tensors)


def sampling_work(case: Case, args: argparse.Namespace, device: torch.device) -> Work:
    """The work of all model evaluations of a batch of samples."""
    model = build_model(case, device).eval().requires_grad_(False)
    if case.predecessor:
        predecessor.condition_every_token(model)
    elif case.precision == "bf16":
        model.blocks.to(torch.bfloat16)
    if case.compile:
        model.compile_blocks()
    z, y = next(synthetic_batches(case, device))
    sde = replace(PUBLISHED_SDE, num_steps=args.num_sampling_steps)
    sampler = Sampler(create_transport()).sample_sde(**vars(sde))
    field = guided(model, args.cfg_scale, precision_name=case.precision)

    def on(z: Tensor, y: Tensor) -> None:
        precision.setup(case.precision)
        sampler(z, field, y=y)

    rows = case.batch_size * (2 if args.cfg_scale > 1 else 1)
    flops = args.num_sampling_steps * measure.model_flops(case.config, [(rows,)], training=False)
    return Work(lambda: on(z, y), on, flops, lambda: list(model.parameters()))


def synthetic_batches(case: Case, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """One random batch (N, C, H, W) with labels (N,), again and again."""
    x1, y = torch.randn(case.x_shape, device=device), torch.randint(CLASSES, (case.batch_size,), device=device)
    while True:
        yield x1, y


def cached_batches(args: argparse.Namespace, case: Case, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of cached latents, as train.py reads them.

    Raises:
        UsageError: the latents are of another shape.
    """
    if args.data_path != RANDOM:
        latents = CachedLatents(args.data_path)
    elif is_extraction(args.latents_folder):
        latents = CachedLatents(args.latents_folder)
    else:
        latents = CachedLatents(random_latents(case, args.latents_folder))
    if latents.latent_shape != case.x_shape[1:]:
        raise UsageError(
            f"--data-path {args.data_path} holds latents of {latents.latent_shape}, not {case.x_shape[1:]}"
        )
    order = BatchOrder(len(latents), case.batch_size, 0, 1, seed=0)
    with load_batches(latents, order, args.num_workers, device) as loaded:
        yield from feed(loaded, draw_posterior, device)


def random_latents(case: Case, folder: Path) -> Path:
    """A folder of cached latents without an autoencoder: random moments of 4,096 images in shards of the usual size."""
    moments = (2, 2, *case.x_shape[1:])
    generator = np.random.default_rng(0)
    (folder / "records").mkdir()
    for k in range(4):
        shard = generator.standard_normal((extract_latents.SHARD_SIZE, *moments), dtype=np.float32)
        extract_latents.write_shard(folder, k, [shard], [k] * len(shard), [])
    settings = {
        "autoencoder": {"name": RANDOM, "encoder_sha256": "", "scale": 1.0, "shift": 0.0},
        "image_size": case.input_size * FACTOR,
        "latent_shape": case.x_shape[1:],
        "class_names": list("abcd"),
        "source": {"images": 4 * extract_latents.SHARD_SIZE},
    }
    extract_latents.write_manifest(folder, settings, 4, max_bad_images=0)
    return folder
