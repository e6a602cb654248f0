"""Convergence orders, measured on the Gaussian case where the flow and the moments have closed forms."""

import math
import warnings

import pytest
import torch

from tests.conftest import GaussianModel
from transport import ADAPTIVE_METHODS, FIXED_STEP_METHODS, Sampler, create_transport
from transport.integrators import integrate_ode
from transport.settings import OdeSettings
from transport.solvers import ODE_SOLVERS

MU, SD = 0.4, 0.6


def gaussian(path="Linear", prediction="velocity", **kwargs):
    transport = create_transport(path, prediction, **kwargs)
    return transport, GaussianModel(transport.path_sampler, prediction, MU, SD)


def slope(errors: list[float], steps: list[int]) -> float:
    """Least-squares slope of log error against log step count, sign turned: the order."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


ONE_STEP_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4")


def exact_flow(transport, z: torch.Tensor, t0: float, t1: float) -> torch.Tensor:
    """For Gaussian data the ODE carries the marginal at t0 to that at t1 by an affine map."""
    ends = torch.tensor([t0, t1], dtype=z.dtype)
    alpha, sigma = transport.path_sampler.compute_alpha_t(ends)[0], transport.path_sampler.compute_sigma_t(ends)[0]
    sd = torch.sqrt((alpha * SD) ** 2 + sigma**2)
    return alpha[1] * MU + sd[1] / sd[0] * (z - alpha[0] * MU)


@pytest.mark.parametrize(("path", "t0"), [("GVP", 0.15), ("VP", 0.0)])
@pytest.mark.parametrize("method", ONE_STEP_METHODS)
def test_order_of_the_fixed_step_methods(path, t0, method):
    """Not on Linear, where the Gaussian flow is a conic and the midpoint rule gains an order by symmetry."""
    transport, model = gaussian(path, sample_eps=0.15)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    expected = exact_flow(transport, z, t0, 0.85)
    steps = [32, 64, 128]
    errors = []
    for n in steps:
        end = Sampler(transport).sample_ode(sampling_method=method, num_steps=n + 1)(z, model)[-1]
        errors.append(float((end - expected).abs().max()))
    assert abs(slope(errors, steps) - ODE_SOLVERS[method].order) < 0.3, errors


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "fixed_adams"])
def test_multistep_methods_are_of_high_order(method):
    """Third order for the explicit one, more for the implicit ones, once they have a history."""
    transport, model = gaussian()
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for n in (16, 64):
        sampler = Sampler(transport).sample_ode(sampling_method=method, num_steps=n + 1, atol=1e-8, rtol=1e-8)
        errors.append(float((sampler(z, model)[-1] - (MU + SD * z)).abs().max()))
    assert math.log(errors[0] / errors[1]) / math.log(4) > 2.5 and errors[1] < 1e-4, errors


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_adaptive_methods_keep_their_tolerance(method):
    transport, model = gaussian()
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    evaluations = []
    for tolerance in (1e-3, 1e-6):
        sampler = Sampler(transport).sample_ode(sampling_method=method, atol=tolerance, rtol=tolerance)
        error = float((sampler(z, model)[-1] - (MU + SD * z)).abs().max())
        assert error < 100 * tolerance
        evaluations.append(sampler.nfe)
    assert evaluations[0] < evaluations[1]


@pytest.mark.parametrize("path", ["Linear", "GVP"])
def test_dopri8_lands_on_the_end(path):
    """Its interpolant is of low order: reading the end off it costs 0.03 on GVP at these tolerances."""
    transport, model = gaussian(path)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    end = Sampler(transport).sample_ode(sampling_method="dopri8")(z, model)[-1]
    assert (end - (MU + SD * z)).abs().max() < 1e-4


def exact_moments_of_the_scheme(transport, model, z0_std: float = 1.0, **settings) -> tuple[float, float]:
    """Mean and standard deviation of an SDE scheme's end, without sampling error.

    On Gaussian data every step is affine in the state and its noise, so the response to a unit impulse in each of
    them, run as one batch, gives the variance: the sum of squared responses.
    """
    steps = settings["num_steps"] - 1
    batch = steps + 2  # [no impulse, impulse in z, impulse in the noise of step 0, 1, ...]
    calls = iter(range(steps))

    def impulse(x: torch.Tensor) -> torch.Tensor:
        noise = torch.zeros_like(x)
        noise[2 + next(calls)] = 1
        return noise

    z = torch.zeros(batch, 1, dtype=torch.float64)
    z[1] = z0_std
    end = Sampler(transport).sample_sde(randn=impulse, **settings)(z, model)[-1][:, 0]
    assert next(calls, None) is None  # one noise a step, no more
    return float(end[0]), float((end[1:] - end[0]).square().sum().sqrt())


@pytest.mark.parametrize("method", ["Euler", "Heun"])
def test_weak_order_of_the_sde_steps(method):
    """Both converge with order 1 in mean and standard deviation to those of the marginal at the end, t = 0.9."""
    transport, model = gaussian(sample_eps=0.1)  # stops at t = 0.9, away from the singular score
    t0, t1 = 0.1, 0.9
    mean, sd = t1 * MU, math.sqrt((t1 * SD) ** 2 + (1 - t1) ** 2)
    sd_start = math.sqrt((t0 * SD) ** 2 + (1 - t0) ** 2)
    steps = [64, 128, 256]
    errors = []
    for n in steps:
        m, s = exact_moments_of_the_scheme(
            transport,
            model,
            z0_std=sd_start,
            sampling_method=method,
            diffusion_form="sigma",
            last_step=None,
            num_steps=n + 1,
        )
        # z has mean 0 where the marginal at t0 has t0 MU: a decaying offset, the same for every n
        errors.append((m, s))
    assert abs(slope([abs(s - sd) for _, s in errors], steps) - 1) < 0.1
    differences = [abs(errors[0][0] - errors[1][0]), abs(errors[1][0] - errors[2][0])]
    order_of_mean = math.log2(differences[0] / differences[1])
    assert order_of_mean > 0.9
    assert abs(errors[-1][0] - mean) < 0.05


def test_heun_has_order_two_without_noise():
    """With the diffusion at zero the SDE is the ODE and Heun's step the trapezoidal rule."""
    transport, model = gaussian(sample_eps=0.1)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    reference = Sampler(transport).sample_ode(sampling_method="rk4", num_steps=401)(z, model)[-1]
    for method, order in (("Euler", 1), ("Heun", 2)):
        steps = [16, 32, 64]
        errors = []
        for n in steps:
            end = Sampler(transport).sample_sde(
                sampling_method=method, diffusion_form="constant", diffusion_norm=0.0, last_step=None, num_steps=n + 1
            )(z, model)[-1]
            errors.append(float((end - reference).abs().max()))
        assert abs(slope(errors, steps) - order) < 0.2


