"""What a run begins from: nothing, weights, any checkpoint, or the newest of its own experiment."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import checkpoint
import distributed
import download
from errors import DataError, UsageError
from experiment import folder_for, newest_valid
from models import SiT
from train_utils import load_weights, typed_arguments

# What a checkpoint restores unless it is typed on the command line: the method, not paths, intervals and lengths.
RESTORED = (
    *("model", "image_size", "num_classes", "vae", "combostoc_type"),
    *("path_type", "prediction", "loss_weight", "train_eps", "sample_eps"),
    *("global_batch_size", "global_seed", "lr", "ema_decay", "max_grad_norm", "grad_accum", "precision"),
)


class Start(NamedTuple):
    """What to continue: a checkpoint ({} for none), where it came from, and lines to log."""

    saved: dict[str, Any]
    source: str
    lines: list[str]


def find_start(args: argparse.Namespace, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Start:
    """The experiment's own newest checkpoint if there is one, else --ckpt, else nothing.

    `args` takes over the checkpoint's configuration; a typed argument wins.

    Raises:
        UsageError: another model was typed than the checkpoint holds.
        DataError: a checkpoint cannot be read.
    """
    typed = typed_arguments(parser, argv)
    own, lines = newest_own(args)
    if args.ckpt and own is None:
        source = args.ckpt
        saved = checkpoint.load(download.locate(source), verify=distributed.is_main())
        restored = restore_arguments(args, parser, typed, saved, source)
        own, lines = newest_own(args)  # the model, and so the folder, may be the checkpoint's
        if own is None:
            return Start(saved, source, restored)
    if own is None:
        return Start({}, "", [])
    saved = checkpoint.load(own, verify=False)  # newest_own has
    lines += restore_arguments(args, parser, typed, saved, str(own))
    for flag in ("ckpt", "init_from"):
        if given := getattr(args, flag):
            name = flag.replace("_", "-")
            lines.append(f"Warning: this experiment has begun: continuing {own}, not --{name} {given}")
    return Start(saved, str(own), lines)


def newest_own(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The experiment's checkpoint that all processes continue from, which the first one has looked for and verified."""
    return distributed.from_main(lambda: newest_valid(folder_for(args)))


def restore_arguments(
    args: argparse.Namespace, parser: argparse.ArgumentParser, typed: set[str], saved: dict[str, Any], source: str
) -> list[str]:
    """Take over the training configuration of a checkpoint; a typed argument wins. Returns lines that say so."""
    trained = checkpoint.training_args(saved)
    check_values(trained, parser, source)
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


def check_values(trained: dict[str, Any], parser: argparse.ArgumentParser, source: str) -> None:
    """
    Raises:
        DataError: a value is none that the command line would take.
    """
    for action in parser._actions:
        value = trained.get(action.dest)
        if action.dest not in RESTORED or value is None:
            continue
        try:
            convert = action.type if callable(action.type) else str
            is_valid = convert(str(value)) == value and (action.choices is None or value in action.choices)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            is_valid = False
        if not is_valid:
            raise DataError(
                f"checkpoint {source} was trained with {action.option_strings[0]} {value!r}, which is invalid"
            )


def check_classes(class_names: list[str], args: argparse.Namespace, start: Start) -> list[str]:
    """Classes of the data against those of the model and of the checkpoint; returns warnings.

    Raises:
        UsageError: they do not fit.
    """
    if len(class_names) > args.num_classes:
        raise UsageError(f"--num-classes {args.num_classes} is less than the data's {len(class_names)} classes")
    trained = start.saved.get("class_names", class_names)
    if trained != class_names:
        raise UsageError(
            f"checkpoint {start.source} was trained on {len(trained)} classes, {trained[0]} ...; "
            f"--data-path {args.data_path} has {len(class_names)}, {class_names[0]} ..."
        )
    if len(class_names) == args.num_classes:
        return []
    return [f"Warning: the data have {len(class_names)} of --num-classes {args.num_classes}; the others stay untrained"]


# ---- state ---------------------------------------------------------------------------------------------------------


def restore_state(start: Start, model: SiT, ema: SiT, opt: torch.optim.Optimizer) -> int:
    """Load model, EMA and optimiser from a checkpoint, or what of them it has, and return its step.

    Raises:
        DataError: something does not fit the model.
    """
    saved, source = start.saved, start.source
    load_weights(model, checkpoint.weights(saved, source, prefer="model"), source)
    load_weights(ema, checkpoint.weights(saved, source), source)
    if "opt" in saved:
        settings = {k: v for k, v in opt.state_dict()["param_groups"][0].items() if k != "params"}  # the run's own
        try:
            groups = [group | settings for group in saved["opt"]["param_groups"]]
            state = checkpoint.to_host(saved["opt"]["state"])  # nothing depends on the file from here on
            opt.load_state_dict({"state": state, "param_groups": groups})
            check_moments(opt)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(f"checkpoint {source}: its optimiser state does not fit: {error}") from None
    return checkpoint.step(saved)


def check_moments(opt: torch.optim.Optimizer) -> None:
    """AdamW itself takes moments of any shape, and reads beyond their end.

    Raises:
        ValueError: they are not of the parameters' shapes.
    """
    for p, state in opt.state.items():
        if state.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"it holds {', '.join(map(str, state))}")
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != p.shape or state[name].dtype != p.dtype:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)} for {tuple(p.shape)}")
        if state["step"].numel() != 1 or not state["step"].is_floating_point():
            raise ValueError(f"step {state['step']}")


def initialize_from(source: str, model: SiT, ema: SiT) -> list[str]:
    """Copy the weights of a file that fit into a fresh model and its average. Returns lines that name all others.

    Raises:
        DataError: the file cannot be read, or nothing in it fits.
    """
    state = checkpoint.weights(checkpoint.load(download.locate(source)), source)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise DataError(f"--init-from {source}: not one of its {len(state)} tensors fits the model")
    model.load_state_dict(fitting, strict=False)
    ema.load_state_dict(model.state_dict())

    def reason(key: str) -> str:
        if key not in state:
            return "is not in the file: initialised"
        if key not in own:
            return "is not in the model: left out"
        return f"is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model: initialised"

    others = [k for k in [*own, *(k for k in state if k not in own)] if k not in fitting]
    line = f"--init-from {source}: {len(fitting)} of the model's {len(own)} tensors taken"
    return [line, *(f"Warning: {key} {reason(key)}" for key in others)]
