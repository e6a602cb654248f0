"""Checkpoints: written whole or not at all, verified, and read without running code from them.

A checkpoint is a dict {"model", "ema", "opt", "step", "args", "class_names", "progress"}. Files of the official code
have no step and hold their arguments as an argparse.Namespace; EMA-only files hold nothing but tensors. A .safetensors
file that `export` wrote holds the averaged weights, and their configuration in its header.
A model in several files is read by its index, see `runtime.shards`.

A .pt file is a zip archive with a CRC-32 of each of its records; `export` adds a SHA-256. Both are compared in reading.
"""

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from runtime import shards
from runtime.errors import DataError, first_line
from runtime.files import is_safetensors, is_utf8, other_than_weights, replacing
from runtime.state_dicts import AVERAGE, EIGHT_BITS, StateDict, is_weight, models_in
from runtime.values import checked_values, described, whole

EXPORTED = ("step", "args", "class_names", "layout", "latent_scale")
READERS = 4  # threads that compare checksums
SUFFIXES = (".pt", ".safetensors", ".pth", ".ckpt", ".bin")

# NumPy's numbers, which hold no code, by the names that its first and second version pickle them under.
SCALAR = np.float64(0).__reduce__()[0]
SCALARS: list[Any] = [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
DTYPES: list[Any] = [np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]


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
    """Write the averaged weights as .safetensors, with step, arguments, class names and layout where they are known.

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
    """A thread that writes checkpoints: the run waits only while its state is copied to host memory."""

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
        """End the thread, after what it is writing."""
        self.pool.shutdown()


# ---- reading -------------------------------------------------------------------------------------------------------


def load(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read a .pt or .safetensors file, or all of a sharded one, onto the CPU. Never unpickles code.

    Values that are None, or an empty dict or list, are left out. A step becomes an int from any kind of whole number.

    Args:
        path: the file; of a model in several files, the index or their folder.
        verify: compare checksums, which reads the whole file; else a .pt file is read only as far as it is used.

    Raises:
        DataError: the file is missing, truncated, damaged, or holds anything but tensors and plain values.
    """
    path = find(Path(path))
    if not shards.is_index(path):
        shards.check_whole(path)
        return checked_values(load_file(path, verify), path)
    content: dict[str, Any] = {}
    for shard in shards.shards_of(path):
        content |= load_file(shard, verify)
    if absent := [name for name in shards.weight_map(path) if name not in content]:
        raise DataError(f"checkpoint {path} names {absent[0]}, which is in none of its files")
    return content


def load_file(path: Path, verify: bool) -> dict[Any, Any]:
    """The content of one file.

    Raises:
        DataError: see `load`.
    """
    try:
        content = load_safetensors(path) if is_safetensors(path) else load_pickle(path, verify)
    except DataError:
        raise
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened
        raise DataError(f"checkpoint {path} cannot be read: {why_not(error, path)}") from error
    if not isinstance(content, dict):
        raise DataError(f"checkpoint {path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def why_not(error: Exception, path: Path) -> str:
    """The reason that a file cannot be read, as far as it is known."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # after torch's advice
    if what := other_than_weights(path):
        return f"it is {what}"
    if found := re.search(r"GLOBAL ([\w.]+)", said):
        return f"it holds Python objects ({found[1]}), which are not loaded; save its state dicts alone"
    if found := re.search(r"Unsupported operand (\d+)", said):
        return f"its pickle has the operation {found[1]}, and only those of torch.save's own pickle_protocol are read"
    if isinstance(error, pickle.UnpicklingError) and said:
        return f"its pickle cannot be parsed ({said.splitlines()[0]})"
    if not is_safetensors(path) and path.suffix == ".safetensors":
        return f"it is truncated or no .safetensors file ({first_line(error)})"
    if not is_safetensors(path) and not zipfile.is_zipfile(path):
        return "it is truncated or no PyTorch checkpoint"
    return first_line(error)


def find(path: Path) -> Path:
    """The file to read: the path itself, or the index in a folder.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        if index := shards.index_in(path):
            return index
        raise DataError(f"checkpoint {path} is a folder; {file_in(path)}")
    if path.is_symlink() and not path.exists():
        raise DataError(f"checkpoint {path} is a link to {path.readlink()}, which does not exist")
    if not path.is_file():
        raise DataError(f"checkpoint {path} {'is neither a file nor a folder' if path.exists() else 'does not exist'}")
    return path


def files(path: Path) -> list[Path]:
    """All files that hold a checkpoint: the index and its shards, or the one file itself."""
    return [path, *shards.shards_of(path)] if shards.is_index(path) else [path]


def file_in(folder: Path) -> str:
    """Advice that names the file of a folder which is likely to be meant."""
    inside = [p for p in (folder / "ckpt.pt", folder / "model.safetensors") if p.is_file()]
    for pattern in ("checkpoints/*", "*"):
        inside += sorted((p for p in folder.glob(pattern) if p.suffix in SUFFIXES), reverse=True)
    return f"give a file in it, such as {inside[0]}" if inside else f"it holds no {' or '.join(SUFFIXES)}"


def load_pickle(path: Path, verify: bool) -> Any:
    """The content of a .pt file, mapped into memory where torch can do that."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip and verify:
        check_crc(path)
    mapped = is_zip and path.suffix != ".safetensors" and is_utf8(path)  # as torch wants them
    allowed = torch.serialization.safe_globals([argparse.Namespace, *SCALARS, *DTYPES])
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
    """The content of a .safetensors file.

    Raises:
        DataError: it has another SHA-256 than its header says.
    """
    tensors, header = read_safetensors(path)
    ours = {name: header[name] for name in EXPORTED if name in header}
    if not ours or "sha256" not in header:
        return dict(tensors)
    if digest(tensors, ours) != header["sha256"]:
        raise DataError(f"checkpoint {path} is damaged: it has not the SHA-256 that its header tells")
    return {"ema": tensors} | {name: json.loads(value) for name, value in ours.items()}


def read_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """The tensors of a .safetensors file, and the notes in its header."""
    if not is_utf8(path):  # as the library wants them
        from safetensors.torch import load as from_bytes

        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return from_bytes(data), header.get("__metadata__", {})
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 -- no dict


# ---- the weights in what was read ----------------------------------------------------------------------------------


class Found(NamedTuple):
    """Weights, the keys and prefix that lead to them, and whether these tell of an average."""

    state: StateDict
    where: str
    is_average: bool


def weights(checkpoint: dict[str, Any], source: str, prefer: str = "ema") -> StateDict:
    """The EMA weights of a training checkpoint, or the file's only weights; see `find_weights`."""
    return find_weights(checkpoint, source, prefer).state


def find_weights(checkpoint: dict[str, Any], source: str, prefer: str = "ema") -> Found:
    """The EMA weights of a training checkpoint, or the file's only weights.

    Files of other programs are searched for a model, which may be in dicts in dicts (`state_dict`, `ema_state_dict`)
    and under the prefixes of wrappers (`module.`, `_orig_mod.`, `model.`, `ema_model.`). Tensors that are not under its
    prefix, another network's for instance, are left out. Eight-bit floats become float32; tensors that are no weights,
    counters for instance, stay among the others as they are.

    Args:
        prefer: "ema", the averaged weights, or "model", the trained ones; the others are taken where there are no such.

    Raises:
        DataError: there are none, or several of a kind.
    """
    other = "model" if prefer == "ema" else "ema"
    own = [name for name in (prefer, other) if isinstance(state := checkpoint.get(name), dict) and state]
    is_ours = own[:1] == [prefer]
    found = list(models_in(checkpoint[prefer] if is_ours else checkpoint))
    averages, plain = (([f for f in found if bool(AVERAGE.search(f[0])) is average]) for average in (True, False))
    chosen = (averages or plain) if prefer == "ema" else (plain or averages)
    outermost = min((where.count(".") for where, _ in chosen), default=0)
    chosen = [(where, state) for where, state in chosen if where.count(".") == outermost]
    if len(chosen) > 1:
        names = ", ".join(where.rstrip(".") or "the outermost" for where, _ in chosen)
        raise DataError(f"checkpoint {source} holds several models ({names}): save one of them to a file of its own")
    if chosen:
        where = f"{prefer}." * is_ours + chosen[0][0]
        state = chosen[0][1]
    else:
        where = f"{own[0]}." if own else ""
        content = checkpoint[own[0]] if own else checkpoint
        state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if not any(map(is_weight, state.values())):
            held = ", ".join(f"{name} ({described(value)})" for name, value in list(content.items())[:8]) or "nothing"
            raise DataError(
                f"checkpoint {source} holds no model weights: {f'its {own[0]!r}' if own else 'it'} holds {held}"
            )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not is_weight(tensor):
            raise DataError(
                f"checkpoint {source} has {name} as {described(tensor)} on {tensor.device}, which is no plain tensor "
                "whose numbers are all there"
            )
    state = {name: tensor.float() if tensor.dtype in EIGHT_BITS else tensor for name, tensor in state.items()}
    return Found(state, where.rstrip("."), bool(AVERAGE.search(where)))


def origin(checkpoint: dict[str, Any], source: str, prefer: str = "ema") -> list[str]:
    """A line where the weights that are taken are not those that `prefer` asks for, or have another program's names."""
    found = find_weights(checkpoint, source, prefer)
    key = found.where.partition(".")[0]
    of_training = isinstance(checkpoint.get(key), dict)  # tensors alone do not say what they are
    if prefer == "model":
        return [f"{source} holds no weights but the average"] if of_training and found.is_average else []
    if found.is_average:
        return [f"{source} holds its average as {found.where}"] if key != "ema" else []
    return [f"{source} holds no average: {found.where} is taken"] if of_training else []


def training_args(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The arguments a checkpoint was trained with, {} where it does not say."""
    args = checkpoint.get("args", {})
    known = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}


def step(checkpoint: dict[str, Any]) -> int:
    """The number of training steps taken.

    In files of the official code it is the optimiser's own count; 0 where nothing tells.
    """
    if (count := whole(checkpoint.get("step"))) is not None:
        return count
    opt = checkpoint.get("opt")
    states = opt.get("state") if isinstance(opt, dict) else None
    counts = [whole(s.get("step")) for s in states.values() if isinstance(s, dict)] if isinstance(states, dict) else []
    return max((count for count in counts if count is not None), default=0)
