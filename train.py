"""Train SiT or ComboStoc.

    python train.py --data-path digits --vae none --image-size 8 --num-classes 10 --model ComboStoc-XS/2 \\
        --global-batch-size 128 --lr 4e-3 --warmup-steps 50 --lr-decay 200 --ema-decay 0.99 --max-steps 600
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --max-steps 800000                   # the paper, on a node
    torchrun --nproc_per_node=8 train.py --data-path FOLDER --max-steps 800000 --model SiT-XL/2  # the baseline

FOLDER holds one sub-folder a class, or a dataset.json with labels (a .zip of it will do), or the latents that
extract_latents.py made of such a folder. The experiment goes to RESULTS_DIR/<model>-<exp>: log.txt, metrics.csv,
args.json, ckpt.pt (rolling), checkpoints/<step>.pt, samples/<step>.png, evaluations.csv (with --eval-every). The same
command again continues from ckpt.pt; --ckpt FILE continues any checkpoint with its training configuration. Data order
and noise are functions of the seed and the step, so that a continued run is the run it would have been.
"""

from runtime.errors import DataError, UsageError, begin, run_program

if __name__ == "__main__":
    begin()

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

import kinds
import wandb_utils
from data import center_crop_arr as center_crop_arr  # SiT has it here
from data.feed import Data, feed, load_batches
from data.order import BatchOrder
from data.sets import check_same_everywhere, class_counts
from data.skipping import allowed_bad_images, check_readable
from runtime import distributed, precision, progress, signals
from runtime.command_line import with_values
from train_utils import build_transport, read_method, typed_arguments
from training import resume
from training.arguments import make_parser, resolve_arguments, without_effect
from training.bookkeeping import Bookkeeping
from training.experiment import Experiment, plain
from training.monitor import report_evaluation
from training.preview import preview
from training.step import build_optimizer, ema_decay, ema_lines, learning_rate, settle, training_step
from training.step import update_ema as update_ema  # SiT has it here


