"""Training targets and the velocity and score of a trained model.

`Transport` draws (t, x0, x_t) for a batch, forms the target of the chosen prediction, and turns a model's output into
the velocity (`get_drift`) and the score (`get_score`) that the samplers integrate.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from .difficulty import call_with_log_variance, gaussian_nll
from .method import Method
from .names import (
    OF_SHAPES,
    PREDICTIONS,
    WEIGHTS,
    ComboStocType,
    ModelType,
    WeightType,
    name_of,
)
from .path import PATHS, PLANS, PathType, expand_t_like_x
from .segments import takes_segments, warn_of_lost_segments
from .shift import shift_for, shifted
from .timesteps import Attributes, count_async, draw_timesteps, halfmixes, one_each
from .utils import mean_flat, sum_flat

# Where an integrator or a loss would evaluate a coefficient that is infinite, it stays this far from that end.
SINGULAR_EPS = 1e-3
BISECTIONS = 30  # of an interval of at most 1: to 1e-9

Model = Callable[..., Tensor]
Field = Callable[..., Tensor]  # field(x, t, model, **model_kwargs), t of shape (N,) or broadcastable to x


class Transport:
    """A diffusion to be learnt: one path, one prediction, one loss weight, one draw of timesteps.

    Args:
        model_type, path_type, loss_type: the predicted quantity, the interpolant, and the weight of the loss.
        train_eps, sample_eps: distance kept from the ends of [0, 1] in training and in sampling.
        combostoc_type: the unit with its own timestep in training.
        attributes: for shapes (N, L, F), the widths of a part's attributes, which sum to F. None for images.
        settings: the other fields of `Method`.

    Raises:
        ValueError: a setting that is out of its range or does not fit the others.
    """

    def __init__(
        self,
        *,
        model_type: ModelType,
        path_type: PathType,
        loss_type: WeightType,
        train_eps: float,
        sample_eps: float,
        combostoc_type: ComboStocType = ComboStocType.UNSYNC_NONE,
        attributes: Attributes | None = None,
        **settings: Any,
    ) -> None:
        method = Method(
            path_type=name_of(path_type, PATHS),
            prediction=name_of(model_type, PREDICTIONS),
            loss_weight=name_of(loss_type, WEIGHTS),
            train_eps=train_eps,
            sample_eps=sample_eps,
            combostoc_type=combostoc_type.name,
            **settings,
        )
        if attributes is None and method.combostoc_type in OF_SHAPES:
            raise ValueError(f"{method.combostoc_type} is for shapes, whose parts have attributes, not for images")
        if attributes is not None and combostoc_type is ComboStocType.UNSYNC_PATCH:
            raise ValueError(f"{method.combostoc_type} is for images, not for shapes")
        if attributes is not None and method.difficulty:
            raise ValueError(f"difficulty {method.difficulty} is for images, not for shapes")
        usual = halfmixes(method.times, attributes)
        self.model_type = model_type
        self.path_type = path_type
        self.loss_type = loss_type
        self.train_eps = train_eps
        self.sample_eps = sample_eps
        self.combostoc_type = combostoc_type
        self.attributes = attributes
        self.times = method.times
        self.use_halfmixing = usual if method.use_halfmixing is None else method.use_halfmixing
        self.async_fraction = method.async_fraction
        self.use_blend = method.use_blend
        self.use_compensation = method.use_compensation
        self.difficulty = method.difficulty
        self.time_shift = method.time_shift
        self.loss_clamp = method.loss_clamp
        self.path_sampler = PLANS[path_type]()

    @classmethod
    def of(cls, method: Method, attributes: Attributes | None = None) -> "Transport":
        """The transport of a method, for images, or for shapes whose parts have these attributes.

        Raises:
            ValueError: the method is not for them.
        """
        settings = {field.name: getattr(method, field.name) for field in fields(method)}
        train_eps, sample_eps = method.eps()
        return cls(
            path_type=PATHS[settings.pop("path_type")],
            model_type=PREDICTIONS[settings.pop("prediction")],
            loss_type=WEIGHTS[settings.pop("loss_weight")],
            combostoc_type=ComboStocType[settings.pop("combostoc_type")],
            attributes=attributes,
            **settings | {"train_eps": train_eps, "sample_eps": sample_eps},
        )

    # ---- training ----------------------------------------------------------------------------------------------

    def sample(self, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw (t, x0, x1) for a batch: the noise first, then the timesteps.

        Args:
            x1: (N, C, ...) data, or (N, L, F) for shapes.

        Returns:
            t as `draw_timesteps` gives it, x0 ~ N(0, 1) like x1, and x1.
        """
        x0 = torch.randn_like(x1)
        t0, t1 = self.check_interval(self.train_eps, self.sample_eps)
        t = draw_timesteps(
            x1,
            self.combostoc_type,
            attributes=self.attributes,
            times=self.times,
            use_halfmixing=self.use_halfmixing,
            async_fraction=self.async_fraction,
            use_blend=self.use_blend,
        )
        return shifted(t, shift_for(self.time_shift, x1.shape[1:])) * (t1 - t0) + t0, x0, x1

    def compensate_offdiagonal_ut(
        self, x1: Tensor, xt: Tensor, ut: Tensor, t: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        """Velocity target with the off-diagonal compensation: u_t + v_cmpn, v_cmpn = -delta (ComboStoc, equation 6).

        delta = x_t - x_{t*} is the offset from the diagonal's point at the mean time weighted by energy,
        t* = sum(t u^2) / sum(u^2). On the Linear path it is the predecessor's
        (x_t - x1) - <x_t - x1, d> / <d, d> d with d = x1 - x0 = u, which needs neither t nor x0. A sample whose times
        are all equal is left exactly as it is when t is given, and up to rounding when it is not.

        Args:
            x1, xt, ut: (N, ...) data, interpolated state and velocity.
            t, x0: timesteps that broadcast to x1, and the noise. Needed for GVP and VP.

        Raises:
            ValueError: they are needed and not given.
        """
        if t is None or x0 is None:
            if self.path_type is not PathType.LINEAR:
                raise ValueError(f"compensation on the {self.path_type.name} path needs t and x0")
            offset = xt - x1
            along = sum_flat(offset * ut) / sum_flat(ut * ut).clamp_min(torch.finfo(ut.dtype).tiny)
            return ut - (offset - along * ut)
        t = expand_t_like_x(t, x1)
        energy = ut * ut
        t_first = one_each(t)  # subtracted, so that equal times cancel exactly
        t_star = t_first + sum_flat((t - t_first) * energy) / sum_flat(energy).clamp_min(torch.finfo(ut.dtype).tiny)
        return ut - (xt - self.path_sampler.compute_xt(t_star, x0, x1))

    @property
    def compensates(self) -> bool:
        """Whether velocity targets are compensated, and a model so trained returns compensated velocities."""
        asynchronous = self.combostoc_type is not ComboStocType.UNSYNC_NONE
        return self.use_compensation and asynchronous and self.model_type is ModelType.VELOCITY

    def decompensate_offdiagonal_ut(self, vt: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The velocity u_t of a compensated one: the inverse of `compensate_offdiagonal_ut`, without x0 and x1.

        Were the energy-weighted mean time t* known to be s, then x_t = alpha_t x1 + sigma_t x0 and
        vt = u_t - x_t + x_s would be two linear equations for x0 and x1 in every entry, with the solution u(s) below
        (v / (1 - t + s) on the Linear path). t* is where sum((t - s) u(s)^2) = 0, between the least and the greatest t
        of a sample; there is one such s on the Linear path, where the sum falls with s, and bisection finds it.

        Args:
            vt, xt: (N, ...) compensated velocity, and state.
            t: timesteps that broadcast to xt.
        """
        t = expand_t_like_x(t, xt)
        alpha_t, d_alpha_t = self.path_sampler.compute_alpha_t(t)
        sigma_t, d_sigma_t = self.path_sampler.compute_sigma_t(t)
        wronskian = d_alpha_t * sigma_t - alpha_t * d_sigma_t

        def velocity(s: Tensor) -> Tensor:
            alpha_s, sigma_s = self.path_sampler.compute_alpha_t(s)[0], self.path_sampler.compute_sigma_t(s)[0]
            along_x = wronskian - (d_alpha_t * sigma_s - alpha_s * d_sigma_t)  # 0 on the Linear path
            return (wronskian * vt + along_x * xt) / (wronskian + alpha_s * sigma_t - alpha_t * sigma_s)

        dims = tuple(range(1, t.ndim))
        low, high = t.amin(dims, keepdim=True), t.amax(dims, keepdim=True)
        for _ in range(BISECTIONS):
            s = (low + high) / 2
            above = sum_flat((t - s) * velocity(s) ** 2) > 0
            low, high = torch.where(above, s, low), torch.where(above, high, s)
        return velocity((low + high) / 2)

    def segments(self, t: Tensor) -> list[Tensor]:
        """The timesteps of a batch that `sample` drew, in segments of one kind, for models that can use it.

        A half-mixed batch gives two: its asynchronous samples', as they are, and its synchronous samples', (n, 1, ...)
        with one time each. Timesteps that do not vary over positions stay in one segment.
        """
        n = t.shape[0]
        positions = t.shape[2:] if self.attributes is None else t.shape[1:2]
        varies = t.ndim > 2 and any(size > 1 for size in positions)
        if not (varies and self.use_halfmixing) or n <= 1:
            return [t]
        n_async = count_async(n, self.async_fraction)
        return [segment for segment in (t[:n_async], one_each(t[n_async:])) if segment.shape[0]]

    def training_losses(
        self, model: Model, x1: Tensor, model_kwargs: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Loss of each sample of a batch.

        Args:
            model: called as model(x_t, t, **model_kwargs), returns a tensor like x_t. Where `takes_segments` its t is
                the list of `segments`, so that it spends one conditioning token on a synchronous sample.
            x1: (N, C, ...) data.
            model_kwargs: class labels and whatever else the model takes.

        Returns:
            {"pred": the model's output, "loss": (N,)}.

        Raises:
            ValueError: the model's output has another shape than it must have.
        """
        t, x0, x1 = self.sample(x1)
        t, xt, ut = self.path_sampler.plan(t, x0, x1)
        times: Tensor | list[Tensor] = self.segments(t)
        if not takes_segments(model):
            if len(times) > 1:
                warn_of_lost_segments(model)
            times = t
        settings, x = model_kwargs or {}, xt.to(x1.dtype)  # xt is float32 for bfloat16 data, as t is
        if self.difficulty:
            output, log_variance = call_with_log_variance(model, x, times, settings)
        else:
            output = _call(model, x, times, settings)

        if self.model_type is ModelType.VELOCITY:
            if self.compensates:
                ut = self.compensate_offdiagonal_ut(x1, xt, ut, t, x0)
            loss = mean_flat((output - ut) ** 2)
            if self.difficulty:
                loss = loss + self.difficulty * gaussian_nll(output.detach(), log_variance, ut)
            return {"pred": output, "loss": loss}

        sigma_t, _ = self.path_sampler.compute_sigma_t(expand_t_like_x(t, xt))
        if self.model_type is ModelType.DATA:
            return {"pred": output, "loss": mean_flat(self._data_weight(t, xt) * (output - x1) ** 2)}
        _, drift_var = self.path_sampler.compute_drift(xt, t)
        weight = {
            WeightType.NONE: torch.ones_like(sigma_t),
            WeightType.VELOCITY: (drift_var / sigma_t) ** 2,
            WeightType.LIKELIHOOD: drift_var / sigma_t**2,
        }[self.loss_type]
        error = output - x0 if self.model_type is ModelType.NOISE else output * sigma_t + x0
        return {"pred": output, "loss": mean_flat(weight * error**2)}

    def _data_weight(self, t: Tensor, xt: Tensor) -> Tensor:
        """The weight of a squared error of the data, of t's shape, with w = alpha' sigma - alpha sigma' (1 on Linear).

        NONE is 1. VELOCITY is (w / sigma)^2: the error is then that of the velocity. LIKELIHOOD is w alpha / sigma^3:
        the error is then that of the score, weighted by `compute_drift`'s var.
        """
        t = expand_t_like_x(t, xt)
        alpha_t, d_alpha_t = self.path_sampler.compute_alpha_t(t)
        sigma_t, d_sigma_t = self.path_sampler.compute_sigma_t(t)
        wronskian = d_alpha_t * sigma_t - alpha_t * d_sigma_t
        if self.loss_clamp:
            sigma_t = sigma_t.clamp_min(self.loss_clamp)
        return {
            WeightType.NONE: torch.ones_like(sigma_t),
            WeightType.VELOCITY: (wronskian / sigma_t) ** 2,
            WeightType.LIKELIHOOD: wronskian * alpha_t / sigma_t**3,
        }[self.loss_type]

    # ---- what the samplers integrate ---------------------------------------------------------------------------

    def get_drift(self) -> Field:
        """The probability-flow velocity as a function (x, t, model, **model_kwargs) -> tensor like x."""
        return self._field("velocity")

    def get_score(self) -> Field:
        """The score of the marginal at t as a function (x, t, model, **model_kwargs) -> tensor like x."""
        return self._field("score")

    def _field(self, wanted: str) -> Field:
        """The path's velocity or score, made of what the model predicts."""
        predicted = name_of(self.model_type, PREDICTIONS)

        def field(x: Tensor, t: Tensor, model: Model, **model_kwargs: Any) -> Tensor:
            output = _call(model, x, t, model_kwargs)
            if predicted == wanted:
                return output
            return getattr(self.path_sampler, f"get_{wanted}_from_{predicted}")(output, x, t)

        return field

    def get_velocity_and_score(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Velocity and score from one evaluation of the model, as a function (x, t, model, **model_kwargs) -> both."""
        velocity_of, score_of = self.get_drift(), self.get_score()

        def both(x: Tensor, t: Tensor, model: Model, **model_kwargs: Any) -> tuple[Tensor, Tensor]:
            output = _call(model, x, t, model_kwargs)
            return velocity_of(x, t, lambda *_: output), score_of(x, t, lambda *_: output)

        return both

    def prior_logp(self, z: Tensor) -> Tensor:
        """log N(z; 0, 1) of each sample, in nats: (N, ...) -> (N,)."""
        return -0.5 * (z**2 + math.log(2 * math.pi)).flatten(1).sum(1)

    def check_interval(
        self,
        train_eps: float,
        sample_eps: float,
        *,
        diffusion_form: str = "SBDM",
        sde: bool = False,
        reverse: bool = False,
        eval: bool = False,
        last_step_size: float = 0.0,
        evaluates_end: bool = True,
    ) -> tuple[float, float]:
        """The interval of t to draw from or to integrate over, (1, 0)-ordered when reversed.

        Linear and GVP keep eps from both ends, VP from t = 1 only; an SDE with a last step ends last_step_size short
        of 1. Where eps is 0 (below 1e-6, for float32) and a coefficient is infinite at an end, `SINGULAR_EPS` is kept:
        t = 0 for noise and score prediction and for SBDM diffusion on Linear and GVP; t = 1 for VP, and where the
        integrator evaluates the end (`evaluates_end`: Heun does, Euler does not) for data prediction and for an SDE
        without a last step.
        """
        eps = sample_eps if eval else train_eps
        converts = self.model_type in (ModelType.NOISE, ModelType.SCORE)
        divides = self.model_type is ModelType.DATA  # by sigma
        if self.path_type is PathType.VP:
            t0, singular_start, singular_end = 0.0, False, True
        else:
            t0, singular_start, singular_end = eps, converts or (sde and diffusion_form == "SBDM"), False
        t1 = 1 - last_step_size if sde and last_step_size > 0 else 1 - eps
        singular_end = singular_end or ((sde or divides) and evaluates_end) or (converts and not eval)
        if singular_start and t0 < 1e-6:  # 0 up to float32
            t0 = SINGULAR_EPS
        if singular_end and t1 > 1 - 1e-6:
            t1 = 1 - SINGULAR_EPS
        return (t1, t0) if reverse else (t0, t1)


def _call(model: Model, x: Tensor, t: Tensor | list[Tensor], model_kwargs: dict[str, Any]) -> Tensor:
    output = model(x, t, **model_kwargs)
    if output.shape != x.shape:
        raise ValueError(f"the model returned shape {tuple(output.shape)} for input of shape {tuple(x.shape)}")
    return output
