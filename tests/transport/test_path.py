import math

import pytest
import torch

from tests.conftest import golden, relative_error
from transport import DIFFUSION_FORMS, GVPCPlan, ICPlan, VPCPlan, expand_t_like_x

PLANS = {"Linear": ICPlan(), "GVP": GVPCPlan(), "VP": VPCPlan()}
paths = pytest.mark.parametrize("path", PLANS)
G = golden("transport")


@paths
@pytest.mark.parametrize("kind", ["t_scalar", "t_full"])
def test_golden(path, kind):
    """Coefficients, points, conversions and diffusion forms are the predecessor's, for both shapes of t."""
    plan, t, x0, x1, v = PLANS[path], G[kind], G["x0"], G["x1"], G["v"]
    te = expand_t_like_x(t, x1)
    xt = plan.compute_xt(t, x0, x1)
    computed = {
        "alpha": plan.compute_alpha_t(te)[0],
        "d_alpha": plan.compute_alpha_t(te)[1],
        "sigma": plan.compute_sigma_t(te)[0],
        "d_sigma": plan.compute_sigma_t(te)[1],
        "xt": xt,
        "ut": plan.compute_ut(t, x0, x1, xt),
        "sde_drift_mean": plan.compute_drift(xt, t)[0],
        "sde_drift_var": plan.compute_drift(xt, t)[1],
        "score_from_velocity": plan.get_score_from_velocity(v, xt, t),
        "noise_from_velocity": plan.get_noise_from_velocity(v, xt, t),
        "velocity_from_score": plan.get_velocity_from_score(v, xt, t),
    }
    prefix = f"{path}/{kind}/"
    expected = {k.removeprefix(prefix): a for k, a in G.items() if k.startswith(prefix)}
    checked = 0
    for name, value in expected.items():
        if name == "ut_compensated":  # tests/test_transport.py
            continue
        if name.startswith("diffusion/"):
            _, form, norm = name.split("/")
            actual = plan.compute_diffusion(xt, t, form=form, norm=float(norm))
        else:
            actual = computed[name]
        assert relative_error(actual.reshape(value.shape) if actual.numel() == value.numel() else actual, value) < 1e-9
        checked += 1
    assert checked == len(computed) + 10


@paths
def test_derivatives_are_those_of_autograd(path):
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64, requires_grad=True)
    for coefficient in (PLANS[path].compute_alpha_t, PLANS[path].compute_sigma_t):
        value, derivative = coefficient(t)
        (expected,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-12)
    alpha, d_alpha = PLANS[path].compute_alpha_t(t)
    torch.testing.assert_close(PLANS[path].compute_d_alpha_alpha_ratio_t(t), d_alpha / alpha, rtol=1e-9, atol=1e-12)


@paths
def test_conversions_round_trip_with_a_time_per_element(path, seeded):
    plan = PLANS[path]
    x, velocity = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    t = torch.rand(3, 4, 5, 5, dtype=torch.float64) * 0.98 + 0.01
    score = plan.get_score_from_velocity(velocity, x, t)
    noise = plan.get_noise_from_velocity(velocity, x, t)
    for back in (plan.get_velocity_from_score(score, x, t), plan.get_velocity_from_noise(noise, x, t)):
        torch.testing.assert_close(back, velocity, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(plan.get_score_from_noise(noise, x, t), score, rtol=1e-9, atol=1e-12)


@paths
def test_noise_from_velocity_recovers_the_noise_of_a_pair(path, seeded):
    x0, x1 = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    t = torch.rand(3, 4, 5, 5, dtype=torch.float64) * 0.98 + 0.01
    _, xt, ut = PLANS[path].plan(t, x0, x1)
    torch.testing.assert_close(PLANS[path].get_noise_from_velocity(ut, xt, t), x0, rtol=1e-8, atol=1e-8)


def test_noise_from_velocity_is_finite_at_both_ends_where_the_path_is():
    """The predecessors divide by alpha' (0 at t = 1 for GVP); the conversion itself has no such singularity."""
    x0, x1 = torch.randn(2, 2, 3, dtype=torch.float64)
    for path in ("Linear", "GVP"):
        for end in (0.0, 1.0):
            t = torch.full((2,), end, dtype=torch.float64)
            _, xt, ut = PLANS[path].plan(t, x0, x1)
            torch.testing.assert_close(PLANS[path].get_noise_from_velocity(ut, xt, t), x0)


@paths
def test_path_runs_from_noise_to_data(path):
    x0, x1 = torch.randn(2, 4, 3)
    near_noise = PLANS[path].compute_xt(torch.zeros(4), x0, x1)
    torch.testing.assert_close(near_noise, x0, rtol=0, atol=0.02)  # alpha_0 = 0.0066 on VP
    torch.testing.assert_close(PLANS[path].compute_xt(torch.ones(4), x0, x1), x1, rtol=0, atol=1e-6)


@paths
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_diffusion_is_finite_and_not_negative_inside(path, form):
    x, t = torch.randn(50, 2), torch.linspace(0.001, 0.999, 50)
    w = PLANS[path].compute_diffusion(x, t, form=form, norm=0.7)
    assert w.shape == (50, 1) and w.isfinite().all() and (w >= 0).all()
    torch.sqrt(w)  # a tensor, also for the constant


def test_diffusion_forms_have_their_shapes_in_t():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x = torch.zeros(3, 1, dtype=torch.float64)
    expected = {
        "constant": [2, 2, 2],
        "sigma": [2, 1, 0],
        "linear": [2, 1, 0],
        "increasing-decreasing": [0, 2, 0],
        "decreasing": [0.25 * 9, 0.25, 0.25],
    }
    for form, values in expected.items():
        actual = ICPlan().compute_diffusion(x, t, form=form, norm=2.0).flatten()
        torch.testing.assert_close(actual, torch.tensor(values, dtype=torch.float64), atol=1e-12, rtol=0)


def test_unknown_diffusion_form_is_named():
    with pytest.raises(ValueError, match=r"'sgima'.*sigma"):
        ICPlan().compute_diffusion(torch.zeros(1, 1), torch.zeros(1), form="sgima")


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1, 1), (4, 3, 1, 1), (4, 1, 6, 5), (4, 3, 6, 5), (1, 1, 1, 1)])
def test_expand_t_like_x_keeps_values(shape):
    t, x = torch.rand(shape), torch.zeros(4, 3, 6, 5)
    expanded = expand_t_like_x(t, x)
    assert expanded.ndim == 4 and torch.equal(expanded.flatten(), t.flatten())
    assert (expanded + x).shape == x.shape


@pytest.mark.parametrize("shape", [(3,), (4, 3, 5), (4, 2, 1, 1), (4, 3, 6, 5, 1)])
def test_expand_t_like_x_refuses_what_does_not_broadcast(shape):
    with pytest.raises(ValueError, match="do not broadcast"):
        expand_t_like_x(torch.rand(shape), torch.zeros(4, 3, 6, 5))


def test_vp_sigma_keeps_its_digits_near_the_data():
    """In float32, 1 - exp(2 log alpha) loses most digits at t = 1 - 1e-4; sigma^2 is close to b0 (1 - t) there."""
    t = torch.tensor([1 - 1e-4])
    exact = math.sqrt(-math.expm1(2 * float(VPCPlan().log_alpha(t.double()))))
    assert abs(VPCPlan().compute_sigma_t(t)[0].item() / exact - 1) < 1e-3
