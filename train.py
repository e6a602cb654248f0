"""Train SiT or ComboStoc.

    python train.py --data-path digits --vae none --image-size 8 --num-classes 10 --model ComboStoc-XS/2 \\
        --global-batch-size 128 --lr 1e-3 --ema-decay 0.995 --max-steps 1000                     # minutes on any CPU
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --model ComboStoc-XL/2               # the paper, on a node
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --model SiT-XL/2                     # the baseline

FOLDER holds one sub-folder a class, or the latents that extract_latents.py made of such a folder. The experiment goes
to RESULTS_DIR/<model>-<exp>: log.txt, metrics.csv, args.json, ckpt.pt (rolling), checkpoints/<step>.pt,
samples/<step>.png, evaluations.csv (with --eval-every). The same command again continues from ckpt.pt; --ckpt FILE
continues any checkpoint with its training configuration. Data order and noise are functions of the seed and the step,
so that a continued run is the run it would have been.
"""

import argparse
from pathlib import Path

from runtime.command_line import Parser, count, decay, folder_name, positive_float, positive_int
from runtime.errors import begin
from runtime.precision import add_speed_args
from train_utils import (
    COMBOSTOC_TYPES,
    MODEL_NAMES,
    add_bad_images_arg,
    add_eval_args,
    add_flip_arg,
    add_method_args,
    add_workers_arg,
    guidance_scale,
    model_name,
    parse_transport_args,
)


def make_parser() -> Parser:
    parser = Parser(description=__doc__)

    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        required=True,
        help="folder of images (read as RGB), a sub-folder a class; a folder of cached latents; or 'digits'",
    )
    group.add_argument(
        "--image-size", type=positive_int, default=256, help="side of the crop in pixels; cached latents bring theirs"
    )
    group.add_argument("--num-classes", type=positive_int, default=1000, help="classes of the model")
    group.add_argument(
        "--vae",
        default="ema",
        help="ema or mse (SD-VAE), none (pixel space), or a diffusers folder; cached latents bring theirs",
    )
    group.add_argument("--encode-bf16", action="store_true", help="encode images in bfloat16")
    add_flip_arg(group, "mirror half of the images, other ones in each epoch")
    add_bad_images_arg(group)
    add_workers_arg(group)

    group = parser.add_argument_group("training")
    group.add_argument("--model", type=model_name, default="ComboStoc-XL/2", help=MODEL_NAMES)
    group.add_argument(
        "--combostoc-type",
        choices=COMBOSTOC_TYPES,
        help="what has its own timestep; default: UNSYNC_ALL, for SiT UNSYNC_NONE",
    )
    add_method_args(group)
    group.add_argument("--epochs", type=positive_int, default=1400, help="passes over the data")
    group.add_argument("--max-steps", type=positive_int, help="stop at this step, counted from the run's beginning")
    group.add_argument("--global-batch-size", type=positive_int, default=256, help="images a step, on all processes")
    group.add_argument("--global-seed", type=int, default=0, help="of initialisation, data order and noise")
    group.add_argument("--lr", type=positive_float, default=1e-4, help="learning rate of AdamW, constant")
    group.add_argument("--ema-decay", type=decay, default=0.9999, help="decay a step of the averaged weights")
    group.add_argument("--max-grad-norm", type=positive_float, help="scale longer gradients down; default: never")
    group.add_argument(
        "--max-bad-steps",
        type=positive_int,
        default=10,
        metavar="N",
        help="steps whose loss or gradients are not finite are skipped; stop after so many in a row",
    )
    add_speed_args(group)
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
    group.add_argument("--exp", type=folder_name, default="exp_tmp", help="name of the experiment")
    group.add_argument("--ckpt", help="continue this checkpoint: a file, a published name, or hf://owner/repo/file")
    group.add_argument(
        "--init-from", metavar="CKPT", help="begin a fresh run from the weights of this checkpoint that fit"
    )
    group.add_argument(
        "--ckpt-format",
        choices=["pt", "safetensors"],
        default="pt",
        help="of kept checkpoints: pt, with all that continuing takes, or safetensors, averaged weights for sample.py",
    )
    group.add_argument("--log-every", type=count, default=100, help="steps between log lines; 0 is never")
    group.add_argument("--ckpt-every", type=count, default=50_000, help="steps between kept checkpoints")
    group.add_argument("--reckpt-every", type=count, default=5_000, help="steps between rolling checkpoints")
    group.add_argument("--sample-every", type=count, default=10_000, help="steps between sample pictures")
    group.add_argument("--cfg-scale", type=guidance_scale, default=4.0, help="guidance of the sample pictures")
    group.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases (WANDB_KEY or `wandb login`, ENTITY, PROJECT)"
    )

    add_eval_args(parser.add_argument_group("evaluation"))
    parse_transport_args(parser)
    return parser


if __name__ == "__main__":
    begin(make_parser())

import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

import wandb_utils
from data.autoencoder import check_channels
from data.feed import Data, feed, load_batches, load_images, load_latents
from data.images import center_crop_arr as center_crop_arr  # SiT has it here
from data.latents import CachedLatents, is_latents
from data.order import BatchOrder
from data.pictures import columns_for, grid, save_image, to_uint8
from data.sets import check_same_everywhere
from data.skipping import allowed_bad_images, check_readable
from evaluation.statistics import report_name
from models import SiT
from runtime import checkpoint, distributed, precision, progress, signals
from runtime.errors import DataError, UsageError, run_program
from sampling.network import ImageNoise, guided
from train_utils import (
    ModelConfig,
    build_transport,
    default_combostoc_type,
    method_settings,
    model_config,
    typed_arguments,
)
from training.bookkeeping import Bookkeeping
from training.experiment import Experiment, plain
from training.monitor import Monitor
from training.resume import as_typed, check_classes, find_start, images_seen, initialize_from, restore_state
from training.step import build_optimizer, compute_gradients, training_step
from training.step import update_ema as update_ema  # and this
from transport import Sampler, Transport

PREVIEW_IMAGES = 16


def check_arguments(args: argparse.Namespace, process: distributed.Process) -> None:
    """Fill in the ComboStoc type, and refuse combinations that cannot work.

    Raises:
        UsageError: names the values.
    """
    args.combostoc_type = args.combostoc_type or default_combostoc_type(args.model)
    if args.model.startswith("SiT") and args.combostoc_type != "UNSYNC_NONE":
        raise UsageError(
            f"--combostoc-type {args.combostoc_type} needs a ComboStoc model; {args.model} takes UNSYNC_NONE"
        )
    if args.combostoc_type == "UNSYNC_NONE":
        for name, published in (("halfmixing", "on"), ("blend", "batch"), ("compensation", "on")):
            if (value := getattr(args, name)) != published:
                raise UsageError(f"--{name} {value} is for asynchronous times, not for UNSYNC_NONE")
    parts = process.world_size * args.grad_accum
    if args.global_batch_size % parts:
        raise UsageError(
            f"--global-batch-size {args.global_batch_size} is not divisible by {parts}, "
            f"the processes ({process.world_size}) times --grad-accum {args.grad_accum}"
        )
    if args.ckpt and args.init_from:
        raise UsageError(
            f"--ckpt {args.ckpt} continues a run, --init-from {args.init_from} begins one: give one of them"
        )
    if args.compile:
        precision.check_compiler()
    if args.wandb:
        distributed.from_main(wandb_utils.check_login)


