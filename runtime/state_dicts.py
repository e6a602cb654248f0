"""Models in dicts of tensors, under the keys and prefixes that others' programs save them with."""

import re
from collections.abc import Iterator
from typing import Any

import torch

StateDict = dict[str, torch.Tensor]
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)

# Others' files hold a model under keys and prefixes of their programs. Where this tensor is, a model is.
MARKER = "x_embedder.proj.weight"
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # of torch, anywhere in a key
AVERAGE = re.compile(r"(^|[._])(ema\d*|averaged?|avg|swa|shadow)[._]", re.IGNORECASE)  # in keys and prefix
MAX_DEPTH = 4  # of dicts in dicts


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
    """Tensors, with the names put right that LDM's wrapper has taken the dots from, since buffers' names must not have
    any: model_ema.x_embedderprojweight. The model it averages tells them, and has what was not trained."""
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
    """Whether it is a plain tensor of floats that are all there, not one that is repeated without end."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in WEIGHTS + EIGHT_BITS
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )
