"""Graded control against closed forms: oracles for one data point, Gaussians, and the samplers it must agree with."""

import math
from itertools import cycle, product

import pytest
import torch

from models import ComboStoc, SiT
from tests.conftest import GaussianModel
from tests.test_models import random_model
from transport import DIFFUSION_FORMS, LAST_STEPS, SDE_METHODS, Sampler, create_transport
from transport.graded import Graded, Grading, preservation_map
from transport.sampler import SOLVERS

PATHS = ["Linear", "GVP", "VP"]
PREDICTIONS = ["velocity", "score", "noise", "data"]
paths = pytest.mark.parametrize("path", PATHS)
# Each path and each prediction, where they do not depend on each other.
some = pytest.mark.parametrize(
    ("path", "prediction"),
    [
        ("Linear", "velocity"),
        ("GVP", "velocity"),
        ("VP", "noise"),
        ("GVP", "score"),
        ("Linear", "data"),
        ("VP", "data"),
    ],
)
# Each path, prediction and schedule is in the suite; all of them with each other: make drill.
IN_SUITE = [
    *(("Linear", "velocity", "number"), ("Linear", "noise", "size"), ("GVP", "score", "size")),
    *(("GVP", "data", "number"), ("VP", "velocity", "size"), ("VP", "score", "number")),
]
scheduled = pytest.mark.parametrize(
    ("path", "prediction", "schedule"),
    [
        pytest.param(*case, marks=() if case in IN_SUITE else pytest.mark.drill)
        for case in product(PATHS, PREDICTIONS, ("number", "size"))
    ],
)
MU, SD = 0.4, 0.6


def samples(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def relative(end, x1):
    return ((end - x1).norm() / x1.norm()).item()


class Oracle:
    """What a model knows that has seen one data point: the compensated velocity of the noise that x came from."""

    def __init__(self, transport, x1):
        self.transport, self.x1 = transport, x1

    def __call__(self, x, t):
        path = self.transport.path_sampler
        alpha_t, _ = path.compute_alpha_t(t)
        sigma_t, _ = path.compute_sigma_t(t)
        x0 = (x - alpha_t * self.x1) / sigma_t.clamp_min(1e-9)
        return self.transport.compensate_offdiagonal_ut(self.x1, x, path.compute_ut(t, x0, self.x1), t, x0)


# ---- compensation and back -----------------------------------------------------------------------------------------


@paths
@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 1, 4, 4), (5, 3, 1, 1), (5, 1, 1, 1)])
def test_decompensation_inverts_compensation(path, shape, seeded):
    """For times of every shape, also where some are 0, or (but for VP, where u is infinite) 1."""
    transport = create_transport(path, combostoc_type="UNSYNC_ALL")
    x0, x1 = samples(2, 5, 3, 4, 4)
    t = torch.rand(shape, dtype=torch.float64)
    t[0] = 0.5
    if t[0].numel() > 1:
        t[1].flatten()[0], t[1].flatten()[1] = 0.0, 0.99 if path == "VP" else 1.0
    _, xt, ut = transport.path_sampler.plan(t, x0, x1)
    vt = transport.compensate_offdiagonal_ut(x1, xt, ut, t, x0)
    torch.testing.assert_close(transport.decompensate_offdiagonal_ut(vt, xt, t), ut, rtol=1e-7, atol=1e-7)


def test_decompensation_in_float32_and_of_nothing(seeded):
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    x0, x1 = torch.randn(2, 64, 4, 8, 8)
    t = torch.rand(64, 4, 8, 8)
    _, xt, ut = transport.path_sampler.plan(t, x0, x1)
    vt = transport.compensate_offdiagonal_ut(x1, xt, ut, t, x0)
    assert relative(transport.decompensate_offdiagonal_ut(vt, xt, t), ut) < 1e-5
    assert (transport.decompensate_offdiagonal_ut(torch.zeros_like(vt), xt, t) == 0).all()


def test_what_is_decompensated_is_what_was_compensated():
    """Velocity models with asynchronous times only, unless compensation was off."""
    for settings, expected in (
        ({"combostoc_type": "UNSYNC_ALL"}, True),
        ({"combostoc_type": "UNSYNC_NONE"}, False),
        ({"combostoc_type": "UNSYNC_ALL", "use_compensation": False}, False),
        ({"combostoc_type": "UNSYNC_ALL", "prediction": "noise"}, False),
    ):
        assert create_transport(**settings).compensates is expected


# ---- one data point ------------------------------------------------------------------------------------------------

WAYS = [("number", "euler"), ("number", "midpoint"), ("size", "euler")]


@pytest.mark.parametrize(("schedule", "method"), WAYS)
def test_an_oracle_of_one_data_point_lands_on_it_in_ten_steps(schedule, method, seeded):
    """Exactly with the velocity itself; the compensated field taken as it is misses by parts of a percent."""
    x1, z = samples(2, 8, 4, 8, 8)
    m = torch.rand(8, 4, 8, 8, dtype=torch.float64)
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    model = Oracle(transport, x1)
    errors = []
    for decompensate in (True, False):
        sampler = Sampler(transport).sample_graded(
            x1, m, schedule=schedule, decompensate=decompensate, sampling_method=method, num_steps=11
        )
        errors.append(relative(sampler(z, model)[-1], x1))
    assert errors[0] < 1e-4
    assert 1e-3 < errors[1] < 2e-2


@pytest.mark.parametrize(("path", "schedule"), [("GVP", "size"), ("VP", "number")])
def test_on_curved_paths_the_error_is_that_of_the_integrator(path, schedule, seeded):
    """First order for Euler, down to nothing, as it would not be with another field. Up to s = 0.9: VP is singular."""
    x1, z = samples(2, 4, 2, 4, 4)
    m = 0.8 * torch.rand(4, 2, 4, 4, dtype=torch.float64)
    transport = create_transport(path, combostoc_type="UNSYNC_ALL", sample_eps=0.1)
    errors = []
    for num_steps in (21, 41, 81):
        sampler = Sampler(transport).sample_graded(
            x1, m, schedule=schedule, decompensate=True, sampling_method="euler", num_steps=num_steps
        )
        _, t1 = transport.check_interval(0.0, 0.1, eval=True)
        end = m + t1 * (1 - m) if schedule == "number" else torch.full_like(m, t1)
        errors.append(relative(sampler(z, Oracle(transport, x1))[-1], transport.path_sampler.compute_xt(end, z, x1)))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7, errors


# ---- nothing kept, all kept ----------------------------------------------------------------------------------------

# Every solver; every pair of a method and a last step of the SDE, and every diffusion.
MODES = [("ODE", {"sampling_method": m, "num_steps": 5, "rtol": 0.1, "atol": 0.1}) for m in SOLVERS] + [
    ("SDE", {"sampling_method": method, "diffusion_form": form, "last_step": last, "num_steps": 5})
    for (method, last), form in zip(product(SDE_METHODS, LAST_STEPS), cycle(DIFFUSION_FORMS), strict=False)
]


@some
def test_nothing_kept_is_plain_sampling_bit_for_bit(path, prediction):
    transport = create_transport(path, prediction, combostoc_type="UNSYNC_ALL")
    model = GaussianModel(transport.path_sampler, prediction, MU, SD)
    z, reference = torch.randn(2, 3, 2, 4, 4)
    sampler = Sampler(transport)
    for mode, settings in MODES:
        torch.manual_seed(1)
        plain = (sampler.sample_ode if mode == "ODE" else sampler.sample_sde)(**settings)(z, model)[-1]
        nothing = ((0, "number"), (torch.zeros(4, 4), "number"))
        if settings["sampling_method"] in ("euler", "Euler"):
            nothing += ((0, "size"), (torch.zeros(4, 4), "size"))
        for preserve, schedule in nothing:
            torch.manual_seed(1)
            graded = sampler.sample_graded(reference, preserve, mode=mode, schedule=schedule, **settings)(z, model)[-1]
            assert torch.equal(graded, plain), (mode, settings, preserve, schedule)


@pytest.mark.parametrize("family", [SiT, ComboStoc])
@pytest.mark.parametrize("mode", ["ODE", "SDE"])
def test_nothing_kept_is_plain_sampling_with_a_transformer(family, mode):
    """A map of zeros in full size costs and computes what one time a sample does."""
    model = random_model(family).eval()
    z, reference = torch.randn(2, 2, 4, 8, 8)
    y = torch.tensor([1, 2])
    transport = create_transport(combostoc_type="UNSYNC_ALL" if family is ComboStoc else "UNSYNC_NONE")
    sampler = Sampler(transport)
    torch.manual_seed(1)
    plain = (sampler.sample_ode if mode == "ODE" else sampler.sample_sde)(num_steps=5)(z, model, y=y)[-1]
    torch.manual_seed(1)
    graded = sampler.sample_graded(reference, torch.zeros_like(z), mode=mode, num_steps=5)(z, model, y=y)[-1]
    assert torch.equal(graded, plain)


