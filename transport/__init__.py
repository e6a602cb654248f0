"""Interpolants, training targets and samplers for flow and diffusion models with combinatorial stochasticity."""

from .names import (
    BLENDS,
    DIFFUSION_FORMS,
    LAST_STEPS,
    PATHS,
    PREDICTIONS,
    SCHEDULES,
    WEIGHTS,
    Blend,
    ComboStocType,
    ModelType,
    PathType,
    TimeShift,
    WeightType,
)
from .path import GVPCPlan, ICPlan, VPCPlan, expand_t_like_x
from .sampler import Sampler
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
    "SCHEDULES",
    "SDE_METHODS",
    "TIMES",
    "WEIGHTS",
    "Attributes",
    "ComboStocType",
    "Draw",
    "GVPCPlan",
    "ICPlan",
    "ModelType",
    "PathType",
    "Sampler",
    "Transport",
    "VPCPlan",
    "WeightType",
    "create_transport",
    "draw_timesteps",
    "expand_t_like_x",
    "timestep_shape",
]


def create_transport(
    path_type: str = "Linear",
    prediction: str = "velocity",
    loss_weight: str | None = None,
    train_eps: float | None = None,
    sample_eps: float | None = None,
    combostoc_type: str = "UNSYNC_NONE",
    *,
    attributes: Attributes | None = None,
    times: str | Draw = "combostoc",
    use_halfmixing: bool | None = None,
    async_fraction: float = 0.5,
    use_blend: Blend = True,
    use_compensation: bool = True,
    difficulty: float = 0.0,
    time_shift: TimeShift = 1.0,
    loss_clamp: float = 0.0,
) -> Transport:
    """Build a `Transport` from the names used on the command line.

    Args:
        path_type: "Linear", "GVP" or "VP".
        prediction: "velocity", "score", "noise" or "data".
        loss_weight: None, "velocity" or "likelihood"; weighs all losses but the velocity's.
        train_eps, sample_eps: distance kept from the ends of [0, 1]; None takes the path's own, which is 0 for
            velocity and data on Linear and GVP, 1e-5 in training and 1e-3 in sampling on VP, and 1e-3 otherwise.
        combostoc_type: a name of `ComboStocType`.
        attributes, times, use_halfmixing, async_fraction, use_blend, use_compensation, difficulty, time_shift,
            loss_clamp: see `Transport`.

    Raises:
        ValueError: a name that is not among the choices, or a setting that does not fit the others.
    """
    for name, value, choices in (
        ("path_type", path_type, list(PATHS)),
        ("prediction", prediction, list(PREDICTIONS)),
        ("loss_weight", loss_weight, list(WEIGHTS)),
        ("combostoc_type", combostoc_type, [c.name for c in ComboStocType]),
    ):
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(map(str, choices))}")

    if path_type == "VP":
        default_train_eps, default_sample_eps = 1e-5, 1e-3
    elif prediction in ("velocity", "data"):
        default_train_eps, default_sample_eps = 0.0, 0.0
    else:
        default_train_eps, default_sample_eps = 1e-3, 1e-3
    return Transport(
        model_type=PREDICTIONS[prediction],
        path_type=PATHS[path_type],
        loss_type=WEIGHTS[loss_weight],
        train_eps=default_train_eps if train_eps is None else train_eps,
        sample_eps=default_sample_eps if sample_eps is None else sample_eps,
        combostoc_type=ComboStocType[combostoc_type],
        attributes=attributes,
        times=times,
        use_halfmixing=use_halfmixing,
        async_fraction=async_fraction,
        use_blend=use_blend,
        use_compensation=use_compensation,
        difficulty=difficulty,
        time_shift=time_shift,
        loss_clamp=loss_clamp,
    )
