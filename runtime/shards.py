"""A model in several files: an index that says which tensor is in which file, as Hugging Face's libraries write it.

model.safetensors.index.json, {"weight_map": {tensor: file}}, stands beside model-00001-of-00003.safetensors and so on.
"""

import json
import re
from pathlib import Path

from runtime.errors import DataError

INDEX = ".index.json"
# Of a folder's indices, the first in this order is taken.
NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.")


def is_index(path: Path) -> bool:
    """Whether a path is an index, by its name."""
    return path.name.endswith(INDEX)


def index_in(folder: Path) -> Path | None:
    """The index of a folder that holds a model in several files; None where there is none.

    Raises:
        DataError: there are several.
    """
    found = sorted(path for path in folder.glob(f"*{INDEX}") if path.is_file())
    usual = [folder / f"{name}{INDEX}" for name in NAMES if folder / f"{name}{INDEX}" in found]
    if len(found) > 1 and not usual:
        raise DataError(f"checkpoint {folder} is a folder of several models: give one of {', '.join(map(str, found))}")
    return next(iter([*usual, *found]), None)


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by the tensor's name.

    Raises:
        DataError: the index cannot be read, or is none.
    """
    try:
        content = json.loads(index.read_bytes())
    except ValueError as error:  # also of letters that are not UTF-8
        raise DataError(f"checkpoint {index} cannot be read: it is no JSON ({error})") from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not (isinstance(names, dict) and names and all(isinstance(name, str) and name for name in names.values())):
        raise DataError(f"checkpoint {index} is no index of shards: it has no 'weight_map' from tensors to files")
    if outside := [name for name in names.values() if Path(name).name != name]:
        raise DataError(f"checkpoint {index} names {outside[0]}, which is not a file beside it")
    return names


def shards_of(path: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        DataError: one is not there.
    """
    shards = [path.with_name(name) for name in sorted(set(weight_map(path).values()))]
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise DataError(f"checkpoint {path} lacks {absent[0]}, one of its {len(shards)} files")
    return shards


def check_whole(path: Path) -> None:
    """See that a file is not just one shard of a model, by its name or by an index beside it.

    Raises:
        DataError: it is.
    """
    found = PART.search(path.name)
    count = int(found[2]) if found else 1
    index = None
    for beside in sorted(path.parent.glob(f"*{INDEX}")):
        try:
            names = set(weight_map(beside).values())
        except (DataError, OSError):
            continue  # which is not what was asked for
        if path.name in names:
            index, count = beside, len(names)
    if count > 1:
        whole = f"give its index {index}" if index else f"give the index, *{INDEX}, of all of them, which is not here"
        raise DataError(f"checkpoint {path} is one of {count} files, which hold the model together: {whole}")
