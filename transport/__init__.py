"""Interpolants, training targets and samplers for flow and diffusion models with combinatorial stochasticity."""

from typing import Any

from .method import Method
from .names import (
    BLENDS,
    DIFFUSION_FORMS,
    LAST_STEPS,
    PREDICTIONS,
    SCHEDULES,
    WEIGHTS,
    ComboStocType,
    ModelType,
    WeightType,
)
from .path import PATHS, GVPCPlan, ICPlan, PathType, VPCPlan, expand_t_like_x
from .sampler import Sampler
from .settings import PUBLISHED_SDE, OdeSettings, SdeSettings
from .solvers import ADAPTIVE_METHODS, FIXED_STEP_METHODS, ODE_METHODS, SDE_METHODS
from .targets import Transport
from .timesteps import TIMES, Attributes, Draw, draw_timesteps, timestep_shape

__all__ = [
    "ADAPTIVE_METHODS",
    "BLENDS",
    "DIFFUSION_FORMS",
    "FIXED_STEP_METHODS",
    "LAST_STEPS",
    "ODE_METHODS",
    "PATHS",
    "PREDICTIONS",
    "PUBLISHED_SDE",
    "SCHEDULES",
    "SDE_METHODS",
    "TIMES",
    "WEIGHTS",
    "Attributes",
    "ComboStocType",
    "Draw",
    "GVPCPlan",
    "ICPlan",
    "Method",
    "ModelType",
    "OdeSettings",
    "PathType",
    "Sampler",
    "SdeSettings",
    "Transport",
    "VPCPlan",
    "WeightType",
    "create_transport",
    "draw_timesteps",
    "expand_t_like_x",
    "timestep_shape",
]


def create_transport(
    path_type: str = Method.path_type,
    prediction: str = Method.prediction,
    loss_weight: str | None = Method.loss_weight,
    train_eps: float | None = Method.train_eps,
    sample_eps: float | None = Method.sample_eps,
    combostoc_type: str = Method.combostoc_type,
    *,
    attributes: Attributes | None = None,
    **settings: Any,
) -> Transport:
    """Build a `Transport` from the fields of a `Method`; SiT's are by position, too.

    Args:
        path_type, prediction, loss_weight, train_eps, sample_eps, combostoc_type, settings: see `Method`.
        attributes: for shapes, the widths of their parts' attributes, see `Transport`.

    Raises:
        ValueError: a name that is not among the choices, or a setting that does not fit the others.
    """
    method = Method(path_type, prediction, loss_weight, train_eps, sample_eps, combostoc_type, **settings)
    return Transport.of(method, attributes)