@some
def test_what_is_kept_comes_back_bit_for_bit(path, prediction, seeded):
    """Everywhere, or in some entries while others change, by every solver and diffusion."""
    transport = create_transport(path, prediction, combostoc_type="UNSYNC_ALL")
    model = GaussianModel(transport.path_sampler, prediction, MU, SD)
    z, reference = torch.randn(2, 3, 2, 4, 4)
    half = torch.rand(3, 2, 4, 4)
    half[..., :2] = 1
    for preserve in (1.0, half):
        for mode, settings in MODES:
            end = Sampler(transport).sample_graded(reference, preserve, mode=mode, **settings)(z, model)[-1]
            kept = torch.as_tensor(preserve).expand_as(z) == 1
            assert end.isfinite().all(), (mode, settings)
            assert torch.equal(end[kept], reference[kept]), (mode, settings)
            assert not (end[~kept] == reference[~kept]).any()


def test_every_state_of_a_trajectory_keeps_what_is_kept(seeded):
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    model = GaussianModel(transport.path_sampler, "velocity", MU, SD)
    z, reference = torch.randn(2, 3, 2, 4, 4)
    m = (torch.arange(4) < 2).float()
    for mode, count in (("ODE", 9), ("SDE", 10)):
        states = Sampler(transport).sample_graded(reference, m, mode=mode, num_steps=9, trajectory=True)(z, model)
        assert len(states) == count
        assert all(torch.equal(x[..., :2], reference[..., :2]) for x in states)
        assert torch.equal(states[0][..., 2:], z[..., 2:])


# ---- Gaussian data -------------------------------------------------------------------------------------------------


def random_map(schedule, *shape):
    """Up to 0.98; up to 0.8 for steps of one size, of which an entry near 1 takes but a few."""
    return 0.05 + (0.93 if schedule == "number" else 0.75) * torch.rand(shape, dtype=torch.float64)


def affine_flow(transport, x1, m):
    """Mean and standard deviation at t = 1 of the ODE from alpha_m x1 + sigma_m z, z ~ N(0, 1): the flow is affine."""
    alpha, sigma = transport.path_sampler.compute_alpha_t(m)[0], transport.path_sampler.compute_sigma_t(m)[0]
    spread = torch.sqrt((alpha * SD) ** 2 + sigma**2)
    return MU + SD * alpha * (x1 - MU) / spread, SD * sigma / spread


@scheduled
def test_the_ode_from_a_random_map_has_the_conditional_mean_and_variance(path, prediction, schedule, seeded):
    transport = create_transport(path, prediction, combostoc_type="UNSYNC_NONE")
    model = GaussianModel(transport.path_sampler, prediction, MU, SD)
    x1, m = MU + SD * samples(1, 2, 3, 3), random_map(schedule, 1, 2, 3, 3)
    n = 1000
    settings = {"sampling_method": "euler", "num_steps": 201} if schedule == "size" else {"rtol": 1e-5}
    sampler = Sampler(transport).sample_graded(x1.expand(n, -1, -1, -1), m, schedule=schedule, **settings)
    end = sampler(samples(n, 2, 3, 3), model)[-1]
    mean, sd = affine_flow(transport, x1[0], m[0])
    assert ((end.mean(0) - mean).abs() < 4.5 * sd / math.sqrt(n) + 4e-3).all()
    assert ((end.std(0) / sd - 1).abs() < 4.5 / math.sqrt(2 * n) + 0.02).all()


