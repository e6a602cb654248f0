"""Samplers over a trained model: ODE, SDE, graded control by either, and the likelihood of data under the ODE.

Each method of `Sampler` returns a `SampleFn`: call it as fn(z, model, **model_kwargs).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .ahead import look_ahead
from .difficulty import call_with_log_variance
from .divergence import autograd_in_words, exact_divergence, hutchinson_divergence, outside_inference
from .graded import Graded, Grading, Synchronous, preservation_map
from .integrators import integrate_ode, integrate_sde
from .names import SCHEDULES, ComboStocType, ModelType
from .path import expand_t_like_x
from .settings import OdeSettings, SdeSettings, check_choice
from .shift import GridShift, grid_shift, shift_for
from .solvers import AHEAD_METHODS, ODE_SOLVERS, SDE_SOLVERS, SOLVERS
from .targets import Model, Transport


class SampleFn:
    """A sampler with fixed settings, a function of noise and a model. It counts evaluations of the model.

    It runs without autograd unless `grad`. The state and the times are kept in at least float32 (bfloat16 cannot tell
    250 steps apart); the model gets the state in z's dtype, and the sample comes back in it.

    Args:
        solve: integrates from noise, called as solve(z, model, **model_kwargs).
        grad, grad_checkpointing: see `Sampler.sample_ode`.

    Attributes:
        evaluations: the number of model evaluations that a call takes, None where an adaptive solver decides.
        nfe: the number of model evaluations in the last call.

    Raises:
        ValueError: grad_checkpointing without grad.
    """

    def __init__(
        self,
        solve: Callable[..., Sequence[Tensor]],
        evaluations: int | None,
        *,
        grad: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        if grad_checkpointing and not grad:
            raise ValueError("grad_checkpointing is for samplers with grad=True")
        self.solve = solve
        self.evaluations = evaluations
        self.grad = grad
        self.grad_checkpointing = grad_checkpointing
        self.nfe = 0

    def __call__(self, z: Tensor, model: Model, **model_kwargs: Any) -> Sequence[Tensor]:
        """Start from z (N, ...) and return a sequence that ends in the sample, of z's shape.

        Raises:
            FloatingPointError: an adaptive solver cannot go on, see `integrate_ode`.
        """
        self.nfe = 0
        state = z.to(torch.promote_types(z.dtype, torch.float32))

        def counted(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            self.nfe += 1
            if self.grad_checkpointing and torch.is_grad_enabled():
                output = checkpoint(model, x.to(z.dtype), t, use_reentrant=False, **kwargs)
            else:
                output = model(x.to(z.dtype), t, **kwargs)
            return output.to(state.dtype)

        with nullcontext() if self.grad else torch.no_grad():
            results = self.solve(state, counted, **model_kwargs)
        return [r.to(z.dtype) if r.shape == z.shape else r for r in results]


class Sampler:
    """The samplers of one `Transport`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def sample_ode(
        self,
        *,
        reverse: bool = False,
        trajectory: bool = False,
        grading: Grading | None = None,
        grad: bool = False,
        grad_checkpointing: bool = False,
        **settings: Any,
    ) -> SampleFn:
        """Integrate the probability-flow ODE dx = velocity dt from noise to data.

        Args:
            reverse: from data to noise.
            trajectory: return the states at all time points instead of the end state only.
            grading: what is kept of a reference; see `sample_graded`, which makes it.
            grad: keep the samples' derivatives in z, in the model's weights and in model_kwargs, for autograd.
            grad_checkpointing: with grad, evaluate the model again in the backward pass instead of keeping its
                activations: memory for a state and little more an evaluation.
            settings: those of `OdeSettings`.

        Raises:
            ValueError: a setting that is not accepted.
        """
        ode = OdeSettings(**settings)
        ahead = ode.sampling_method in AHEAD_METHODS  # whose steps are Euler's
        if ahead:
            self._check_ahead(ode.sampling_method, reverse)
        velocity = self.transport.get_drift()
        solver, steps = ODE_SOLVERS[ode.sampling_method], ode.num_steps - 1
        to_predicted_data = not reverse and self.transport.model_type is ModelType.DATA
        euler_last = solver.ends_by_euler(steps, to_predicted_data)
        t0, t1 = self.transport.check_interval(
            self.transport.train_eps,
            self.transport.sample_eps,
            eval=True,
            reverse=reverse,
            evaluates_end=reverse or (solver.reaches_end(steps) and not euler_last),
        )

        def solve(z: Tensor, model: Model, **model_kwargs: Any) -> list[Tensor]:
            course = self._course(grading, z, t0, t1, ode.num_steps)

            def evaluate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                return call_with_log_variance(model, x, t, model_kwargs)

            def plain(s: Tensor, x: Tensor) -> Tensor:
                return velocity(x, course.times(s), model, **model_kwargs) * course.rate(s)

            slope = look_ahead(evaluate, course, self.transport.combostoc_type) if ahead else plain
            method = "euler" if ahead else ode.sampling_method
            shift = self._grid_shift(z, t0, t1)

            def integrate(x: Tensor, method: str, start: float, end: float, points: int) -> list[Tensor]:
                """The states after x: all at the points, or the last."""
                leg = integrate_ode(
                    lambda s, state: (slope(s.expand(z.shape[0]), *state),),
                    (x,),
                    start,
                    end,
                    replace(ode, sampling_method=method, num_steps=points),
                    trajectory=trajectory,
                    shift=shift,
                )
                return [x for (x,) in (leg[1:] if trajectory else leg)]

            states = [course.begin(z)]
            if not euler_last:
                states += integrate(states[-1], method, t0, t1, ode.num_steps)
            else:
                # A predicted x1 is divided by sigma, which is 0 at the end. A step that evaluates its end would throw x
                # far away; Euler's lands on x1 (EDM, arXiv 2206.00364, algorithm 1, does the same).
                before = t1 - (t1 - t0) / steps
                if steps > 1:
                    states += integrate(states[-1], method, t0, before, steps)
                states += integrate(states[-1], "euler", before, t1, 2)
            return [course.end(x) for x in (states if trajectory else states[-1:])]

        evaluations = solver.count(steps, to_predicted_data)
        return SampleFn(solve, evaluations, grad=grad, grad_checkpointing=grad_checkpointing)

    def sample_sde(
        self,
        *,
        randn: Callable[[Tensor], Tensor] = torch.randn_like,
        trajectory: bool = False,
        grading: Grading | None = None,
        grad: bool = False,
        grad_checkpointing: bool = False,
        **settings: Any,
    ) -> SampleFn:
        """Integrate dx = [velocity + w score] dt + sqrt(2 w) dW from noise to data (SiT, equation 10).

        The model is evaluated once for the velocity and the score of a point.

        Args:
            randn: gives the noise of a step, one tensor like x a call.
            trajectory, grading, grad, grad_checkpointing: see `sample_ode`.
            settings: those of `SdeSettings`.

        Raises:
            ValueError: a setting that is not accepted.
        """
        sde = SdeSettings(**settings)
        solver, path = SDE_SOLVERS[sde.sampling_method], self.transport.path_sampler
        velocity_and_score = self.transport.get_velocity_and_score()
        t0, t1 = self.transport.check_interval(
            self.transport.train_eps,
            self.transport.sample_eps,
            diffusion_form=sde.diffusion_form,
            sde=True,
            eval=True,
            last_step_size=sde.last_step_size,
            evaluates_end=solver.evaluates_end,
        )
        if t1 <= t0:
            raise ValueError(f"last step size {sde.last_step_size} leaves nothing to integrate after t = {t0}")

        def diffusion(x: Tensor, t: Tensor) -> Tensor:
            return path.compute_diffusion(x, t, form=sde.diffusion_form, norm=sde.diffusion_norm)

        def solve(z: Tensor, model: Model, **model_kwargs: Any) -> list[Tensor]:
            course = self._course(grading, z, t0, t1, sde.num_steps)

            def drift(x: Tensor, t: Tensor) -> Tensor:
                velocity, score = velocity_and_score(x, t, model, **model_kwargs)
                return velocity + diffusion(x, t) * score

            states = integrate_sde(
                lambda x, s: drift(x, course.times(s)) * course.rate(s),
                lambda x, s: diffusion(x, course.times(s)) * course.rate(s),
                course.begin(z),
                t0,
                t1,
                method=sde.sampling_method,
                num_steps=sde.num_steps,
                randn=randn,
                trajectory=trajectory,
                shift=self._grid_shift(z, t0, t1),
            )
            if sde.last_step is not None:
                x = states[-1]
                t = course.times(torch.full(x.shape[:1], t1, device=x.device, dtype=x.dtype))
                velocity, score = velocity_and_score(x, t, model, **model_kwargs)
                if sde.last_step == "Mean":
                    x = x + (velocity + diffusion(x, t) * score) * course.last(sde.last_step_size)
                elif sde.last_step == "Euler":
                    x = x + velocity * course.last(sde.last_step_size)
                else:  # Tweedie: E[x1 | x_t] = (x_t + sigma_t^2 score) / alpha_t
                    alpha_t, _ = path.compute_alpha_t(expand_t_like_x(t, x))
                    sigma_t, _ = path.compute_sigma_t(expand_t_like_x(t, x))
                    x = (x + sigma_t**2 * score) / alpha_t
                states = [*states, x] if trajectory else [x]
            return [course.end(x) for x in states]

        evaluations = solver.count(sde.num_steps - 1, False)
        evaluations = None if evaluations is None else evaluations + (sde.last_step is not None)
        return SampleFn(solve, evaluations, grad=grad, grad_checkpointing=grad_checkpointing)

    def sample_graded(
        self,
        reference: Tensor,
        preserve: Tensor | float,
        *,
        mode: str = "ODE",
        schedule: str = "number",
        decompensate: bool = False,
        **settings: Any,
    ) -> SampleFn:
        """Generate anew what a map does not keep of a reference: see `transport.graded` for the mathematics.

        Args:
            reference: (N, C, ...) data, of the shape of the noise that the function is called with.
            preserve: how much of every entry is kept, a number or a tensor that broadcasts to the reference, from 0
                (the reference has no influence) to 1 (the entry comes back bit for bit). The model gets times of the
                map's shape, see `preservation_map`.
            mode: "ODE" or "SDE".
            schedule: "number" gives every entry the same number of steps, "size" steps of the same size (Euler only).
            decompensate: where a velocity model was trained with compensation (the transport says so) and times
                differ, integrate the velocity itself, see `Transport.decompensate_offdiagonal_ut`. It is exact where
                the model has one data point to choose from; trained models do better without (experiments/graded.py).
            settings: those of `sample_ode` or `sample_sde`.

        Raises:
            ValueError: a map that does not fit, leaves [0, 1] or holds NaN; a setting that is not among the choices.
        """
        check_choice("mode", mode, ("ODE", "SDE"))
        check_choice("schedule", schedule, SCHEDULES)
        if settings.get("reverse"):
            raise ValueError("graded control runs from noise to data; it has no reverse")
        euler = {"ODE": "euler", "SDE": "Euler"}[mode]
        if schedule == "size" and settings.setdefault("sampling_method", euler) != euler:
            method = settings["sampling_method"]
            raise ValueError(f"schedule 'size' takes Euler steps: {mode} by {euler!r}, not {method!r}")
        if schedule == "size" and (a := shift_for(self.transport.time_shift, reference.shape[1:])) != 1:
            raise ValueError(f"schedule 'size' takes steps of one size, which time shift {a:g} does not: take 1")
        grading = Grading(reference, preservation_map(preserve, reference), schedule)
        make = self.sample_ode if mode == "ODE" else self.sample_sde
        sampler = make(grading=grading, **settings)
        transport = self.transport
        times_differ = grading.preserve.numel() > len(reference) or settings.get("sampling_method") in AHEAD_METHODS
        if not (decompensate and transport.compensates and times_differ):
            return sampler

        def solve(z: Tensor, model: Model, **model_kwargs: Any) -> Sequence[Tensor]:
            def velocity(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
                output, channels = model(x, t, **kwargs), x.shape[1]
                plain = transport.decompensate_offdiagonal_ut(output[:, :channels], x, t)
                return torch.cat([plain, output[:, channels:]], 1)  # a log-variance, if there is one, stays

            return sampler.solve(z, velocity, **model_kwargs)

        return SampleFn(solve, sampler.evaluations, grad=sampler.grad, grad_checkpointing=sampler.grad_checkpointing)

    def _check_ahead(self, method: str, reverse: bool) -> None:
        transport = self.transport
        if transport.combostoc_type is ComboStocType.UNSYNC_NONE or not transport.difficulty:
            raise ValueError(
                f"{method} needs a model that was trained with difficulty, and with times that differ within a sample "
                f"(this one: {transport.combostoc_type.name}, difficulty {transport.difficulty:g})"
            )
        if reverse:
            raise ValueError(f"{method} runs from noise to data; it has no reverse")

    def _grid_shift(self, z: Tensor, t0: float, t1: float) -> GridShift | None:
        return grid_shift(shift_for(self.transport.time_shift, z.shape[1:]), t0, t1)

    def _course(self, grading: Grading | None, z: Tensor, s0: float, s1: float, num_steps: int) -> Synchronous | Graded:
        return Graded(self.transport.path_sampler, grading, z, s0, s1, num_steps) if grading else Synchronous()

    def sample_ode_likelihood(
        self, *, exact_trace: bool = False, probe: Tensor | None = None, **settings: Any
    ) -> SampleFn:
        """Log-likelihood of data under the ODE: log p(x1) = log N(x0) - int_0^1 div velocity dt.

        The function takes data x1 and returns (log-likelihood in nats (N,), the noise x0 it maps to). It derives the
        model's output by autograd whatever the caller's mode is, also in torch.inference_mode().

        Args:
            exact_trace: the divergence by one backward pass per dimension of x, for small inputs. By default
                Hutchinson's estimator with a single Rademacher probe, which stays the same over the whole solve so
                that the integrand is smooth (FFJORD, section 3.1).
            probe: the probe to use, of x1's shape.
            settings: those of `OdeSettings`.

        Raises:
            ValueError: a setting that is not accepted.
            RuntimeError: when the function is called, and the output has no derivative, as where the model switches
                autograd off or was itself made in torch.inference_mode().
        """
        check_choice("ODE method of a likelihood", settings.get("sampling_method", SOLVERS[0]), SOLVERS)
        ode = OdeSettings(**settings)
        transport = self.transport
        velocity = transport.get_drift()
        t0, t1 = transport.check_interval(transport.train_eps, transport.sample_eps, eval=True, reverse=True)

        @torch.inference_mode(False)
        def solve(x1: Tensor, model: Model, **model_kwargs: Any) -> tuple[Tensor, Tensor]:
            x1, model_kwargs = outside_inference(x1), {k: outside_inference(v) for k, v in model_kwargs.items()}
            v = torch.randint_like(x1, 2) * 2 - 1 if probe is None else outside_inference(probe)

            def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                with torch.enable_grad(), autograd_in_words():
                    x = state[0].detach().requires_grad_()
                    u = velocity(x, t.expand(x.shape[0]), model, **model_kwargs)
                    divergence = exact_divergence(u, x) if exact_trace else hutchinson_divergence(u, x, v)
                return u.detach(), divergence.detach()

            state = (x1, torch.zeros(x1.shape[0], device=x1.device, dtype=x1.dtype))
            shift = self._grid_shift(x1, t0, t1)
            x0, delta_logp = integrate_ode(field, state, t0, t1, ode, shift=shift)[-1]
            return transport.prior_logp(x0) + delta_logp, x0

        return SampleFn(solve, ODE_SOLVERS[ode.sampling_method].count(ode.num_steps - 1, False))
