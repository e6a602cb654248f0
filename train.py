"""Train SiT or ComboStoc.

    python train.py --data-path digits --vae none --image-size 8 --num-classes 10 --model ComboStoc-XS/2 \\
        --global-batch-size 128 --lr 1e-3 --ema-decay 0.995 --max-steps 1000                     # minutes on any CPU
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --model ComboStoc-XL/2               # the paper, on a node
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --model SiT-XL/2                     # the baseline

FOLDER holds one sub-folder a class, or the latents that extract_latents.py made of such a folder. The experiment goes
to RESULTS_DIR/<model>-<exp>: log.txt, metrics.csv, args.json, ckpt.pt (rolling), checkpoints/<step>.pt,
samples/<step>.png. The same command again continues from ckpt.pt; --ckpt FILE continues any checkpoint with its
training configuration. Data order and noise are functions of the seed and the step, so that a continued run is the run
it would have been.
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

import checkpoint
import distributed
import download
import precision
import progress
import wandb_utils
from autoencoder import Autoencoder
from data import DIGITS, BatchOrder
from errors import DataError, UsageError, run_program
from experiment import Experiment, LossWindow, plain
from feed import feed, load_batches, load_images, load_latents
from latents import is_latents
from models import SiT
from pictures import grid, save_image, to_uint8
from sampling import ImageNoise, guided
from train_utils import (
    MODEL_NAMES,
    ModelConfig,
    Parser,
    add_workers_arg,
    build_transport,
    count,
    guidance_scale,
    load_weights,
    model_config,
    model_name,
    parse_transport_args,
    positive_float,
    positive_int,
    typed_arguments,
)
from training import build_optimizer, training_step
from transport import ComboStocType, Sampler, Transport

PREVIEW_IMAGES = 16

# What a checkpoint restores unless it is typed on the command line: the method, not paths, intervals and lengths.
RESTORED = (
    *("model", "image_size", "num_classes", "vae", "combostoc_type"),
    *("path_type", "prediction", "loss_weight", "train_eps", "sample_eps"),
    *("global_batch_size", "global_seed", "lr", "ema_decay", "max_grad_norm", "grad_accum", "precision"),
)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The arguments, and the names of those typed on the command line."""
    parser = Parser(description=__doc__)
    types = [c.name for c in ComboStocType]

    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        required=True,
        help=f"folder of images (read as RGB), a sub-folder a class; a folder of cached latents; or '{DIGITS}'",
    )
    group.add_argument("--image-size", type=positive_int, default=256, help="side of the crop in pixels")
    group.add_argument("--num-classes", type=positive_int, default=1000, help="classes of the model")
    group.add_argument("--vae", default="ema", help="ema or mse (SD-VAE), none (pixel space), or a diffusers folder")
    group.add_argument("--encode-bf16", action="store_true", help="encode images in bfloat16")
    add_workers_arg(group)

    group = parser.add_argument_group("training")
    group.add_argument("--model", type=model_name, default="ComboStoc-XL/2", help=MODEL_NAMES)
    group.add_argument(
        "--combostoc-type", choices=types, help="what has its own timestep; default: UNSYNC_ALL, for SiT UNSYNC_NONE"
    )
    group.add_argument("--epochs", type=positive_int, default=1400, help="passes over the data")
    group.add_argument("--max-steps", type=positive_int, help="stop at this step, counted from the run's beginning")
    group.add_argument("--global-batch-size", type=positive_int, default=256, help="images a step, on all processes")
    group.add_argument("--global-seed", type=int, default=0, help="of initialisation, data order and noise")
    group.add_argument("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW, constant")
    group.add_argument("--ema-decay", type=float, default=0.9999, help="decay a step of the averaged weights")
    group.add_argument("--max-grad-norm", type=positive_float, help="scale longer gradients down; default: never")
    precision.add_speed_args(group)
    group.add_argument(
        "--grad-accum",
        type=positive_int,
        default=1,
        metavar="K",
        help="compute a process's share of a batch in K parts",
    )
    group.add_argument(
        "--grad-checkpointing", type=count, default=0, metavar="K", help="recompute every K-th block; 0: none"
    )

    group = parser.add_argument_group("experiment")
    group.add_argument("--results-dir", type=Path, default=Path("results"), help="experiments go here")
    group.add_argument("--exp", default="exp_tmp", help="name of the experiment")
    group.add_argument("--ckpt", help="begin from this checkpoint: a file, a published name, or hf://owner/repo/file")
    group.add_argument("--log-every", type=count, default=100, help="steps between log lines; 0 is never")
    group.add_argument("--ckpt-every", type=count, default=50_000, help="steps between kept checkpoints")
    group.add_argument("--reckpt-every", type=count, default=5_000, help="steps between rolling checkpoints")
    group.add_argument("--sample-every", type=count, default=10_000, help="steps between sample pictures")
    group.add_argument("--cfg-scale", type=guidance_scale, default=4.0, help="guidance of the sample pictures")
    group.add_argument("--wandb", action="store_true", help="log to Weights & Biases (WANDB_KEY, ENTITY, PROJECT)")

    parse_transport_args(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.ema_decay < 1:
        parser.error(f"argument --ema-decay: {args.ema_decay} is not in [0, 1)")
    return args, typed_arguments(parser, argv)


def check_arguments(args: argparse.Namespace, process: distributed.Process) -> None:
    """Fill in the ComboStoc type, and refuse combinations that cannot work.

    Raises:
        UsageError: names the values.
    """
    is_sit = args.model.startswith("SiT")
    args.combostoc_type = args.combostoc_type or ("UNSYNC_NONE" if is_sit else "UNSYNC_ALL")
    if is_sit and args.combostoc_type != "UNSYNC_NONE":
        raise UsageError(
            f"--combostoc-type {args.combostoc_type} needs a ComboStoc model; {args.model} takes UNSYNC_NONE"
        )
    parts = process.world_size * args.grad_accum
    if args.global_batch_size % parts:
        raise UsageError(
            f"--global-batch-size {args.global_batch_size} is not divisible by {parts}, "
            f"the processes ({process.world_size}) times --grad-accum {args.grad_accum}"
        )
    if args.compile:
        precision.check_compiler()
    if args.wandb:
        for variable in ("WANDB_KEY", "ENTITY", "PROJECT"):
            wandb_utils.required(variable)


# ---- continuing ----------------------------------------------------------------------------------------------------


def find_start(args: argparse.Namespace, typed: set[str]) -> tuple[dict[str, Any], str, list[str]]:
    """What to continue: the experiment's own rolling checkpoint if there is one, else --ckpt, else nothing.

    Returns:
        The checkpoint ({} for none), where it came from, and warnings. `args` has taken over its configuration.
    """
    own = Experiment.rolling_checkpoint(Experiment.path_for(args))
    if args.ckpt and not own.is_file():
        saved = checkpoint.load(download.locate(args.ckpt))
        warnings = restore_arguments(args, typed, saved, args.ckpt)
        own = Experiment.rolling_checkpoint(Experiment.path_for(args))  # the model, and so the folder, may be restored
        if not own.is_file():
            return saved, args.ckpt, warnings
    if not own.is_file():
        return {}, "", []
    saved = checkpoint.load(own)
    warnings = restore_arguments(args, typed, saved, str(own))
    if args.ckpt:
        warnings.append(f"Warning: this experiment has begun: continuing {own}, not --ckpt {args.ckpt}")
    return saved, str(own), warnings


def restore_arguments(args: argparse.Namespace, typed: set[str], saved: dict[str, Any], source: str) -> list[str]:
    """Take over the training configuration of a checkpoint; a typed argument wins. Returns lines that say so."""
    trained = checkpoint.training_args(saved)
    restored, warnings = [], []
    for name in RESTORED:
        if name not in trained or getattr(args, name) == trained[name]:
            continue
        flag, given = "--" + name.replace("_", "-"), getattr(args, name)
        if name not in typed:
            setattr(args, name, trained[name])
            restored.append(f"{flag} {trained[name]}")
        elif name == "model":
            raise UsageError(f"--model {given}, but checkpoint {source} holds {trained[name]}")
        else:
            warnings.append(f"Warning: {flag} {given} instead of the checkpoint's {trained[name]}")
    return [f"From the checkpoint: {', '.join(restored)}", *warnings] if restored else warnings


def check_classes(class_names: list[str], args: argparse.Namespace, saved: dict[str, Any], source: str) -> list[str]:
    """Classes of the data against those of the model and of the checkpoint; returns warnings."""
    if len(class_names) > args.num_classes:
        raise UsageError(f"--num-classes {args.num_classes} is less than the data's {len(class_names)} classes")
    trained = saved.get("class_names", class_names)
    if trained != class_names:
        raise UsageError(
            f"checkpoint {source} was trained on {len(trained)} classes, {trained[0]} ...; "
            f"--data-path {args.data_path} has {len(class_names)}, {class_names[0]} ..."
        )
    if len(class_names) == args.num_classes:
        return []
    return [f"Warning: the data have {len(class_names)} of --num-classes {args.num_classes}; the others stay untrained"]


def restore_state(saved: dict[str, Any], source: str, model: SiT, ema: SiT, opt: torch.optim.Optimizer) -> int:
    """Load model, EMA and optimiser from a checkpoint, or what of them it has, and return its step."""
    load_weights(model, checkpoint.weights(saved, source, prefer="model"), source)
    load_weights(ema, checkpoint.weights(saved, source), source)
    if "opt" in saved:
        settings = {k: v for k, v in opt.state_dict()["param_groups"][0].items() if k != "params"}  # the run's own
        try:
            groups = [group | settings for group in saved["opt"]["param_groups"]]
            opt.load_state_dict(saved["opt"] | {"param_groups": groups})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"checkpoint {source}: its optimiser state does not fit: {error}") from None
    return checkpoint.step(saved)


# ---- the run -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    args, typed = parse_args(argv)
    process = distributed.setup()
    saved, source, warnings = find_start(args, typed)
    check_arguments(args, process)
    precision.setup(args.precision)

    # Data and model.
    data = load_latents(args, process) if is_latents(args.data_path) else load_images(args, process)
    dataset, autoencoder = data.dataset, data.autoencoder
    config = ModelConfig(args.model, data.input_size, data.channels, args.num_classes, learn_sigma=True)
    if source:
        found = model_config(checkpoint.weights(saved, source), source)
        config = replace(config, learn_sigma=found.learn_sigma)
        if found != config:
            raise UsageError(f"checkpoint {source} holds {found}; the arguments describe {config}")
    warnings += check_classes(dataset.class_names, args, saved, source)
    transport = build_transport(args, args.combostoc_type)
    torch.manual_seed(distributed.seed_for(args.global_seed, "init"))
    model = config.build(grad_checkpointing=args.grad_checkpointing).to(process.device)
    ema = deepcopy(model).requires_grad_(False).eval()
    opt = build_optimizer(model, args.lr)
    step = restore_state(saved, source, model, ema, opt) if source else 0
    saved.clear()
    distributed.check_agreement(step, "the step to continue from", process.device)
    order = BatchOrder(len(dataset), args.global_batch_size, process.rank, process.world_size, args.global_seed, step)
    total_steps = args.epochs * order.steps_per_epoch
    total_steps = min(total_steps, args.max_steps or total_steps)
    if step > total_steps:
        raise UsageError(f"checkpoint {source} is at step {step}, beyond the {total_steps} of --epochs and --max-steps")

    # All that can be refused has been; from here on files are written.
    experiment = Experiment(Experiment.path_for(args), process)
    experiment.open(args, step)
    log = experiment.logger.info
    for warning in warnings:
        log(warning)
    log(f"Experiment folder {experiment.folder}")
    log(f"{args.model}, {args.combostoc_type}: {sum(p.numel() for p in model.parameters()):,} parameters")
    if args.compile:
        log("Compiling: the first step takes a minute or so")
    log(f"{len(dataset):,} images in {len(dataset.class_names)} classes, {order.steps_per_epoch} steps an epoch")
    log(f"Continuing {source} from step {step} to {total_steps}" if source else f"Training for {total_steps} steps")
    if args.wandb and process.is_main:
        names = wandb_utils.required("ENTITY"), experiment.folder.name, wandb_utils.required("PROJECT")
        wandb_utils.initialize(args, *names)

    wrapped: nn.Module = model.train()
    if args.compile:
        model.compile_blocks()
    if process.world_size > 1:
        device_ids = [process.local_rank] if process.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    loaded = load_batches(dataset, order, args.num_workers, process.device) if step < total_steps else iter(())
    batches = feed(loaded, data.to_latents, process.device)
    window = LossWindow(process.device)
    on_terminal = process.is_main and sys.stderr.isatty()  # elsewhere the log lines tell
    bar = progress.bar(initial=step, total=total_steps, desc="training", disable=not on_terminal)
    with logging_redirect_tqdm([experiment.logger]):
        while step < total_steps:
            torch.manual_seed(distributed.seed_for(args.global_seed, "step", step, process.rank))
            x1, y = next(batches)
            loss = training_step(
                wrapped,
                ema,
                opt,
                transport,
                x1,
                y,
                ema_decay=args.ema_decay,
                precision_name=args.precision,
                grad_accum=args.grad_accum,
                max_grad_norm=args.max_grad_norm,
            )
            window.add(loss)
            step += 1
            bar.update()

            if due(args.log_every, step):
                row = window.close(step, (step - 1) // order.steps_per_epoch, args.global_batch_size)
                experiment.log_metrics(row)
                if args.wandb and process.is_main:
                    wandb_utils.log(row, step=step)
            if not process.is_main:
                continue
            paths = [experiment.kept_checkpoint(step)] if due(args.ckpt_every, step) else []
            if due(args.reckpt_every, step) or step == total_steps:
                paths.append(Experiment.rolling_checkpoint(experiment.folder))
            for path in paths:
                state = {"model": model.state_dict(), "ema": ema.state_dict(), "opt": opt.state_dict(), "step": step}
                checkpoint.save(path, state | {"args": plain(args), "class_names": dataset.class_names})
                log(f"Saved {path}")
            if due(args.sample_every, step) and autoencoder is not None:
                picture = preview(ema, config, dataset.class_names, autoencoder, transport, args)
                save_image(picture, experiment.picture(step))
                log(f"Saved {experiment.picture(step)}")
                if args.wandb:
                    wandb_utils.log_image(np.asarray(picture), step=step)
    bar.close()
    log("Done")
    distributed.barrier()
    if args.wandb and process.is_main:
        wandb_utils.finish()
    distributed.cleanup()


def due(every: int, step: int) -> bool:
    """Whether what happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0


def preview(
    ema: SiT,
    config: ModelConfig,
    class_names: list[str],
    autoencoder: Autoencoder,
    transport: Transport,
    args: argparse.Namespace,
) -> Image.Image:
    """A grid of samples of the averaged weights by the default ODE, from the same noise every time."""
    device = next(ema.parameters()).device
    noise = ImageNoise(args.global_seed, range(PREVIEW_IMAGES))
    z = noise.randn((config.in_channels, config.input_size, config.input_size), device)
    spread = [k * len(class_names) // PREVIEW_IMAGES for k in range(PREVIEW_IMAGES)]  # ImageNet's thousand
    labels = spread if len(class_names) > PREVIEW_IMAGES else [k % len(class_names) for k in range(PREVIEW_IMAGES)]
    y = torch.tensor(labels, device=device)
    model = guided(ema, args.cfg_scale, precision_name=args.precision)
    x = Sampler(transport).sample_ode()(z, model, y=y)[-1]
    return grid(to_uint8(autoencoder.decode(x)), [class_names[k] for k in labels])


if __name__ == "__main__":
    run_program(main)
