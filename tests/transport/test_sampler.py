import itertools
import math

import pytest
import torch

from tests.conftest import GaussianModel, golden, relative_error
from tests.transport.test_integrators import exact_moments_of_the_scheme
from transport import DIFFUSION_FORMS, FIXED_STEP_METHODS, LAST_STEPS, SDE_METHODS, Sampler, create_transport
from transport import sampler as sampler_module
from transport.solvers import ODE_SOLVERS, SOLVERS

G = golden("samplers")
PATHS = ["Linear", "GVP", "VP"]
PREDICTIONS = ["velocity", "score", "noise", "data"]
PAIRS = list(itertools.product(PATHS, PREDICTIONS))
MU, SD = 0.4, 0.6


def golden_case(path, prediction):
    eps = 0.0 if prediction == "velocity" and path != "VP" else 1e-3
    transport = create_transport(path, prediction, train_eps=eps, sample_eps=eps)
    return Sampler(transport), GaussianModel(transport.path_sampler, prediction, G["mu"], G["sd"])


def golden_names(mode, path, prediction):
    return [name for name in G if name.startswith(f"{mode}/{path}/{prediction}/")]


golden_pairs = pytest.mark.parametrize(
    ("path", "prediction"), sorted({tuple(k.split("/")[1:3]) for k in G if "/" in k})
)


@golden_pairs
def test_golden_ode(path, prediction):
    for name in golden_names("ode", path, prediction):
        *_, method, num_steps = name.split("/")
        sampler, model = golden_case(path, prediction)
        draw = sampler.sample_ode(sampling_method=method, num_steps=int(num_steps), atol=1e-6, rtol=1e-3)
        assert relative_error(draw(G["z"], model)[-1], G[name]) < (1e-2 if method == "dopri5" else 1e-4), name


@golden_pairs
def test_golden_sde(path, prediction):
    for name in golden_names("sde", path, prediction):
        *_, method, form, last_step = name.split("/")
        sampler, model = golden_case(path, prediction)
        settings = {"sampling_method": method, "diffusion_form": form, "diffusion_norm": 0.7, "num_steps": 13}
        settings |= {"last_step": None if last_step == "None" else last_step, "last_step_size": 0.04}
        torch.manual_seed(int(G["seed_sde"]))
        assert relative_error(sampler.sample_sde(**settings)(G["z"], model)[-1], G[name]) < 1e-4, name


# ---- every combination of settings, against the closed form --------------------------------------------------------


def gaussian(path, prediction, **kwargs):
    transport = create_transport(path, prediction, **kwargs)
    return transport, GaussianModel(transport.path_sampler, prediction, MU, SD)


@pytest.fixture
def integrated_once(monkeypatch):
    """What several settings of a sampler have in common is integrated once a test, which is most of their time.

    In common is: where from and where to, how, and fields that have the same values at the start, at three times on the
    way and at the end, bit for bit.
    """
    known: dict[tuple, list] = {}
    draws: dict[tuple, int] = {}

    def values(field, x, t0, t1):
        times = torch.linspace(t0, t1, 5, dtype=x.dtype)
        return [tuple(field(x + k, t.expand(len(x))).flatten().tolist()) for k, t in enumerate(times)]

    def ode(field, state, t0, t1, how, *, integrate=sampler_module.integrate_ode, **settings):
        (x,) = state
        fields = values(lambda x, t: field(t[0], (x,))[0], x, t0, t1)
        key = (t0, t1, how, *settings.items(), *x.flatten().tolist(), *fields)
        if key not in known:
            known[key] = integrate(field, state, t0, t1, how, **settings)
        return known[key]

    def sde(drift, diffusion, x, t0, t1, *, randn, integrate=sampler_module.integrate_sde, **settings):
        fields = values(drift, x, t0, t1) + values(diffusion, x, t0, t1)
        key = (t0, t1, *settings.items(), *x.flatten().tolist(), *fields)
        if key in known:
            for _ in range(draws[key]):  # as it would have
                randn(x)
            return known[key]
        draws[key] = 0

        def counted(x):
            draws[key] += 1
            return randn(x)

        known[key] = integrate(drift, diffusion, x, t0, t1, randn=counted, **settings)
        return known[key]

    monkeypatch.setattr(sampler_module, "integrate_ode", ode)
    monkeypatch.setattr(sampler_module, "integrate_sde", sde)


def drill_but(in_suite: bool) -> tuple:
    """The mark of a case that only `make drill` runs."""
    return () if in_suite else (pytest.mark.drill,)


