"""Models that take the timesteps of a batch in segments (`Transport.segments`).

The `forward` of such a model has an attribute `takes_segments`. Where a wrapper hands its arguments on, the attribute
of the model in it counts.
"""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

# Libraries whose wrappers hand their arguments on to a model, and the attributes in which they hold it.
LIBRARIES = ("torch", "accelerate", "deepspeed", "lightning", "lightning_fabric", "peft")
HELD_AS = ("module", "_forward_module", "base_model", "model")

_warned: set[type] = set()


def takes_segments(model: Callable[..., Any]) -> bool:
    """Whether a model takes a list of timesteps, for consecutive segments of the batch.

    Asked of the model within torch.compile, DistributedDataParallel, FSDP, DeepSpeed, Accelerate and the like, and of
    the `forward` within decorators. A subclass with a `forward` of its own has no mark, and DataParallel, which cuts
    every tensor of a list in pieces, does not hand it on.
    """
    while (inner := _handed_to(model)) is not None:
        model = inner
    return _is_marked(getattr(model, "forward", model))


def warn_of_lost_segments(model: Callable[..., Any]) -> None:
    """Warn, once for each class, that a wrapper or a subclass hides a model that takes segments."""
    if type(model) in _warned or not isinstance(model, nn.Module):
        return
    _warned.add(type(model))
    within = [m.forward for m in model.modules()] + [vars(c).get("forward") for c in type(model).__mro__]
    if any(map(_is_marked, within)):
        warnings.warn(
            f"{type(model).__qualname__}.forward is not marked to take segments, though the model in it is: each "
            "synchronous sample of a half-mixed batch costs what an asynchronous one does. Where that forward hands t "
            "on as it is, set its attribute takes_segments = True",
            stacklevel=3,
        )


def _handed_to(model: Any) -> Any:
    """The model that a wrapper hands its arguments to, or None."""
    if isinstance(model, partial):
        return model.func
    if hasattr(model, "_orig_mod"):  # of torch.compile
        return model._orig_mod
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel) or _is_marked(model.forward):
        return None
    author = getattr(inspect.unwrap(model.forward), "__module__", None) or ""
    if author.partition(".")[0] not in LIBRARIES:
        return None
    return next((held for name in HELD_AS if isinstance(held := getattr(model, name, None), nn.Module)), None)


def _is_marked(forward: Any) -> bool:
    """A forward's own mark, or that of one within its decorators."""
    return getattr(inspect.unwrap(forward, stop=_has_mark), "takes_segments", False)


def _has_mark(function: Any) -> bool:
    return getattr(function, "takes_segments", False)