# ---- the run -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    process = distributed.setup(distributed.TIMEOUT)
    latents = CachedLatents(args.data_path) if is_latents(args.data_path) else None
    supplied = latents.supply(args, typed_arguments(parser, argv)) if latents is not None else {}
    start = find_start(args, parser, argv)
    check_arguments(args, process)
    precision.setup(args.precision)

    # Data and model.
    if start.source:
        found = model_config(checkpoint.weights(start.saved, start.source), start.source)
        check_channels(args.vae, found.in_channels, start.source)
    data = load_images(args, process) if latents is None else load_latents(args, process, latents)
    dataset = data.dataset
    check_same_everywhere(dataset, args.data_path)
    config = ModelConfig(args.model, data.input_size, data.channels, args.num_classes, learn_sigma=True)
    if start.source:
        config = replace(config, learn_sigma=found.learn_sigma)
        if found != config:
            raise UsageError(f"checkpoint {start.source} holds {found}; the arguments describe {config}")
    lines = [*start.lines, *(f"Warning: {note}" for note in dataset.notes)]
    if from_latents := [as_typed(name, value) for name, value in supplied.items() if getattr(args, name) == value]:
        lines.append(f"From the latents: {', '.join(from_latents)}")
    lines += check_classes(dataset.class_names, args, start)
    if args.loss_weight and args.prediction == "velocity":
        lines.append(f"Warning: --loss-weight {args.loss_weight} has no effect on --prediction velocity")
    transport = build_transport(args, args.combostoc_type, **method_settings(vars(args)))
    torch.manual_seed(distributed.seed_for(args.global_seed, "init"))
    model = config.build(grad_checkpointing=args.grad_checkpointing).to(process.device)
    ema = deepcopy(model).requires_grad_(False).eval()
    opt = build_optimizer(model, args.lr)
    if start.source:
        step = restore_state(start, model, ema, opt)
    else:
        step = 0
        lines += initialize_from(args.init_from, model, ema) if args.init_from else []
    books = Bookkeeping(
        process,
        dataset,
        max_bad_steps=args.max_bad_steps,
        saved=start.saved.get("progress", {}),
        source=start.source,
    )
    monitor = Monitor(args, process, data) if args.eval_every else None
    check_readable(books.unreadable.values(), len(dataset), args.max_bad_images)
    seen, warnings = images_seen(start, step, dataset, args)
    lines += warnings
    start.saved.clear()
    distributed.check_agreement(step, "the step to continue from")
    order = BatchOrder(
        len(dataset),
        args.global_batch_size,
        process.rank,
        process.world_size,
        args.global_seed,
        step,
        seen,
        flip=args.flip,
    )
    total_steps = max(order.last_step(args.epochs), 0)
    total_steps = min(total_steps, args.max_steps or total_steps)
    if step > total_steps:
        raise UsageError(
            f"checkpoint {start.source} is at step {step}, beyond the {total_steps} of --epochs and --max-steps"
        )

    lines += monitor.prepare() if monitor is not None else []

    # From here on files are written.
    with Experiment(args, process) as experiment:
        distributed.from_main(lambda: experiment.open(args, step, start.source, start.seen))
        log = experiment.logger.info
        log(distributed.describe(process, args.precision))
        for line in lines:
            log(line)
        log(f"Experiment folder {experiment.folder}")
        log(f"{args.model}, {args.combostoc_type}: {sum(p.numel() for p in model.parameters()):,} parameters")
        if args.compile:
            log("Compiling: the first step takes a minute or so")
        log(f"{len(dataset):,} images in {len(dataset.class_names)} classes, {order.steps_per_epoch} steps an epoch")
        begun = f"Continuing {start.source} from step {step} to {total_steps}"
        log(begun if start.source else f"Training for {total_steps} steps")
        if args.wandb and process.is_main:
            names = wandb_utils.required("ENTITY"), experiment.folder.name, wandb_utils.required("PROJECT")
            wandb_utils.initialize(args, *names, wandb_utils.run_id(experiment.folder, is_new=not start.source))
        run = Run(args, process, experiment, books, data, config, transport, model, ema, opt, monitor)
        with signals.StopRequest() as request:
            signum = run.train(order, step, total_steps, request)
        if args.wandb and process.is_main:
            wandb_utils.finish()
    distributed.cleanup()
    if signum:
        sys.exit(128 + signum)


