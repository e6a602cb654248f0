"""The method: path, prediction, loss and draw of times, with their defaults and checks in one place.

`create_transport`, the command line, its presets and checkpoints all make a `Method` of what they hold.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from .names import BLENDS, COMBOSTOC_TYPES, PREDICTIONS, WEIGHTS, Blend, TimeShift
from .path import PATHS
from .timesteps import DRAWS, Draw, times_of_today

SWITCH = {"on": True, "off": False}
# Settings that are words on the command line and in checkpoints: the field of `Method`, and the value of each word.
WORDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "halfmixing": ("use_halfmixing", SWITCH),
    "blend": ("use_blend", BLENDS),
    "compensation": ("use_compensation", SWITCH),
}


@dataclass(frozen=True)
class Method:
    """The settings of training that sampling has to know, as plain values.

    Args:
        path_type: "Linear", "GVP" or "VP".
        prediction: "velocity", "score", "noise" or "data".
        loss_weight: None, "velocity" or "likelihood": the weight over t of a noise, score or data loss. A velocity loss
            has none.
        train_eps, sample_eps: distance kept from the ends of [0, 1]; None is the path's own, see `eps`.
        combostoc_type: the unit with its own timestep, a name of `ComboStocType`.
        times, use_halfmixing, async_fraction, use_blend: see `draw_timesteps`.
        use_compensation: pull the velocity targets of unequal times back towards equal times (ComboStoc, equation 6).
        difficulty: weight of a second loss, by which the model learns the variance of its velocity's error; 0 is none.
            The model is then called with log_variance=True and returns 2C channels, velocity and log-variance.
        time_shift: A by which drawn times, and the time points of samplers, are moved, see `transport.shift`.
        loss_clamp: C of the weight 1 / max(sigma, C)^2 of a data loss with loss_weight "velocity" (JiT, arXiv
            2511.13720); 0 is no clamp.

    Raises:
        ValueError: a value that is not accepted, or does not fit the others.
    """

    path_type: str = "Linear"
    prediction: str = "velocity"
    loss_weight: str | None = None
    train_eps: float | None = None
    sample_eps: float | None = None
    combostoc_type: str = "UNSYNC_NONE"
    times: str | Draw = "combostoc"
    use_halfmixing: bool | None = None
    async_fraction: float = 0.5
    use_blend: Blend = True
    use_compensation: bool = True
    difficulty: float = 0.0
    time_shift: TimeShift = 1.0
    loss_clamp: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.times, str):
            object.__setattr__(self, "times", times_of_today(self.times))
        for field in fields(self):
            check(field.name, getattr(self, field.name))
        if self.difficulty and self.prediction != "velocity":
            raise ValueError(
                f"difficulty {self.difficulty:g} is for prediction velocity, not for prediction {self.prediction}"
            )
        if self.loss_clamp and (self.prediction, self.loss_weight) != ("data", "velocity"):
            raise ValueError(
                f"loss_clamp {self.loss_clamp:g} is for prediction data and loss_weight velocity, "
                f"not for prediction {self.prediction} and loss_weight {self.loss_weight}"
            )

    def eps(self) -> tuple[float, float]:
        """Distance kept from the ends of [0, 1] in training and in sampling.

        The path's own is 0 for velocity and data on Linear and GVP, 1e-5 in training and 1e-3 in sampling on VP, and
        1e-3 otherwise.
        """
        if self.path_type == "VP":
            train, sample = 1e-5, 1e-3
        elif self.prediction in ("velocity", "data"):
            train, sample = 0.0, 0.0
        else:
            train, sample = 1e-3, 1e-3
        return (
            train if self.train_eps is None else self.train_eps,
            sample if self.sample_eps is None else self.sample_eps,
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Method":
        """The method that arguments describe, by their names on the command line and in checkpoints.

        Args:
            values: name -> value, other names beside them; a setting that is absent or None takes its default.

        Raises:
            ValueError: a value that is not accepted, or does not fit the others.
        """
        settings = {}
        for name in Method().words():
            if (value := values.get(name)) is not None:
                check(name, value)
                field, meanings = WORDS.get(name, (name, None))
                settings[field] = meanings[value] if meanings is not None else value
        return cls(**settings)

    def words(self) -> dict[str, Any]:
        """The settings by their names on the command line, from which `read` makes this method again."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "async_fraction"}
        for name, (field, meanings) in WORDS.items():
            value = values.pop(field)
            values[name] = next((word for word, meaning in meanings.items() if meaning == value), None)
        return values


def check(name: str, value: Any) -> None:
    """See whether a setting accepts a value.

    Args:
        name: the setting, as in `Method` or on the command line.
        value: the value to check.

    Raises:
        ValueError: names the value and what is accepted.
    """
    accepted, fits = ACCEPTED.get(name, ("", lambda value: True))
    if fits(value):
        return
    if isinstance(value, str) and name in CHOICES:
        raise ValueError(f"unknown {name} {value!r}; choose from {accepted}")
    raise ValueError(f"{name} must be {accepted}, got {value!r}")


def is_times(value: Any) -> bool:
    """Whether a value is a draw of times: a function, or a name with or without numbers."""
    if not isinstance(value, str):
        return callable(value)
    try:
        return bool(times_of_today(value))
    except ValueError:
        return False


def number(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    """A check of values: whether one is a real number, no bool, that fits."""
    return lambda value: isinstance(value, Real) and not isinstance(value, bool) and fits(float(value))


def optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check of values: whether one is None or fits."""
    return lambda value: value is None or fits(value)


def one_of(choices: Collection[Any]) -> tuple[str, Callable[[Any], bool]]:
    """The choices in words, and a check of values: whether one is among them."""
    known = list(choices)
    return ", ".join(map(str, known)), lambda value: value in known


CHOICES: dict[str, Collection[Any]] = {
    "path_type": PATHS,
    "prediction": PREDICTIONS,
    "loss_weight": WEIGHTS,
    "combostoc_type": COMBOSTOC_TYPES,
    **{name: meanings for name, (_, meanings) in WORDS.items()},
}
EPS = ("a number in [0, 0.5)", optional(number(lambda v: 0 <= v < 0.5)))
# What is accepted of a setting, in words and as a function. Those that are not here take any value.
ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{name: one_of(choices) for name, choices in CHOICES.items()},
    "train_eps": EPS,
    "sample_eps": EPS,
    "times": (", ".join(DRAWS), is_times),
    "async_fraction": ("a number in [0, 1]", number(lambda v: 0 <= v <= 1)),
    "use_blend": ("True, False or 'sample'", lambda value: value in (True, False, "sample")),
    "difficulty": ("a finite weight, not negative", number(lambda v: 0 <= v < math.inf)),
    "time_shift": (
        "a positive number or 'auto'",
        lambda value: value == "auto" or number(lambda v: 0 < v < math.inf)(value),
    ),
    "loss_clamp": ("a number in [0, 1]", number(lambda v: 0 <= v <= 1)),
}
