"""Checkpoints: written whole or not at all, verified, and read without running code from them.

A checkpoint is a dict {"model", "ema", "opt", "step", "args", "class_names", "progress"}. The predecessors' files have
no step and hold their arguments as an argparse.Namespace; EMA-only files hold nothing but tensors. A .safetensors file
that `export` wrote holds the averaged weights, and their configuration in its header.

A .pt file is a zip archive with a CRC-32 of each of its records; `export` adds a SHA-256. Both are compared in reading.
"""

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from runtime.errors import DataError, first_line
from runtime.files import is_safetensors, other_than_weights, replacing

StateDict = dict[str, torch.Tensor]
EXPORTED = ("step", "args", "class_names", "layout")
READERS = 4  # threads that compare checksums
SUFFIXES = (".pt", ".safetensors", ".pth", ".ckpt", ".bin")

# Others' files hold a model under keys and prefixes of their programs. Where this tensor is, a model is.
MARKER = "x_embedder.proj.weight"
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # of torch, anywhere in a key
AVERAGE = re.compile(r"(^|[._])(ema\d*|averaged?|avg|swa|shadow)[._]", re.IGNORECASE)  # in keys and prefix
MAX_DEPTH = 4  # of dicts in dicts


# ---- writing -------------------------------------------------------------------------------------------------------


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; the file at `path` is complete at any moment.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
    """
    with replacing(path) as beside, open(beside, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch hides the reason, a full disk for instance
            reason = error.__context__
            if isinstance(reason, OSError):
                raise reason from None
            raise


def export(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write the averaged weights as .safetensors; what there is of step, arguments, class names, layout is in the
    header.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.contiguous() for name, tensor in checkpoint["ema"].items()}
    header = {name: json.dumps(checkpoint[name], default=str) for name in EXPORTED if name in checkpoint}
    data = to_bytes(tensors, {"format": "pt", **header, "sha256": digest(tensors, header)})
    with replacing(path) as beside:
        beside.write_bytes(data)


def digest(tensors: StateDict, header: dict[str, str]) -> str:
    """SHA-256 of names, shapes and bytes of tensors, and of a header."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def to_host(value: Any) -> Any:
    """A copy of all tensors in nested dicts and lists, in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: to_host(v) for k, v in value.items()}
    return [to_host(v) for v in value] if isinstance(value, list) else value


class Saver:
    """Writes checkpoints in a thread of its own: the run waits while its state is copied to host memory, not longer."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.job: Future[None] | None = None

    def submit(self, write: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]) -> None:
        """Copy the checkpoint and let `write` have the copy; waits if the one before is still being written."""
        self.wait()
        self.job = self.pool.submit(write, to_host(checkpoint))

    def check(self) -> None:
        """Raise what went wrong, if something did."""
        if self.job is not None and self.job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until all is written, and raise what went wrong."""
        job, self.job = self.job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        self.pool.shutdown()


# ---- reading -------------------------------------------------------------------------------------------------------


def load(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read a .pt or .safetensors file onto the CPU. Never unpickles code.

    Args:
        path: the file.
        verify: compare checksums, which reads all of it; else only what is used of the .pt file is read.

    Raises:
        DataError: the file is missing, truncated, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"checkpoint {path} is a folder; {file_in(path)}")
    if not path.is_file():
        raise DataError(f"checkpoint {path} does not exist")
    try:
        content = load_safetensors(path) if is_safetensors(path) else load_pickle(path, verify)
    except DataError:
        raise
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened
        reason = first_line(error)
        if what := other_than_weights(path):
            reason = f"it is {what}"
        elif "GLOBAL" in str(error) or "global" in str(error):
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            named = f" ({found[1]})" if found else ""
            reason = f"it holds Python objects{named}, which are not loaded; save its state dicts alone"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "its pickle is damaged"
        elif path.suffix == ".safetensors":
            reason = f"it is truncated or no .safetensors file ({reason})"
        elif not is_safetensors(path) and not zipfile.is_zipfile(path):
            reason = "it is truncated or no PyTorch checkpoint"
        raise DataError(f"checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise DataError(f"checkpoint {path} holds a {type(content).__name__}, not a dict of tensors")
    check_layout(content, path)
    return content


def file_in(folder: Path) -> str:
    """Which file of a folder is likely to be meant, as advice."""
    inside = [p for p in (folder / "ckpt.pt", folder / "model.safetensors") if p.is_file()]
    for pattern in ("checkpoints/*", "*"):
        inside += sorted((p for p in folder.glob(pattern) if p.suffix in SUFFIXES), reverse=True)
    return f"give a file in it, such as {inside[0]}" if inside else f"it holds no {' or '.join(SUFFIXES)}"


def load_pickle(path: Path, verify: bool) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip and verify:
        check_crc(path)
    mapped = is_zip and path.suffix != ".safetensors"  # by which torch would go
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with allowed, warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # about what a damaged pickle has in it
        # mapped, not read: eight processes that resume XL/2 would each hold 11 GB otherwise
        return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)


def check_crc(path: Path) -> None:
    """Compare the CRC-32 of every record of a .pt file; torch itself does not."""

    def read(share: int) -> None:
        with zipfile.ZipFile(path) as archive:  # one a thread: a ZipFile is not for several
            for record in archive.infolist()[share::READERS]:
                with archive.open(record) as file:
                    while file.read(1 << 20):
                        pass  # a record that was read to its end has been compared

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))


def load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no dict
        header = file.metadata() or {}
    ours = {name: header[name] for name in EXPORTED if name in header}
    if not ours:
        return tensors
    if digest(tensors, ours) != header.get("sha256"):
        raise DataError(f"checkpoint {path} is damaged: it has not the SHA-256 that its header tells")
    return {"ema": tensors} | {name: json.loads(value) for name, value in ours.items()}


def check_layout(content: dict[str, Any], path: Path) -> None:
    """
    Raises:
        DataError: a value of a training checkpoint is not of its kind.
    """

    def is_names(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)

    kinds: dict[str, Callable[[Any], bool]] = {
        "model": lambda v: isinstance(v, dict | str | None),  # the name, in others' files
        "ema": lambda v: isinstance(v, dict | None),
        "opt": lambda v: isinstance(v, dict) and isinstance(v.get("state"), dict),
        "step": lambda v: type(v) is int and is_count(v),
        "args": lambda v: isinstance(v, dict | argparse.Namespace),
        "class_names": is_names,
        "progress": lambda v: isinstance(v, dict),
        "layout": lambda v: isinstance(v, dict),  # of shapes, see data/shapes.py
    }
    if any(not isinstance(key, str) for key in content):
        raise DataError(f"checkpoint {path} is damaged: it has a key that is no name")
    if not {"model", "ema"} & content.keys():
        return  # weights alone
    for name, is_of_its_kind in kinds.items():
        if name in content and not is_of_its_kind(content[name]):
            raise DataError(f"checkpoint {path} is damaged: its {name!r} is not what it should be")


def weights(checkpoint: dict[str, Any], source: str, prefer: str = "ema") -> StateDict:
    """The EMA weights of a training checkpoint, or the file's only weights.

    Others' files are searched for a model, which may be in dicts in dicts (`state_dict`, `ema_state_dict`) and under
    the prefixes of wrappers (`module.`, `_orig_mod.`, `model.`, `ema_model.`); what is not under its prefix, another
    network's tensors for instance, is left out.

    Args:
        prefer: "ema", the average, or "model", what is trained; the other one is taken where there is just that.

    Raises:
        DataError: there are none, or several of a kind.
    """
    other = "model" if prefer == "ema" else "ema"
    own = [state for name in (prefer, other) if isinstance(state := checkpoint.get(name), dict) and state]
    is_ours = bool(own) and own[0] is checkpoint.get(prefer)
    found = list(models_in(own[0] if is_ours else checkpoint))
    averages, plain = (([f for f in found if bool(AVERAGE.search(f[0])) is average]) for average in (True, False))
    chosen = (averages or plain) if prefer == "ema" else (plain or averages)
    outermost = min((where.count(".") for where, _ in chosen), default=0)
    chosen = [(where, state) for where, state in chosen if where.count(".") == outermost]
    if len(chosen) > 1:
        names = ", ".join(where.rstrip(".") or "the outermost" for where, _ in chosen)
        raise DataError(f"checkpoint {source} holds several models ({names}): save one of them to a file of its own")
    state = chosen[0][1] if chosen else own[0] if own else checkpoint
    if not state or not all(type(k) is str and is_weight(v) for k, v in state.items()):
        names = ", ".join(map(str, list(checkpoint)[:8])) or "nothing"
        raise DataError(
            f"checkpoint {source} holds no model weights (no 'ema', no 'model', not a dict of tensors; "
            f"it holds {names})"
        )
    return state


def models_in(content: dict[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Each model in dicts of tensors: keys and prefix that lead to it, each with a dot behind, and its tensors."""
    tensors = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            plain = WRAPPERS.sub("", key)
            tensors[key if plain in content else plain] = value
    tensors = with_dots(tensors)
    prefixes = [key.removesuffix(MARKER) for key in tensors if f".{key}".endswith(f".{MARKER}")]
    parts: dict[str, StateDict] = {prefix: {} for prefix in prefixes}
    for key, value in tensors.items():
        if inside := [prefix for prefix in prefixes if key.startswith(prefix)]:
            prefix = max(inside, key=len)
            parts[prefix][key.removeprefix(prefix)] = value
    for prefix, state in parts.items():
        yield where + prefix, state
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and depth < MAX_DEPTH:
            yield from models_in(value, f"{where}{key}.", depth + 1)


