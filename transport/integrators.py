"""The loops that integrate a velocity field (ODE, through torchdiffeq) or a drift and a diffusion (SDE)."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from .settings import OdeSettings
from .shift import GridShift
from .solvers import ODE_SOLVERS

ADAMS_METHODS = ("explicit_adams", "implicit_adams", "fixed_adams")
# Kinds of device. Elsewhere torchdiffeq keeps times in float64; Adams' coefficients are float64 on all devices.
WITHOUT_FLOAT64 = ("mps",)

StateField = Callable[[Tensor, Tensor], Tensor]  # field(x, t) with t of shape (N,)
SdeStep = Callable[[Tensor, Tensor, Tensor, Tensor, StateField, StateField], Tensor]


def integrate_ode(
    field: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    t0: float,
    t1: float,
    settings: OdeSettings,
    *,
    trajectory: bool = False,
    shift: GridShift | None = None,
) -> list[tuple[Tensor, ...]]:
    """Solve d state / dt = field(t, state) from t0 to t1, in either direction.

    With a shift t = shift(s) steps are even in s, and an adaptive method, whose tolerances are asked for in s, solves
    d state / ds = t'(s) field(t(s), state).

    Args:
        field: takes a scalar t and the state, returns its derivative.
        state: tensors at t0.
        settings: their method is one of `solvers.SOLVERS`; what they say of the model is for the field.
        trajectory: return the states at all num_steps points; otherwise the end state only, nothing else being kept.
        shift: of the interval from t0 to t1; None leaves the time points evenly spaced.

    Raises:
        FloatingPointError: an adaptive method found no step small enough, as where the field is not finite, or has not
            arrived after max_evaluations; or the method needs float64, which the device does not have.
    """
    method, num_steps, atol, rtol = settings.sampling_method, settings.num_steps, settings.atol, settings.rtol
    points = range(num_steps) if trajectory else [-1]
    if not state[0].numel():  # whose error an adaptive method cannot tell
        return [state for _ in points]
    adaptive, device = ODE_SOLVERS[method].adaptive, state[0].device
    if adaptive and (fault := beyond_rounding(atol, rtol, state[0].dtype)):
        warnings.warn(f"{fault}: {method} may not arrive", stacklevel=2)
    grid = torch.linspace(t0, t1, num_steps, device=state[0].device, dtype=state[0].dtype)
    if shift is not None and not adaptive:
        grid = shift(grid)
        t0, t1 = float(grid[0]), float(grid[-1])
    options: dict[str, Any] = {}
    if adaptive:
        options["step_t"] = grid[-1:]  # land on the end, where torchdiffeq would step past it and interpolate back
    else:
        options["grid_constructor"] = lambda func, y0, t: grid
    if device.type in WITHOUT_FLOAT64:
        if method in ADAMS_METHODS:
            raise FloatingPointError(
                f"{method} computes in float64, which {device.type} does not have; take another method"
            )
        if adaptive:
            options["dtype"] = torch.float32
    if method == "explicit_adams":
        options["max_order"] = 4  # torchdiffeq's 12 is unstable at the step sizes in use
    outputs = grid if trajectory else grid[[0, -1]]
    low, high = min(t0, t1), max(t0, t1)
    now, evaluations = grid[0], 0

    def inside(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal now, evaluations
        now = t.clamp(low, high)  # an adaptive method may try its first step beyond the end
        evaluations += 1
        if adaptive and evaluations > settings.max_evaluations:
            raise FloatingPointError(
                f"{method} is at t = {float(now):.4g} on its way from {t0:.4g} to {t1:.4g} after "
                f"{settings.max_evaluations:,} evaluations of the model: give larger tolerances than atol "
                f"{atol:g} and rtol {rtol:g}, a method of fixed steps, or a larger max_evaluations"
            )
        return field(now, state)

    def even_in_s(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert shift is not None
        rate = shift.rate(s.clamp(low, high))
        return tuple(rate * slope for slope in inside(shift(s), state))

    derivative = even_in_s if adaptive and shift is not None else inside
    try:
        solution = odeint(derivative, state, outputs, method=method, atol=atol, rtol=rtol, options=options)
    except AssertionError as error:  # how torchdiffeq says so
        if not str(error).startswith(("underflow in dt", "non-finite values")):
            raise
        raise FloatingPointError(
            f"{method} cannot take its step to t = {float(now):.4g}: the model's output on the way is not finite, or "
            "changes too fast"
        ) from None
    return [tuple(component[k] for component in solution) for k in points]


def beyond_rounding(atol: float, rtol: float, dtype: torch.dtype) -> str:
    """A warning of tolerances below the rounding of a state whose entries are about 1; "" for others."""
    eps = torch.finfo(dtype).eps
    name = str(dtype).removeprefix("torch.")
    return f"atol {atol:g} and rtol {rtol:g} are less than {name} resolves, {eps:.1e}" if atol + rtol < eps else ""


def euler_maruyama_step(
    x: Tensor, t: Tensor, dt: Tensor, noise: Tensor, drift: StateField, diffusion: StateField
) -> Tensor:
    """The Euler-Maruyama step, x + drift dt + sqrt(2 diffusion) dW. Weak order 1."""
    return x + drift(x, t) * dt + torch.sqrt(2 * diffusion(x, t) * dt) * noise


def heun_step(x: Tensor, t: Tensor, dt: Tensor, noise: Tensor, drift: StateField, diffusion: StateField) -> Tensor:
    """The stochastic Heun step: noise first, then the trapezoidal rule on the drift.

    Weak order 1; order 2 as the diffusion vanishes.
    """
    noisy = x + torch.sqrt(2 * diffusion(x, t) * dt) * noise
    slope = drift(noisy, t)
    return noisy + 0.5 * dt * (slope + drift(noisy + dt * slope, t + dt))


SDE_STEPS: dict[str, SdeStep] = {"Euler": euler_maruyama_step, "Heun": heun_step}


def integrate_sde(
    drift: StateField,
    diffusion: StateField,
    x: Tensor,
    t0: float,
    t1: float,
    *,
    method: str,
    num_steps: int,
    randn: Callable[[Tensor], Tensor] = torch.randn_like,
    trajectory: bool = False,
    shift: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Solve dx = drift dt + sqrt(2 diffusion) dW from t0 to t1.

    Args:
        drift, diffusion: fields of (x, t), t of shape (N,).
        x: (N, ...) at t0.
        method: a key of `SDE_STEPS`.
        num_steps: number of time points, both ends included: num_steps - 1 steps.
        randn: called once a step with x, returns standard normal noise of its shape.
        trajectory: return all num_steps states; otherwise the end state only.
        shift: moves the time points; None leaves them evenly spaced.
    """
    step = SDE_STEPS[method]
    grid = torch.linspace(t0, t1, num_steps, device=x.device, dtype=x.dtype)
    sizes = (grid[1] - grid[0]).expand(num_steps - 1)
    if shift is not None:
        grid = shift(grid)
        sizes = grid.diff()
    states = [x]
    for t, dt in zip(grid[:-1], sizes, strict=True):
        x = step(x, t.expand(x.shape[0]), dt, randn(x), drift, diffusion)
        states = [*states, x] if trajectory else [x]
    return states
