"""The settings of a sampler, by ODE or by SDE, with defaults and checks in one place.

`Sampler`'s methods and the command line make one of what they hold.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .names import DIFFUSION_FORMS, LAST_STEPS
from .solvers import ODE_SOLVERS, SDE_SOLVERS

MAX_STEPS = 2**20  # so that neighbouring times in [0, 1] are still some roundings of float32 apart


def check_choice(what: str, value: Any, choices: Collection[Any]) -> None:
    """See that a value is among the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(map(str, choices))}")


def check_num_steps(num_steps: int) -> None:
    """See that a number of time points is at least two, and not so large that they coincide.

    Raises:
        ValueError: it is not.
    """
    if num_steps < 2:
        raise ValueError(f"the number of sampling steps must be at least 2 (a start and an end), got {num_steps}")
    if num_steps > MAX_STEPS:
        raise ValueError(f"the number of sampling steps must be at most {MAX_STEPS:,}, got {num_steps}")


@dataclass(frozen=True)
class OdeSettings:
    """The settings of a sampler by the probability-flow ODE.

    Args:
        sampling_method: one of `solvers.ODE_SOLVERS`; look-ahead is for models that were trained with times that differ
            within a sample, and with difficulty.
        num_steps: time points, both ends included; a fixed-step method takes num_steps - 1 steps.
        atol, rtol: error tolerances of the adaptive methods.
        max_evaluations: of the model, at most, by an adaptive method, which else ends in a FloatingPointError.

    Raises:
        ValueError: a value that is not accepted.
    """

    sampling_method: str = "dopri5"
    num_steps: int = 50
    atol: float = 1e-6
    rtol: float = 1e-3
    max_evaluations: int = 10_000  # hundreds are enough where the tolerances can be met

    def __post_init__(self) -> None:
        check_choice("ODE method", self.sampling_method, ODE_SOLVERS)
        check_num_steps(self.num_steps)
        if self.max_evaluations < 1:
            raise ValueError(f"the number of evaluations must be at least 1, got {self.max_evaluations}")
        for name in ("atol", "rtol"):
            if not (tolerance := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive, got {tolerance}")


@dataclass(frozen=True)
class SdeSettings:
    """The settings of a sampler by the SDE.

    The SDE is integrated up to last_step_size short of t = 1, where the score may be infinite; a last step without
    noise covers the rest.

    Args:
        sampling_method: "Euler" (Euler-Maruyama) or "Heun".
        diffusion_form, diffusion_norm: the coefficient w, see `ICPlan.compute_diffusion`.
        last_step: "Mean" (the SDE's drift), "Euler" (the velocity), "Tweedie" (E[x1 | x_t]) or None.
        last_step_size: 0 becomes last_step=None, and with that 0.
        num_steps: time points, both ends included, the last step not counted.

    Raises:
        ValueError: a value that is not accepted.
    """

    sampling_method: str = "Euler"
    diffusion_form: str = "SBDM"
    diffusion_norm: float = 1.0
    last_step: str | None = "Mean"
    last_step_size: float = 0.04
    num_steps: int = 250

    def __post_init__(self) -> None:
        check_choice("SDE method", self.sampling_method, SDE_SOLVERS)
        check_choice("diffusion form", self.diffusion_form, DIFFUSION_FORMS)
        check_choice("last step", self.last_step, LAST_STEPS)
        check_num_steps(self.num_steps)
        if not 0 <= self.last_step_size < 1:
            raise ValueError(f"last step size must lie in [0, 1), got {self.last_step_size}")
        if not 0 <= self.diffusion_norm < math.inf:
            raise ValueError(f"diffusion norm must be a finite number, not negative, got {self.diffusion_norm}")
        if self.last_step is None or self.last_step_size == 0:
            object.__setattr__(self, "last_step", None)
            object.__setattr__(self, "last_step_size", 0.0)


PUBLISHED_SDE = SdeSettings(diffusion_form="sigma")  # of published numbers; SiT's default in Python is another form