@scheduled
def test_the_sde_from_a_random_map_has_the_conditional_mean_and_variance(path, prediction, schedule, seeded):
    """y = (x - alpha mu) / spread is a stationary process that forgets: y_1 = rho y_m + sqrt(1 - rho^2) noise, with
    rho = exp(- int_m^1 w / spread^2 dt)."""
    transport = create_transport(path, prediction, combostoc_type="UNSYNC_NONE", sample_eps=1e-3)
    plan = transport.path_sampler
    model = GaussianModel(plan, prediction, MU, SD)
    x1, m = MU + SD * samples(1, 2, 3, 3), random_map(schedule, 1, 2, 3, 3)
    n = 1000
    settings = {"diffusion_form": "sigma", "last_step_size": 0.005, "last_step": "Euler", "num_steps": 201}
    sampler = Sampler(transport).sample_graded(x1.expand(n, -1, -1, -1), m, mode="SDE", schedule=schedule, **settings)
    end = sampler(samples(n, 2, 3, 3), model)[-1]

    t = torch.lerp(m[0], torch.ones_like(m[0]), torch.linspace(0, 1, 2001, dtype=m.dtype)[:, None, None, None])
    spread2 = (plan.compute_alpha_t(t)[0] * SD) ** 2 + plan.compute_sigma_t(t)[0] ** 2
    forgotten = torch.trapezoid(plan.compute_diffusion(t, t, form="sigma") / spread2, t, dim=0)
    rho = torch.exp(-forgotten)
    mean, sd = affine_flow(transport, x1[0], m[0])
    mean, sd = MU + rho * (mean - MU), torch.sqrt((rho * sd) ** 2 + (1 - rho**2) * SD**2)
    assert ((end.mean(0) - mean).abs() < 4.5 * sd / math.sqrt(n) + 6e-3).all()
    assert ((end.std(0) / sd - 1).abs() < 4.5 / math.sqrt(2 * n) + 0.03).all()


@pytest.mark.parametrize("mode", ["ODE", "SDE"])
def test_correlated_data_keep_their_covariance(mode, seeded):
    """References from the data and a map over them: what is generated has the data's joint distribution with what is
    kept, by the exact model of correlated Gaussian data at any times."""
    a = torch.tensor([[0.9, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.4, 0.3, 0.6]], dtype=torch.float64)
    covariance = a @ a.T
    m = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)

    def velocity(x, t):  # E[x1 - x0 | x] for x = t x1 + (1 - t) x0, with the same times in all samples
        t = t[0]
        joint = t[:, None] * covariance * t + torch.diag((1 - t) ** 2)
        return x @ torch.linalg.solve(joint, (covariance * t - torch.diag(1 - t)).T)

    n = 20000
    reference = samples(n, 3) @ a.T
    settings = {"rtol": 1e-5} if mode == "ODE" else {"diffusion_form": "sigma", "num_steps": 251}
    sampler = Sampler(create_transport()).sample_graded(reference, m, mode=mode, **settings)
    end = sampler(samples(n, 3), velocity)[-1]
    assert torch.equal(end[:, 0], reference[:, 0])
    torch.testing.assert_close(torch.cov(end.T), covariance, rtol=0, atol=0.04)


# ---- what it costs, and what is refused ----------------------------------------------------------------------------


def times_seen(preserve, schedule="number", shape=(2, 4, 8, 8), **settings):
    seen = []
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    reference = torch.randn(shape)
    sampler = Sampler(transport).sample_graded(
        reference, preserve, schedule=schedule, sampling_method="euler", num_steps=5, **settings
    )
    sampler(torch.randn(shape), lambda x, t: seen.append(t) or torch.zeros_like(x))
    return seen


def test_times_have_the_smallest_shape_that_tells_them_apart():
    """One time a sample costs the model one token, whatever shape the map was given in."""
    rows = torch.linspace(0, 1, 8)[:, None]
    channels = torch.tensor([0.9, 0.9, 0.2, 0.2])[:, None, None]
    each = torch.tensor([0.1, 0.7])[:, None, None, None]
    for preserve, shape in (
        (0.5, (2, 1, 1, 1)),
        (torch.full((2, 4, 8, 8), 0.5), (2, 1, 1, 1)),
        (each.expand(2, 4, 8, 8), (2, 1, 1, 1)),
        (channels, (2, 4, 1, 1)),
        (rows, (2, 1, 8, 8)),
        (rows * channels, (2, 4, 8, 8)),
    ):
        seen = times_seen(preserve)
        assert {tuple(t.shape) for t in seen} == {shape}
        torch.testing.assert_close(seen[0].expand(2, 4, 8, 8), torch.as_tensor(preserve).expand(2, 4, 8, 8))