@pytest.mark.parametrize("method", FIXED_STEP_METHODS + ADAPTIVE_METHODS)
def test_only_the_end_is_kept_and_it_is_the_end_of_the_trajectory(method):
    transport, model = gaussian()
    z = torch.linspace(-2, 2, 5)[:, None]
    end = Sampler(transport).sample_ode(sampling_method=method, num_steps=12)(z, model)
    states = Sampler(transport).sample_ode(sampling_method=method, num_steps=12, trajectory=True)(z, model)
    assert len(end) == 1 and len(states) == 12
    assert torch.equal(states[0], z)
    torch.testing.assert_close(states[-1], end[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", FIXED_STEP_METHODS + ADAPTIVE_METHODS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_model_is_asked_for_times_of_the_interval_only(method, reverse):
    """Also by a method that looks for its first step, which a slow field makes long."""
    for slowness in (1, 1e-3):
        transport, model = gaussian("VP", "noise")  # beyond t = 1 the noise's level is not a number
        asked = []

        def slow(x, t, model=model, slowness=slowness, asked=asked):
            asked.append(t)
            return model(x, t) * slowness

        sampler = Sampler(transport).sample_ode(sampling_method=method, num_steps=20, reverse=reverse)
        end = sampler(torch.linspace(-2, 2, 9)[:, None], slow)[-1]
        assert end.isfinite().all()
        assert torch.cat(asked).min() >= 0 and torch.cat(asked).max() <= torch.tensor(1 - transport.sample_eps)


def test_dopri5_lands_on_the_end():
    """Within its tolerance of the closed form, where interpolating back is 4e-3 off on VP."""
    for path in ("Linear", "GVP", "VP"):
        transport, model = gaussian(path, "noise", sample_eps=1e-3)
        z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        t0, t1 = transport.check_interval(transport.train_eps, transport.sample_eps, eval=True)
        end = Sampler(transport).sample_ode()(z, model)[-1]
        expected = exact_flow(transport, z, t0, t1)
        assert (end - expected).abs().max() < 3e-3 * expected.abs().max()
        tight = Sampler(transport).sample_ode(rtol=1e-8, atol=1e-8)(z, model)[-1]
        torch.testing.assert_close(tight, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_an_adaptive_method_that_cannot_go_on_says_where(method):
    transport, _ = gaussian()
    z = torch.linspace(-2, 2, 5)[:, None]

    def breaks(x, t):
        return torch.where(t[:, None] > 0.5, torch.nan, -x)

    for make in (Sampler(transport).sample_ode, Sampler(transport).sample_ode_likelihood):
        with pytest.raises(FloatingPointError, match=rf"^{method} cannot take its step to t = .*not finite"):
            make(sampling_method=method)(z, breaks)

    def wrong(x, t):
        raise AssertionError("of the model itself")

    with pytest.raises(AssertionError, match="of the model itself"):
        Sampler(transport).sample_ode(sampling_method=method)(z, wrong)


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_an_adaptive_method_ends_where_its_tolerances_cannot_be_met(method):
    """Each step is one rounding long, or is tried again and again."""
    taken = 0

    def field(t, state):
        nonlocal taken
        taken += 1
        return (torch.sin(3 * state[0]) - t,)

    settings = OdeSettings(method, num_steps=2, atol=1e-13, rtol=1e-13, max_evaluations=200)
    with (
        pytest.warns(UserWarning, match=r"atol 1e-13 and rtol 1e-13 are less than float32 resolves, 1.2e-07"),
        pytest.raises(
            FloatingPointError, match=rf"{method} is at t = .* after 200 evaluations .* larger max_evaluations"
        ),
    ):
        integrate_ode(field, (torch.randn(4, 5),), 0.0, 1.0, settings)
    assert taken == 200


@pytest.mark.parametrize(
    ("atol", "rtol", "dtype"),
    [(1e-12, 1e-3, torch.float32), (1e-6, 1e-9, torch.float32), (1e-10, 1e-10, torch.float64)],
)
def test_tolerances_that_can_be_met_are_not_warned_of(atol, rtol, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = (torch.ones(3, dtype=dtype),)
        ((end,),) = integrate_ode(lambda t, s: (-s[0],), x, 0.0, 1.0, OdeSettings("dopri5", 2, atol, rtol))
    torch.testing.assert_close(end, torch.full((3,), math.exp(-1), dtype=dtype), atol=1e-3, rtol=1e-3)