def with_dots(tensors: StateDict) -> StateDict:
    """The same with the names that LDM's wrapper has taken the dots from, since buffers' names must not have any, put
    right: model_ema.x_embedderprojweight. The model it averages tells them, and has what was not trained."""
    first = next((key for key in tensors if f".{key}".endswith(f".{MARKER}")), "")
    *outer, _ = (prefix := first.removesuffix(MARKER)).split(".")
    model = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    starts = ["".join(outer[k:]) for k in range(len(outer) + 1)]
    names = {start + name.replace(".", ""): name for name in model for start in starts}
    averages: dict[str, StateDict] = {}
    for key, value in tensors.items():
        where, dot, flat = key.rpartition(".")
        if flat in names and AVERAGE.search(where + dot):
            averages.setdefault(where + dot, {})[names[flat]] = value
    for where, average in averages.items():
        if MARKER in average:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(where)}
            tensors |= under(where, model | average)
    return tensors


def under(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


def is_weight(value: Any) -> bool:
    """Whether it is a plain tensor of numbers that are all there, not one that is repeated without end."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def training_args(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The arguments a checkpoint was trained with, {} where it does not say."""
    args = checkpoint.get("args", {})
    return dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args) if isinstance(args, dict) else {}


def step(checkpoint: dict[str, Any]) -> int:
    """Training steps taken; from the optimiser's own count in the predecessors' files, 0 where nothing says."""
    if isinstance(checkpoint.get("step"), int):
        return checkpoint["step"]
    states = checkpoint.get("opt", {}).get("state", {}).values()
    steps = [float(s["step"]) for s in states if isinstance(s, dict) and is_count(s.get("step"))]
    return int(max(steps, default=0))


def is_count(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and is_weight(value):
        value = value.item()
    return type(value) in (int, float) and 0 <= value < 2**62