def test_number_and_size_step_as_they_say():
    """Everywhere as many steps; or steps of a quarter until 1 is reached, the last one shorter."""
    m = torch.tensor([[0.0, 0.4, 0.9, 1.0]])[:, None, None].expand(1, 1, 4, 4)
    number = [t[0, 0, 0].tolist() for t in times_seen(m, shape=(1, 1, 4, 4))]
    size = [t[0, 0, 0].tolist() for t in times_seen(m, "size", shape=(1, 1, 4, 4))]
    assert number == [pytest.approx([s, 0.4 + 0.6 * s, 0.9 + 0.1 * s, 1], abs=1e-5) for s in (0, 0.25, 0.5, 0.75)]
    assert size == [
        pytest.approx(t, abs=1e-5) for t in ([0, 0.4, 0.9, 1], [0.25, 0.65, 1, 1], [0.5, 0.9, 1, 1], [0.75, 1, 1, 1])
    ]


def test_the_steps_of_one_size_add_up_to_the_whole_way():
    m = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    z = samples(2, 3, 4, 4)
    grading = Grading(z, preservation_map(m, z), "size")
    for s1, steps, rest in ((1.0, 10, 0.0), (0.96, 37, 0.04)):
        course = Graded(create_transport().path_sampler, grading, z, 0.0, s1, steps + 1)
        s = torch.linspace(0, s1, steps + 1, dtype=torch.float64)[:-1]
        way = sum(course.rate(torch.full((2,), float(k), dtype=torch.float64)) for k in s) * course.step
        torch.testing.assert_close(m + way + (course.last(rest) if rest else 0), torch.ones_like(m))


def test_other_dimensions_than_four(seeded):
    """Sequences (N, L, V) and videos (N, C, T, H, W)."""
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    for shape in ((3, 5, 7), (2, 3, 4, 5, 6), (4, 6)):
        x1, z = samples(2, *shape)
        m = torch.rand(shape, dtype=torch.float64)
        sampler = Sampler(transport).sample_graded(x1, m, decompensate=True, sampling_method="euler", num_steps=11)
        assert relative(sampler(z, Oracle(transport, x1))[-1], x1) < 1e-4


@pytest.mark.parametrize(
    ("preserve", "message"),
    [
        (torch.zeros(3, 3), r"map of shape \(3, 3\) does not broadcast to the reference's \(2, 4, 8, 8\)"),
        (torch.zeros(1, 2, 4, 8, 8), r"shape \(1, 2, 4, 8, 8\) does not broadcast"),
        (1.5, r"runs from 1.5 to 1.5; its values must lie in \[0, 1\]"),
        (torch.linspace(-0.5, 0.5, 8), r"runs from -0.5 to 0.5; its values must lie in \[0, 1\]"),
        (torch.tensor([[float("nan")] * 8]), r"holds NaN; its values must lie in \[0, 1\]"),
        (float("inf"), "runs from inf to inf"),
    ],
)
def test_maps_that_do_not_fit_are_refused(preserve, message):
    with pytest.raises(ValueError, match=message):
        Sampler(create_transport()).sample_graded(torch.zeros(2, 4, 8, 8), preserve)


def test_settings_that_do_not_fit_are_refused():
    sampler, reference = Sampler(create_transport()), torch.zeros(2, 4, 8, 8)
    for settings, message in (
        ({"mode": "PDE"}, "unknown mode 'PDE'; choose from ODE, SDE"),
        ({"schedule": "equal"}, "unknown schedule 'equal'; choose from number, size"),
        ({"schedule": "size", "sampling_method": "dopri5"}, "ODE by 'euler', not 'dopri5'"),
        ({"schedule": "size", "mode": "SDE", "sampling_method": "Heun"}, "SDE by 'Euler', not 'Heun'"),
        ({"reverse": True}, "no reverse"),
        ({"sampling_method": "rk45"}, "unknown ODE method 'rk45'"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.sample_graded(reference, 0.5, **settings)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 4, 8, 8\), the reference \(2, 4, 8, 8\)"):
        sampler.sample_graded(reference, 0.5)(torch.zeros(1, 4, 8, 8), lambda x, t: x)
    with pytest.raises(ValueError, match="SiT takes one timestep per sample"):
        model = random_model(SiT).eval()
        m = torch.rand(8, 8)
        sampler.sample_graded(reference, m)(reference, model, y=torch.tensor([1, 2]))
