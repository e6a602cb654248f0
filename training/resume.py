"""The start of a run: from nothing, from weights, from any checkpoint, or from the newest of its own experiment."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import download
import kinds
from data.order import steps_to_images
from data.sets import Items
from models import SiT
from runtime import checkpoint, distributed
from runtime.errors import DataError, UsageError
from runtime.state_dicts import is_weight
from runtime.values import whole
from sampling.kind import Kind
from train_utils import ModelConfig, load_weights, trained_with
from training.experiment import Stamps, folder_for, newest_valid, stamps

# What a checkpoint restores unless it is typed on the command line: the method, not paths, intervals and lengths.
RESTORED = (
    *("model", "image_size", "num_classes", "vae", "latent_stats", "channels", "flip", "combostoc_type"),
    *("times", "halfmixing", "blend", "compensation", "difficulty"),
    *("path_type", "prediction", "loss_weight", "train_eps", "sample_eps"),
    *("time_shift", "loss_clamp"),
    *("global_batch_size", "global_seed", "max_grad_norm", "grad_accum", "precision"),
    *("lr", "warmup_steps", "lr_decay", "betas", "weight_decay", "ema_decay", "ema_warmup"),
)


class Start(NamedTuple):
    """A checkpoint to continue ({} for none), its name, lines to log, and the folder's stamps when it was chosen."""

    saved: dict[str, Any]
    source: str
    lines: list[str]
    seen: Stamps


def find_start(
    args: argparse.Namespace, parser: argparse.ArgumentParser, typed: set[str]
) -> tuple[argparse.Namespace, Start]:
    """The start of a run: the experiment's own newest checkpoint if there is one, else --ckpt, else nothing.

    Args:
        args: parsed by `parser`.
        typed: names of those that were on the command line.

    Returns:
        The arguments with the checkpoint's configuration, but for those that were typed, and the start.

    Raises:
        UsageError: another model was typed than the checkpoint holds.
        DataError: a checkpoint cannot be read.
    """
    own, lines, seen = newest_own(args)
    if args.ckpt and own is None:
        source = args.ckpt
        saved = checkpoint.load(download.locate(source), verify=distributed.is_main())
        args, restored = restore_arguments(args, parser, typed, saved, source)
        own, lines, seen = newest_own(args)  # the model, and so the folder, may be the checkpoint's
        if own is None:
            return args, Start(saved, source, restored, seen)
    if own is None:
        return args, Start({}, "", [], seen)
    saved = checkpoint.load(own, verify=False)  # newest_own has
    if absent := [name for name in ("model", "ema", "opt") if not isinstance(saved.get(name), dict)]:
        names = " and no ".join(map(repr, absent))
        raise DataError(
            f"checkpoint {own} holds no {names}, so that this run cannot be continued as it was; --init-from {own} "
            "with a new --exp begins another from its weights"
        )
    args, restored = restore_arguments(args, parser, typed, saved, str(own))
    lines += restored
    for flag in ("ckpt", "init_from"):
        if given := getattr(args, flag):
            name = flag.replace("_", "-")
            lines.append(f"Warning: this experiment has begun: continuing {own}, not --{name} {given}")
    return args, Start(saved, str(own), lines, seen)


def newest_own(args: argparse.Namespace) -> tuple[Path | None, list[str], Stamps]:
    """The experiment's newest valid checkpoint, warnings, and the folder's stamps.

    The first process looks for it and verifies it; all processes get its answer.
    """

    def look() -> tuple[Path | None, list[str], Stamps]:
        seen = stamps(folder_for(args))
        return *newest_valid(folder_for(args)), seen

    return distributed.from_main(look)


