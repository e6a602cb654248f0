"""Models in dicts of tensors, under the keys and prefixes that others' programs save them with."""

import re
from collections.abc import Iterator
from typing import Any

import torch

StateDict = dict[str, torch.Tensor]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)

# The tensor by which a model is found, under whatever keys and prefixes a program has saved it.
MARKER = "x_embedder.proj.weight"
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")  # torch's, anywhere in a key
AVERAGE = re.compile(r"(^|[._])(ema\d*|averaged?|avg|swa|shadow)[._]", re.IGNORECASE)  # words in keys and prefix
MAX_DEPTH = 4  # of dicts in dicts


def models_in(content: dict[Any, Any], where: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Each model in dicts of tensors: the keys and prefix that lead to it, each followed by a dot, and its tensors."""
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
    """Tensors with the dots back in names from which LDM's wrapper has taken them: model_ema.x_embedderprojweight.

    (Buffers' names must not have dots.) The names, and tensors that are not averaged, are those of the model beside it.
    """
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
    """Tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def is_weight(value: Any) -> bool:
    """Whether a value is a plain tensor of floats, with memory for each of them."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in FLOATS + EIGHT_BITS
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )
