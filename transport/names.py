"""Names of settings, on the command line, in checkpoints and in `create_transport`."""

import enum
from collections.abc import Mapping
from typing import Any, Literal


class ModelType(enum.Enum):
    """The quantity that the model predicts."""

    NOISE = enum.auto()
    SCORE = enum.auto()
    VELOCITY = enum.auto()
    DATA = enum.auto()


class WeightType(enum.Enum):
    """Weight of the noise, score and data losses."""

    NONE = enum.auto()
    VELOCITY = enum.auto()
    LIKELIHOOD = enum.auto()


class ComboStocType(enum.Enum):
    """The unit with its own timestep."""

    UNSYNC_NONE = enum.auto()  # (N,)             one per sample: SiT
    UNSYNC_VEC = enum.auto()  #  (N, C, 1, 1)     one per feature channel
    UNSYNC_PATCH = enum.auto()  # (N, 1, H, W)    one per latent position
    UNSYNC_ALL = enum.auto()  #  (N, C, H, W)     one per entry
    UNSYNC_PART = enum.auto()  # (N, L, 1)        of shapes, (N, L, F): one per part
    UNSYNC_ATT = enum.auto()  #  (N, 1, A)        one per attribute, the same for all parts
    UNSYNC_ATT_PART = enum.auto()  # (N, L, A)    one per attribute of a part


COMBOSTOC_TYPES = tuple(ComboStocType.__members__)
OF_SHAPES = ("UNSYNC_PART", "UNSYNC_ATT", "UNSYNC_ATT_PART")

PREDICTIONS = {
    "velocity": ModelType.VELOCITY,
    "score": ModelType.SCORE,
    "noise": ModelType.NOISE,
    "data": ModelType.DATA,
}
WEIGHTS = {None: WeightType.NONE, "velocity": WeightType.VELOCITY, "likelihood": WeightType.LIKELIHOOD}


def name_of(value: enum.Enum, names: Mapping[Any, enum.Enum]) -> Any:
    """The name of a value in a table of names."""
    return next(name for name, named in names.items() if named is value)


Blend = bool | Literal["sample"]
BLENDS: dict[str, Blend] = {"batch": True, "sample": "sample", "off": False}

TimeShift = float | Literal["auto"]  # A of `transport.shift`

DIFFUSION_FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing")
LAST_STEPS = (None, "Mean", "Tweedie", "Euler")
SCHEDULES = ("number", "size")  # of graded control