def main(argv: Sequence[str] | None = None) -> None:
    # ---- arguments: typed, brought by the data, a checkpoint's, and defaults of the kind of data ----

    """Train a model as the command line says: arguments, data, model, folder, the loop of steps, the end.

    Raises:
        UsageError: arguments that cannot work.
        DataError: a file that cannot be used, or training has diverged.
    """
    parser = make_parser(__doc__)
    args = parser.parse_args(argv)
    typed = typed_arguments(parser, argv)
    process = distributed.setup(distributed.TIMEOUT, args.device)
    kind = kinds.of_data(args.data_path)
    kind.check_path(args.data_path)  # before a checkpoint or an autoencoder is fetched
    supplied = kind.supply(args, typed)
    args = with_values(args, supplied)
    args, start = resume.find_start(args, parser, typed)
    args = resolve_arguments(args, process.world_size, kind)
    if args.wandb:
        distributed.from_main(wandb_utils.check_login)
    precision.setup(args.precision)
    found = resume.find_model(start, args)

    # ---- data ----

    data = kind.load_data(args, process, found, start.saved, start.source)
    args = with_values(args, data.settings)
    dataset = data.dataset
    check_same_everywhere(dataset, args.data_path)
    config = kind.config_for(args.model, data.input_shape, args.num_classes)
    config = resume.check_model(config, found, start.source)
    lines = [*start.lines, *data.lines, *(f"Warning: {note}" for note in dataset.notes)]
    if from_latents := [resume.as_typed(k, v) for k, v in supplied.items() if getattr(args, k) == v]:
        lines.append(f"From the latents: {', '.join(from_latents)}")
    lines += without_effect(args, typed, kind)
    lines += resume.check_classes(dataset.class_names, args, start)

    # ---- transport, model, moving average, optimiser ----

    transport = build_transport(read_method(vars(args)), data.attributes)
    torch.manual_seed(distributed.seed_for(args.global_seed, "init"))
    model = config.build(grad_checkpointing=args.grad_checkpointing).to(process.device)
    ema = deepcopy(model).requires_grad_(False).eval()
    opt = build_optimizer(model, args.lr, args.betas, args.weight_decay)
    state: dict[str, nn.Module | torch.optim.Optimizer] = {"model": model, "ema": ema, "opt": opt}

    # ---- where the run is: at its beginning, or where the checkpoint was ----

    step = 0
    if start.source:
        step, restored = resume.restore_state(start, model, ema, opt)
        lines += restored
    elif args.init_from:
        lines += resume.initialize_from(args.init_from, model, ema)
    saved = start.saved.get("progress", {})
    books = Bookkeeping(process, dataset, max_bad_steps=args.max_bad_steps, saved=saved, source=start.source)
    monitor = kind.evaluator(args, process, data) if args.eval_every else None
    check_readable(books.unreadable.values(), len(dataset), args.max_bad_images)
    seen, warnings = resume.images_seen(start, step, dataset, args, kind)
    lines += warnings
    start.saved.clear()
    distributed.check_agreement(step, "the step to continue from")

    # ---- how long it is ----

    order = BatchOrder(
        length=len(dataset),
        global_batch_size=args.global_batch_size,
        rank=process.rank,
        world_size=process.world_size,
        seed=args.global_seed,
        start_step=step,
        start=seen,
        flip=args.flip,
    )
    total_steps = max(order.last_step(args.epochs), 0)
    if args.max_steps and args.max_steps > total_steps:
        lines.append(f"Warning: --epochs {args.epochs} ends at step {total_steps}, before --max-steps {args.max_steps}")
    total_steps = min(total_steps, args.max_steps or total_steps)
    if step > total_steps:
        raise UsageError(
            f"checkpoint {start.source} is at step {step}, beyond the {total_steps} of --epochs and --max-steps"
        )
    if args.warmup_steps + args.lr_decay > total_steps:
        raise UsageError(
            f"--warmup-steps {args.warmup_steps} and --lr-decay {args.lr_decay} are more than "
            f"the run's {total_steps} steps"
        )
    if not (start.source or args.init_from):
        lines += ema_lines(total_steps, decay=args.ema_decay, warmup=args.ema_warmup)
    if monitor is not None:
        lines += monitor.prepare()

    # ---- the folder: from here on files are written ----

    with Experiment(args, process, kind) as experiment, signals.StopRequest() as request:
        distributed.from_main(lambda: experiment.open(args, step, start.source, start.seen))
        log = experiment.logger.info
        log(distributed.describe(process, args.precision))
        for line in lines:
            log(line)
        log(f"Experiment folder {experiment.folder}")
        log(f"{args.model}, {args.combostoc_type}: {sum(p.numel() for p in model.parameters()):,} parameters")
        if args.compile:
            log("Compiling: the first step takes a minute or so")
        log(f"{len(dataset):,} {kind.THINGS} in {len(dataset.class_names)} classes, {order.pace}")
        log(f"Classes: {class_counts(dataset)}")
        if start.source:
            log(f"Continuing {start.source} from step {step} to {total_steps}")
        else:
            log(f"Training for {total_steps} steps")
        if args.wandb and process.is_main:
            experiment.start_wandb(args, is_new=not start.source)

        # ---- workers, compilation, processes ----

        on_terminal = process.is_main and progress.on_terminal()  # elsewhere the log lines tell
        with (
            load_batches(dataset, order, args.num_workers, process.device, books.found) as loaded,
            progress.bar(initial=step, total=total_steps, desc="training", disable=not on_terminal) as bar,
            logging_redirect_tqdm([experiment.logger]),
        ):
            wrapped: nn.Module = model.train()
            if args.compile:
                model.compile_blocks()
            if process.world_size > 1:
                device_ids = [process.local_rank] if process.device.type == "cuda" else None
                wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
                n = args.global_batch_size // (process.world_size * args.grad_accum)
                x1 = torch.zeros(n, *data.input_shape, device=process.device)
                settle(wrapped, opt, transport, x1, args.precision)
            batches = feed(loaded, data.to_latents, process.device)
            books.window.start_clock()  # making ready takes time, too: an evaluation's reference does
            saved_step, signum, stopped = -1, 0, False

            while not stopped:
                # ---- evaluate: a run that continues begins with what a signal has ended ----

                if monitor is not None and due(args.eval_every, step) and not experiment.has_evaluation(step):
                    with books.window.paused():
                        signum = report_evaluation(monitor, args, step, ema, transport, request, experiment)
                    if signum and saved_step != step:
                        save(experiment, args, data, state, books, order, step, rolling=True, kept=False, is_end=True)
                if signum or step == total_steps:
                    break

                # ---- train ----

                torch.manual_seed(distributed.seed_for(args.global_seed, "step", step, process.rank))
                x1, y = next(batches)
                result = training_step(
                    wrapped,
                    ema,
                    opt,
                    transport,
                    x1,
                    y,
                    ema_decay=ema_decay(step, decay=args.ema_decay, warmup=args.ema_warmup),
                    lr=learning_rate(
                        step, total_steps, peak=args.lr, warmup_steps=args.warmup_steps, decay_steps=args.lr_decay
                    ),
                    precision_name=args.precision,
                    grad_accum=args.grad_accum,
                    max_grad_norm=args.max_grad_norm,
                )
                step += 1
                bar.update()

                # ---- agree: what has happened in any of the processes ----

                books.add(result)
                signum, diverged, unreadable = books.agree(request.signum)
                if diverged:
                    raise DataError(
                        f"loss or gradients were not finite in {args.max_bad_steps} steps in a row (--max-bad-steps), "
                        f"up to step {step}; {experiment.what_remains()}"
                    )
                for reason in unreadable.values():
                    log(f"Warning: {reason}; the next one takes its place")
                allowed = allowed_bad_images(len(dataset), args.max_bad_images)
                stopped = bool(signum) or (bool(unreadable) and len(books.unreadable) > allowed)
                is_end = stopped or step == total_steps

                # ---- log ----

                if due(args.log_every, step):
                    loss, rate = books.window.close()
                    bad_steps = int(books.bad_steps.counts[1])
                    row = {"step": step, "epoch": order.images(step - 1) // order.length, "loss": loss}
                    experiment.log_metrics(row | {"bad_steps": bad_steps}, rate, rate * args.global_batch_size)

                # ---- draw ----

                if due(args.sample_every, step) and process.is_main and data.autoencoder is not None:
                    try:
                        experiment.save_picture(preview(args, kind, ema, transport, data, process.device), step)
                    except FloatingPointError as error:  # training may mend it
                        log(f"Warning: no sample picture at step {step}: {error}")

                # ---- save: a run that is continued from here has the step's line and picture behind it ----

                rolling = due(args.reckpt_every, step) or is_end or due(args.eval_every, step)
                kept = due(args.ckpt_every, step) or (args.ckpt_format == "safetensors" and step == total_steps)
                if (rolling or kept) and save(
                    experiment, args, data, state, books, order, step, rolling=rolling, kept=kept, is_end=is_end
                ):
                    saved_step = step
                experiment.saver.check()

        # ---- end ----

        experiment.saver.wait()
        distributed.barrier()  # nobody leaves before all is written: torchrun would end the others
        check_readable(books.unreadable.values(), len(dataset), args.max_bad_images)
        log(f"Stopped by {signals.name(signum)} at step {step}; the same command continues" if signum else "Done")
    if experiment.on_wandb:
        wandb_utils.finish()
    distributed.cleanup()
    if signum:
        sys.exit(128 + signum)


def save(
    experiment: Experiment,
    args: argparse.Namespace,
    data: Data,
    state: dict[str, nn.Module | torch.optim.Optimizer],
    books: Bookkeeping,
    order: BatchOrder,
    step: int,
    *,
    rolling: bool,
    kept: bool,
    is_end: bool,
) -> bool:
    """Write a checkpoint, unless the step was a bad one and more follow. All processes call it.

    Args:
        state: model, average and optimiser by their names in the checkpoint.
        rolling, kept: see `Experiment.save`.
        is_end: whether no further step follows; a bad step is then saved, too.

    Returns:
        Whether it is written.
    """
    progress_now = books.state() | {"images_seen": order.images(step), "data": resume.fingerprint(data.dataset)}
    if progress_now["bad_steps"][0] and not is_end:  # they may have begun with a last good one
        experiment.logger.info(f"Not saved at step {step}, which was a bad one")
        return False
    if experiment.is_main:
        content: dict[str, Any] = {name: part.state_dict() for name, part in state.items()}
        content |= {"step": step, "args": plain(args), "class_names": data.dataset.class_names}
        content |= {"progress": progress_now, **data.about}
        experiment.save(content, rolling=rolling, kept=kept, kept_format=args.ckpt_format)
    return True


def due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps happens at this one; 0 is never."""
    return step > 0 and every > 0 and step % every == 0


if __name__ == "__main__":
    run_program(main)