def restore_arguments(
    args: argparse.Namespace, parser: argparse.ArgumentParser, typed: set[str], saved: dict[str, Any], source: str
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments with a checkpoint's training configuration, but for those that were typed, and lines that say so.

    Raises:
        UsageError: another model was typed than the checkpoint holds.
        DataError: the configuration cannot be.
    """
    trained = trained_with(saved)
    if "vae" not in trained and kinds.model_config(checkpoint.weights(saved, source), source).in_channels in (1, 3):
        trained["vae"] = "none"  # pixels; it would be fetched in vain
    check_values(trained, parser, source)
    values, restored, warnings = dict(vars(args)), [], []
    for name in RESTORED:
        if name not in trained or values[name] == trained[name]:
            continue
        given, model = values[name], values["model"]
        usual = kinds.of_model(model).usual_method(model, values["times"]).words() | {"latent_stats": "config"}
        if given is None and trained[name] == usual.get(name):
            continue  # as it would be without the checkpoint
        if name not in typed:
            values[name] = trained[name]
            restored.append(as_typed(name, trained[name]))
        elif name == "model":
            raise UsageError(f"--model {given}, but checkpoint {source} holds {trained[name]}")
        else:
            before = as_typed(name, trained[name]).removeprefix(f"--{name.replace('_', '-')} ")
            warnings.append(f"Warning: {as_typed(name, given)} instead of the checkpoint's {before}")
    lines = [f"From the checkpoint: {', '.join(restored)}", *warnings] if restored else warnings
    return argparse.Namespace(**values), lines


def as_typed(name: str, value: Any) -> str:
    """An argument as on the command line: --lr 0.001, --no-flip."""
    flag = name.replace("_", "-")
    if isinstance(value, list):
        return f"--{flag} {' '.join(map(str, value))}"
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def check_values(trained: dict[str, Any], parser: argparse.ArgumentParser, source: str) -> None:
    """Check the values a checkpoint was trained with, and mend them in place.

    A None that its argument cannot be is left out; a whole float becomes an int where the argument is one.

    Raises:
        DataError: the command line would not take a value.
    """
    for action in parser._actions:
        if action.dest not in RESTORED or action.dest not in trained:
            continue
        value = trained[action.dest]
        if value is None:
            if action.default is not None and action.dest != "loss_weight":
                del trained[action.dest]  # it does not say
            continue
        if isinstance(value, float) and type(action.default) is int and (count := whole(value)) is not None:
            value = trained[action.dest] = count
        try:
            convert = action.type if callable(action.type) else str
            is_valid = (action.nargs is None or (isinstance(value, list) and len(value) == action.nargs)) and all(
                convert(str(v)) == v and (action.choices is None or v in action.choices)
                for v in (value if isinstance(value, list) and action.nargs else [value])
            )
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            is_valid = False
        if isinstance(action, argparse.BooleanOptionalAction):
            is_valid = isinstance(value, bool)
        if not is_valid:
            raise DataError(
                f"checkpoint {source} was trained with {action.option_strings[0]} {value!r}, which is invalid"
            )


def find_model(start: Start, args: argparse.Namespace) -> ModelConfig | None:
    """The model in the checkpoint; None where there is no checkpoint.

    Raises:
        UsageError: the autoencoder does not fit it.
        DataError: the checkpoint holds no model.
    """
    if not start.source:
        return None
    state = checkpoint.weights(start.saved, start.source)
    found = kinds.model_config(state, start.source)
    kinds.of_state(state).check_start(found, args, start.source)
    return found


def check_model(config: ModelConfig, found: ModelConfig | None, source: str) -> ModelConfig:
    """The model of the arguments, with learn_sigma as in the checkpoint's.

    Raises:
        UsageError: the checkpoint's is another.
    """
    if found is None:
        return config
    config = replace(config, learn_sigma=found.learn_sigma)
    if found != config:
        raise UsageError(f"checkpoint {source} holds {found}; the arguments describe {config}")
    return config


def check_classes(class_names: list[str], args: argparse.Namespace, start: Start) -> list[str]:
    """Warnings that compare the classes of the data with those of the model and of the checkpoint.

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


def fingerprint(dataset: Items) -> dict[str, Any]:
    """The number of items and the digest of a set, by which a checkpoint tells it from others."""
    return {"images": len(dataset), "sha256": dataset.digest}


def images_seen(start: Start, step: int, dataset: Items, args: argparse.Namespace, kind: Kind) -> tuple[int, list[str]]:
    """The images that a continued run is past, as `BatchOrder` counts, and a warning where the data were others.

    Raises:
        DataError: the checkpoint's count cannot be.
    """
    progress, length = start.saved.get("progress", {}), len(dataset)
    if step == 0:
        return 0, []
    if "images_seen" not in progress:  # of an older version, or a predecessor's
        batch_size = checkpoint.training_args(start.saved).get("global_batch_size") or args.global_batch_size
        return steps_to_images(step, length, min(batch_size, length)), []
    seen, data = progress["images_seen"], progress.get("data")
    if not (
        (type(seen) is int and 0 <= seen < 2**62)
        and (isinstance(data, dict) and isinstance(data.get("sha256"), str))
        and (type(data.get("images")) is int and 0 < data["images"] < 2**62)
    ):
        counted = f"images_seen {seen!r:.40} of data {data!r:.100}"
        raise DataError(f"checkpoint {start.source}: its progress has {counted}, which cannot be continued")
    if data["sha256"] == dataset.digest:
        return seen, []
    return seen * length // data["images"], [
        f"Warning: the data have changed: {start.source} was trained on {data['images']:,} {kind.THINGS}, "
        f"--data-path {args.data_path} has {length:,} and another listing; its passes over the data count on"
    ]