def ode_settings():
    """All of them. In the suite is each solver, and each path with each prediction; the others: make drill."""
    for (m, method), (k, pair) in itertools.product(enumerate(SOLVERS), enumerate(PAIRS)):
        yield pytest.param(*pair, method, marks=drill_but(m % len(PAIRS) == k))


@pytest.mark.parametrize(("path", "prediction", "method"), list(ode_settings()))
@pytest.mark.usefixtures("integrated_once")
def test_every_ode_setting_is_right_and_reversible(path, prediction, method):
    """Noise maps to mu + sd z, also with eps given as 0, and back to the same noise."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for eps in (None, 0.0):
        transport, model = gaussian(path, prediction, sample_eps=eps)
        settings = {"sampling_method": method, "num_steps": 301 if method == "euler" else 61, "rtol": 1e-4}
        x = Sampler(transport).sample_ode(**settings)(z, model)[-1]
        torch.testing.assert_close(x, MU + SD * z, rtol=0, atol=0.02)
        back = Sampler(transport).sample_ode(**settings, reverse=True)(x, model)[-1]
        torch.testing.assert_close(back, z, rtol=0, atol=0.03)


def sde_settings():
    """All of them. In the suite is each path with each prediction, each method with each diffusion."""
    chosen = itertools.product(SDE_METHODS, DIFFUSION_FORMS)
    in_suite = [(*pair, *way) for pair, way in zip(PAIRS, chosen, strict=True)]
    for path, prediction in PAIRS:
        for form, method in itertools.product(DIFFUSION_FORMS, SDE_METHODS):
            case = (path, prediction, method, form)
            yield pytest.param(*case, marks=drill_but(case in in_suite))


@pytest.mark.parametrize(("path", "prediction", "method", "form"), list(sde_settings()))
@pytest.mark.usefixtures("integrated_once")
def test_every_sde_setting_has_the_right_moments(path, prediction, method, form):
    """The scheme's own moments, free of sampling error, are those of the marginal sent through the last step.

    Every last step is affine on Gaussian data. "Mean" and "Tweedie" leave out noise that the true SDE has, so their
    spread is that of their formula, not sd: 13 % less for "Mean" with the constant diffusion, for one.
    """
    for last_step, size, eps in itertools.product(LAST_STEPS, (0.04, 0.0), (None, 0.0)):
        transport, model = gaussian(path, prediction, sample_eps=eps)
        settings = {"sampling_method": method, "diffusion_form": form, "last_step": last_step, "last_step_size": size}
        mean, sd = exact_moments_of_the_scheme(transport, model, **settings, num_steps=121)
        expected_mean, expected_sd = MU, SD
        if last_step and size:
            expected_mean, expected_sd = after_last_step(transport, last_step, size, form)
        assert abs(mean - expected_mean) < 0.01, (settings, eps, mean, expected_mean)
        assert abs(sd / expected_sd - 1) < 0.03, (settings, eps, sd, expected_sd)


@pytest.mark.parametrize(
    ("path", "form", "last_step", "size", "left"),
    [
        ("Linear", "sigma", "Mean", 0.04, (0.97, 0.77)),
        ("Linear", "constant", "Mean", 0.04, (0.54, 3.23)),
        ("VP", "SBDM", "Mean", 0.04, (0.76, 0.35)),
        ("Linear", "constant", "Mean", 0.01, (0.90, 0.01)),
        ("Linear", "constant", "Euler", 0.04, (1.00, 1.02)),
    ],
)
def test_what_a_last_step_leaves_of_a_narrow_mode(path, form, last_step, size, left):
    """README's figures, for modes of standard deviation 0.3 and 0.1."""
    settings = {"diffusion_form": form, "last_step": last_step, "last_step_size": size, "num_steps": 250}
    for sd, expected in zip((0.3, 0.1), left, strict=True):
        transport = create_transport(path)
        model = GaussianModel(transport.path_sampler, "velocity", MU, sd)
        _, spread = exact_moments_of_the_scheme(transport, model, sampling_method="Euler", **settings)
        assert round(spread / sd, 2) == expected


def after_last_step(transport, last_step, size, form):
    """Mean and spread of the marginal at 1 - size after one last step, from its formula."""
    path = transport.path_sampler
    t = torch.tensor([1 - size], dtype=torch.float64)
    alpha, sigma = float(path.compute_alpha_t(t)[0]), float(path.compute_sigma_t(t)[0])
    mean, sd = alpha * MU, math.sqrt((alpha * SD) ** 2 + sigma**2)
    points = torch.tensor([[mean], [mean + sd]], dtype=torch.float64)
    velocity = GaussianModel(path, "velocity", MU, SD)(points, t.expand(2))
    score = GaussianModel(path, "score", MU, SD)(points, t.expand(2))
    if last_step == "Tweedie":
        end = (points + sigma**2 * score) / alpha
    else:
        w = path.compute_diffusion(points, t.expand(2), form=form) if last_step == "Mean" else 0
        end = points + size * (velocity + w * score)
    return float(end[0]), float(end[1] - end[0])


def test_sampled_moments_agree_within_sampling_error(seeded):
    """The same through real random numbers, the default settings of both modes."""
    transport, model = gaussian("Linear", "velocity")
    z = torch.randn(20000, 1)
    for sampler in (
        Sampler(transport).sample_ode(),
        Sampler(transport).sample_sde(diffusion_form="sigma", num_steps=100),
    ):
        x = sampler(z, model)[-1]
        assert abs(x.mean() - MU) < 4 * SD / math.sqrt(len(z)) + 2e-3
        assert abs(x.std() / SD - 1) < 4 / math.sqrt(2 * len(z)) + 0.01


# ---- likelihood ----------------------------------------------------------------------------------------------------


def true_logp(x):
    return torch.distributions.Normal(MU, SD).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("path", "prediction", "exact_trace"),
    [  # each pair by one of them; the other: make drill
        pytest.param(*pair, exact, marks=drill_but((k + k // 4) % 2 == exact))
        for (k, pair), exact in itertools.product(enumerate(PAIRS), (False, True))
    ],
)
def test_likelihood_of_a_gaussian(path, prediction, exact_trace, seeded):
    """Within 1 % of the truth. The Jacobian is diagonal, so that a single Rademacher probe is exact as well."""
    transport, model = gaussian(path, prediction)
    x = MU + SD * torch.randn(64, 2, 3, 3, dtype=torch.float64)
    sampler = Sampler(transport).sample_ode_likelihood(exact_trace=exact_trace, atol=1e-8, rtol=1e-6)
    logp, z = sampler(x, model)
    truth = true_logp(x)
    assert logp.shape == (64,) and z.shape == x.shape
    assert abs(logp.sum() / truth.sum() - 1) < 0.01
    assert (logp - truth).abs().max() < 0.02 * truth.abs().mean()
    torch.testing.assert_close(z, (x - MU) / SD, rtol=0, atol=0.03)  # data goes to the noise it came from


def test_likelihood_with_correlated_dimensions(seeded):
    """x1 = A z with A mixing the dimensions: Hutchinson is right on average over probes, the exact trace each time."""
    a = torch.tensor([[0.6, 0.4], [-0.3, 0.8]], dtype=torch.float64)
    covariance = a @ a.T

    def velocity(x, t):  # E[x1 - x0 | x_t] for x_t = t x1 + (1 - t) x0
        s = t[0]
        eye = torch.eye(2, dtype=x.dtype)
        gain = (s * covariance - (1 - s) * eye) @ torch.linalg.inv(s**2 * covariance + (1 - s) ** 2 * eye)
        return x @ gain.T

    sampler = Sampler(create_transport())
    x = torch.randn(50, 2, dtype=torch.float64) @ a.T
    truth = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=x.dtype), covariance).log_prob(x)
    exact, _ = sampler.sample_ode_likelihood(exact_trace=True, atol=1e-8, rtol=1e-8)(x, velocity)
    torch.testing.assert_close(exact, truth, rtol=1e-5, atol=1e-5)
    probes = [torch.tensor([[1.0, s]], dtype=x.dtype).expand(50, 2) for s in (1.0, -1.0)]
    # the two probes between them are exact: the cross terms of the trace have opposite signs
    both = [sampler.sample_ode_likelihood(probe=p, atol=1e-8, rtol=1e-8)(x, velocity)[0] for p in probes]
    assert (both[0] - both[1]).abs().min() > 1e-3
    torch.testing.assert_close((both[0] + both[1]) / 2, truth, rtol=1e-5, atol=1e-5)


def test_likelihood_uses_one_probe_per_solve(monkeypatch, seeded):
    """A probe redrawn at each evaluation makes the integrand rough and the adaptive solver crawl."""
    draws = []
    original = torch.randint_like
    monkeypatch.setattr(torch, "randint_like", lambda *a, **k: draws.append(1) or original(*a, **k))
    transport, model = gaussian("Linear", "velocity")
    sampler = Sampler(transport).sample_ode_likelihood()
    sampler(torch.randn(4, 3), model)
    assert len(draws) == 1 and sampler.nfe > 10


# ---- behaviour -----------------------------------------------------------------------------------------------------


def test_sampling_runs_without_autograd():
    transport, _ = gaussian("Linear", "velocity")
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def model(x, t):
        seen.append(torch.is_grad_enabled())
        return -x * weight

    z = torch.randn(3, 2)
    for sampler in (Sampler(transport).sample_ode(), Sampler(transport).sample_sde(num_steps=5)):
        assert not sampler(z, model)[-1].requires_grad
    assert seen and not any(seen)


@pytest.mark.parametrize("method", FIXED_STEP_METHODS)
@pytest.mark.parametrize("steps", [1, 20])
def test_a_predicted_image_is_where_fixed_steps_land(method, steps):
    """The prediction wavers, as a network's does: near t = 1, velocities by it are as large as one likes."""
    transport = create_transport("Linear", "data")
    seen = []

    def model(x, t):
        seen.append(0.5 + 0.1 * torch.sin(30 * t)[:, None].expand_as(x))
        return seen[-1]

    z = torch.randn(3, 2)
    sampler = Sampler(transport).sample_ode(sampling_method=method, num_steps=steps + 1)
    states = Sampler(transport).sample_ode(sampling_method=method, num_steps=steps + 1, trajectory=True)(z, model)
    (end,) = sampler(z, model)
    assert len(states) == steps + 1 and torch.equal(states[0], z) and torch.equal(states[-1], end)
    if ODE_SOLVERS[method].reaches_end(steps) or method == "euler":
        torch.testing.assert_close(end, seen[-1], atol=1e-5, rtol=0)  # by Euler, from the last point before t = 1
    elif steps > 1:
        assert (end - 0.5).abs().max() < 0.5  # by its own steps, of which none is at t = 1


def test_sde_trajectory_on_request():
    transport, model = gaussian("Linear", "velocity")
    z = torch.randn(3, 2)
    for last_step, states in (("Mean", 12), (None, 11)):
        settings = {"num_steps": 11, "diffusion_form": "sigma", "last_step": last_step}
        torch.manual_seed(1)
        end = Sampler(transport).sample_sde(**settings)(z, model)
        torch.manual_seed(1)
        trajectory = Sampler(transport).sample_sde(**settings, trajectory=True)(z, model)
        assert len(end) == 1 and len(trajectory) == states
        assert torch.equal(trajectory[0], z) and torch.equal(trajectory[-1], end[-1])


def test_half_precision_states_keep_float32_times():
    transport, model = gaussian("Linear", "velocity")
    times = []

    def bf16_model(x, t):
        times.append(t)
        return model(x.float(), t).to(x.dtype)

    z = torch.randn(2, 3, dtype=torch.bfloat16)
    for sampler in (Sampler(transport).sample_ode(sampling_method="euler"), Sampler(transport).sample_sde()):
        assert sampler(z, bf16_model)[-1].dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in times)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"sampling_method": "dopri"}, "'dopri'.*dopri5"),
        ({"num_steps": 1}, "at least 2.*got 1"),
        ({"atol": 0.0}, "atol.*positive"),
        ({"rtol": -1.0}, "rtol.*positive"),
    ],
)
def test_bad_ode_settings_are_named(kwargs, named):
    for make in (Sampler(create_transport()).sample_ode, Sampler(create_transport()).sample_ode_likelihood):
        with pytest.raises(ValueError, match=named):
            make(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"sampling_method": "euler"}, "'euler'.*Euler, Heun"),
        ({"diffusion_form": "sgima"}, "'sgima'.*sigma"),
        ({"last_step": "mean"}, "'mean'.*None, Mean, Tweedie, Euler"),
        ({"last_step_size": 1.0}, r"\[0, 1\).*1\.0"),
        ({"last_step_size": 0.9999}, "leaves nothing"),
        ({"num_steps": 0}, "at least 2.*got 0"),
        ({"diffusion_norm": -1.0}, "negative.*-1"),
        ({"diffusion_norm": math.nan}, "finite.*nan"),
    ],
)
def test_bad_sde_settings_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        Sampler(create_transport()).sample_sde(**kwargs)