@dataclass
class Run:
    """A run that has been made ready."""

    args: argparse.Namespace
    process: distributed.Process
    experiment: Experiment
    books: Bookkeeping
    data: Data
    config: ModelConfig
    transport: Transport
    model: SiT
    ema: SiT
    opt: torch.optim.Optimizer
    monitor: Monitor | None

    def train(self, order: BatchOrder, step: int, total_steps: int, request: signals.StopRequest) -> int:
        """Train from one step to another, or until a signal asks to stop, and save.

        Returns:
            The signal's number, or 0.

        Raises:
            DataError: loss or gradients were not finite for too long, or too many images cannot be read.
        """
        args, process, log = self.args, self.process, self.experiment.logger.info
        wrapped: nn.Module = self.model.train()
        if args.compile:
            self.model.compile_blocks()
        if process.world_size > 1:
            device_ids = [process.local_rank] if process.device.type == "cuda" else None
            wrapped = DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)
            self.settle(wrapped)
        on_terminal = process.is_main and sys.stderr.isatty()  # elsewhere the log lines tell
        bar = progress.bar(initial=step, total=total_steps, desc="training", disable=not on_terminal)
        signum, too_many = 0, False
        if due(args.eval_every, step) and step and not self.experiment.has_evaluation(step):
            self.evaluate(step, request)
        loading = load_batches(self.data.dataset, order, args.num_workers, process.device, self.books.found)
        with loading as loaded, bar, logging_redirect_tqdm([self.experiment.logger]):
            batches = feed(loaded, self.data.to_latents, process.device)
            self.books.window.start_clock()  # making ready takes time, too: an evaluation's reference does
            while step < total_steps and not (signum or too_many):
                torch.manual_seed(distributed.seed_for(args.global_seed, "step", step, process.rank))
                x1, y = next(batches)
                result = training_step(
                    wrapped,
                    self.ema,
                    self.opt,
                    self.transport,
                    x1,
                    y,
                    ema_decay=args.ema_decay,
                    precision_name=args.precision,
                    grad_accum=args.grad_accum,
                    max_grad_norm=args.max_grad_norm,
                )
                step += 1
                bar.update()
                self.books.add(result)
                signum, diverged, unreadable = self.books.agree(request.signum)
                if diverged:
                    raise DataError(
                        f"loss or gradients were not finite in {args.max_bad_steps} steps in a row (--max-bad-steps), "
                        f"up to step {step}; {self.experiment.what_remains()}"
                    )
                for reason in unreadable.values():
                    log(f"Warning: {reason}; the next one takes its place")
                total = len(self.data.dataset)
                allowed = allowed_bad_images(total, args.max_bad_images)
                too_many = bool(unreadable) and len(self.books.unreadable) > allowed

                if due(args.log_every, step):
                    self.log_row(step, order.images(step - 1) // order.length)
                if due(args.sample_every, step) and process.is_main and self.data.autoencoder is not None:
                    self.draw_preview(step)
                # Last, so that a run that is continued from here has all of the above behind it.
                is_end = bool(signum) or too_many or step == total_steps
                is_evaluated = due(args.eval_every, step)
                rolling = due(args.reckpt_every, step) or is_end or is_evaluated
                kept = due(args.ckpt_every, step)
                kept |= args.ckpt_format == "safetensors" and step == total_steps
                if rolling or kept:
                    self.save(step, order.images(step), rolling=rolling, kept=kept, is_end=is_end)
                self.experiment.saver.check()
                if is_evaluated and not (signum or too_many):  # or when the run continues from here
                    self.evaluate(step, request)
        self.experiment.saver.wait()
        distributed.barrier()  # nobody leaves before all is written: torchrun would end the others
        if too_many:
            check_readable(self.books.unreadable.values(), total, args.max_bad_images)
        log(f"Stopped by {signals.name(signum)} at step {step}; the same command continues" if signum else "Done")
        return signum

    def settle(self, wrapped: nn.Module) -> None:
        """One backward pass for nothing.

        DistributedDataParallel arranges its buckets anew after the first, and with three processes or more the order
        in which gradients are summed depends on that: the first step after a restart would be rounded otherwise.
        """
        config, device = self.config, self.process.device
        n = self.args.global_batch_size // (self.process.world_size * self.args.grad_accum)
        x1 = torch.zeros(n, config.in_channels, config.input_size, config.input_size, device=device)
        y = torch.zeros(n, dtype=torch.int64, device=device)
        settings = {"precision_name": self.args.precision, "grad_accum": 1}
        compute_gradients(wrapped, self.opt, self.transport, x1, y, **settings)
        self.opt.zero_grad(set_to_none=True)

    def log_row(self, step: int, epoch: int) -> None:
        loss, rate = self.books.window.close()
        bad_steps = int(self.books.bad_steps.counts[1])
        row = {"step": step, "epoch": epoch, "loss": loss, "bad_steps": bad_steps}
        speed = {"steps_per_sec": round(rate, 3), "images_per_sec": round(rate * self.args.global_batch_size, 1)}
        self.experiment.log_metrics(row, **speed)
        if self.args.wandb and self.process.is_main:
            wandb_utils.log(row | speed, step=step)

    def save(self, step: int, seen: int, *, rolling: bool, kept: bool, is_end: bool) -> None:
        """Save the state after a step; not in the middle of bad steps, which may have begun with a last good one."""
        dataset = self.data.dataset
        data = {"images": len(dataset), "sha256": dataset.digest}
        progress = self.books.state() | {"images_seen": seen, "data": data}
        if progress["bad_steps"][0] and not is_end:
            self.experiment.logger.info(f"Not saved at step {step}, which was a bad one")
        elif self.process.is_main:
            modules = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "opt": self.opt.state_dict()}
            about = {"args": plain(self.args), "class_names": dataset.class_names, "progress": progress}
            content = {**modules, "step": step, **about}
            self.experiment.save(content, rolling=rolling, kept=kept, kept_format=self.args.ckpt_format)

    def draw_preview(self, step: int) -> None:
        """A grid of samples of the averaged weights by the default ODE, from the same noise every time.

        What cannot be sampled is a warning: training may mend it.
        """
        config, class_names, autoencoder = self.config, self.data.dataset.class_names, self.data.autoencoder
        assert autoencoder is not None
        device, path = self.process.device, self.experiment.picture(step)
        noise = ImageNoise(self.args.global_seed, range(PREVIEW_IMAGES))
        z = noise.randn((config.in_channels, config.input_size, config.input_size), device)
        spread = [k * len(class_names) // PREVIEW_IMAGES for k in range(PREVIEW_IMAGES)]  # ImageNet's thousand
        labels = spread if len(class_names) > PREVIEW_IMAGES else [k % len(class_names) for k in range(PREVIEW_IMAGES)]
        y = torch.tensor(labels, device=device)
        model = guided(self.ema, self.args.cfg_scale, precision_name=self.args.precision)
        try:
            pixels = to_uint8(autoencoder.decode(Sampler(self.transport).sample_ode()(z, model, y=y)[-1]))
        except FloatingPointError as error:
            self.experiment.logger.info(f"Warning: no sample picture at step {step}: {error}")
            return
        picture = grid(pixels, [class_names[k] for k in labels], columns_for(labels))
        save_image(picture, path)
        self.experiment.logger.info(f"Saved {path}")
        if self.args.wandb:
            wandb_utils.log_image(np.asarray(picture), step=step)

    def evaluate(self, step: int, request: signals.StopRequest) -> None:
        """Numbers of the averaged weights, in log.txt, evaluations.csv and Weights & Biases.

        A signal ends it without numbers; the run that continues begins with it. Samples that are not finite are a
        warning in place of numbers.
        """
        assert self.monitor is not None
        start_time = time.monotonic()
        stop = lambda: bool(distributed.greatest([request.signum])[0])  # noqa: E731
        try:
            results = self.monitor.evaluate(self.ema, self.transport, stop)
        except FloatingPointError as error:  # in all processes
            self.experiment.logger.info(f"Warning: no evaluation at step {step}: {error}")
            results = {}
        seconds = time.monotonic() - start_time
        self.books.window.pause(seconds)
        if results:
            self.experiment.log_evaluation(self.monitor.about(step) | results, seconds)
            if self.args.wandb:
                names = {report_name(k, self.args.eval_features): v for k, v in results.items()}
                wandb_utils.log(names, step=step)


def due(every: int, step: int) -> bool:
    """Whether what happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0


if __name__ == "__main__":
    run_program(main)