# ---- state ---------------------------------------------------------------------------------------------------------


def restore_state(start: Start, model: SiT, ema: SiT, opt: torch.optim.Optimizer) -> tuple[int, list[str]]:
    """Load model, EMA and optimiser from a checkpoint.

    Returns:
        Its step, 0 for weights alone, and lines on what it lacks or has beside them.

    Raises:
        DataError: something does not fit the model.
    """
    saved, source = start.saved, start.source
    lines = load_weights(model, checkpoint.weights(saved, source, prefer="model"), source)
    load_weights(ema, checkpoint.weights(saved, source), source)
    lines += checkpoint.origin(saved, source)
    if "opt" not in saved:
        saved.pop("progress", None)
        counted = f", and the {step:,} steps it has taken are not counted" if (step := checkpoint.step(saved)) else ""
        return 0, [*lines, f"{source} holds no optimiser state ('opt'): its weights begin at step 0{counted}"]
    lines += checkpoint.origin(saved, source, prefer="model")
    if not saved["opt"]["state"] and checkpoint.step(saved):
        lines.append(f"{source} holds an optimiser without moments: they begin at zero")
    settings = {k: v for k, v in opt.state_dict()["param_groups"][0].items() if k != "params"}  # the run's own
    try:
        groups = [group | settings for group in saved["opt"]["param_groups"]]
        state = {k: checked_moments(moments) for k, moments in saved["opt"]["state"].items()}
        opt.load_state_dict({"state": state, "param_groups": groups})
        fit_moments(opt)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(
            f"checkpoint {source}: its optimiser state does not fit: {what} (--init-from takes its weights alone)"
        ) from None
    return checkpoint.step(saved), lines


def checked_moments(moments: dict[str, Any]) -> dict[str, torch.Tensor]:
    """AdamW's state of one parameter, with its step as a tensor, which older versions of torch keep as an int.

    Raises:
        ValueError: it is something else.
    """
    if set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
        raise ValueError(f"moments of {', '.join(map(str, moments))}")
    if (count := whole(moments["step"])) is None:
        raise ValueError(f"a step of {checkpoint.described(moments['step'])}")
    for name in ("exp_avg", "exp_avg_sq"):
        if not is_weight(moments[name]):
            raise ValueError(f"{name} of {checkpoint.described(moments[name])}")
    return moments | {"step": torch.tensor(float(count))}


def fit_moments(opt: torch.optim.Optimizer) -> None:
    """Copy moments from the file into the memory layout of their parameters, which the fused kernel takes for granted.

    Raises:
        ValueError: they are of other shapes, or not all there.
    """
    parameters = [p for p in opt.param_groups[0]["params"] if p.requires_grad]
    if opt.state and any(p not in opt.state for p in parameters):
        raise ValueError(f"it has moments of {len(opt.state)} of {len(parameters)} parameters")
    for p, moments in opt.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != p.shape:
                raise ValueError(f"{name} of shape {tuple(moments[name].shape)} for {tuple(p.shape)}")
            moments[name] = torch.empty_like(p).copy_(moments[name])
        moments["step"] = moments["step"].float().clone()


def initialize_from(source: str, model: SiT, ema: SiT) -> list[str]:
    """Copy the weights of a file that fit into a fresh model and its average. Returns lines that name all others.

    Raises:
        DataError: the file cannot be read, or nothing in it fits.
    """
    content = checkpoint.load(download.locate(source))
    state = checkpoint.weights(content, source)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape and is_weight(v)}
    if not fitting:
        raise DataError(f"--init-from {source}: not one of its {len(state)} tensors fits the model")
    model.load_state_dict(fitting, strict=False)
    ema.load_state_dict(model.state_dict())

    def reason(key: str) -> str:
        if key not in state:
            return "is not in the file: initialised"
        if key not in own:
            return "is not in the model: left out"
        if not is_weight(state[key]):
            return f"is {checkpoint.described(state[key])} in the file, no float weights: initialised"
        return f"is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model: initialised"

    others = [k for k in [*own, *(k for k in state if k not in own)] if k not in fitting]
    line = f"--init-from {source}: {len(fitting)} of the model's {len(own)} tensors taken"
    return [line, *checkpoint.origin(content, source), *(f"Warning: {key} {reason(key)}" for key in others)]
