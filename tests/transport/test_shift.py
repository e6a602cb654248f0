"""The shift of times against closed forms: of times, of a Gaussian's samples, of the clamped loss."""

import math

import pytest
import torch
from torchdiffeq import odeint

from tests.conftest import GaussianModel
from transport import Sampler, create_transport
from transport.shift import shift_for, shifted

MU, SD = 0.4, 0.6
TYPES = ["UNSYNC_NONE", "UNSYNC_PATCH", "UNSYNC_ALL"]


@pytest.mark.parametrize(
    ("shape", "a"), [((4, 32, 32), 1), ((768, 16, 16), 6.928), ((3, 16, 16), 0.433), ((5, 13), 0.126)]
)
def test_auto_is_the_root_of_the_size(shape, a):
    assert shift_for("auto", shape) == pytest.approx(a, abs=1e-3) and shift_for(3.0, shape) == 3.0


def test_shifted_times():
    """Odds t / (1 - t) are divided by A, so that one shift undoes another; the ends stay, bit for bit."""
    t = torch.linspace(0, 1, 11)
    for a in (0.3, 4.0, 6.93):
        moved = shifted(t, a)
        torch.testing.assert_close(moved, t / (a - (a - 1) * t))
        torch.testing.assert_close(shifted(moved, 1 / a), t)
        assert moved[0] == 0 and moved[-1] == 1 and (moved.diff() > 0).all()
    assert shifted(t, 1) is t


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("times", ["combostoc", "diffusion-forcing", "logit-normal:0.5,1"])
def test_drawn_times_are_shifted_and_nothing_else_is(kind, times):
    """Every draw, half-mixed ones too; auto by the size of the data; off it is the draw of old, bit for bit."""
    x1, drawn = torch.zeros(6, 4, 64, 64), []  # auto: 2
    for setting in ({}, {"time_shift": 1.0}, {"time_shift": 2.0}, {"time_shift": "auto"}):
        torch.manual_seed(0)
        drawn.append(create_transport(combostoc_type=kind, times=times, **setting).sample(x1)[:2])
    (plain, noise), (off, _), (two, same_noise), (auto, _) = drawn
    assert torch.equal(plain, off) and torch.equal(noise, same_noise) and torch.equal(two, auto)
    assert torch.equal(two, shifted(plain, 2.0)) and not torch.equal(two, plain)


def test_the_mean_of_shifted_uniform_times(seeded):
    """A / (A - 1)^2 log A - 1 / (A - 1)."""
    for a in (0.25, 4.0):
        t, *_ = create_transport(time_shift=a).sample(torch.zeros(200_000, 1))
        assert t.mean().item() == pytest.approx(a / (a - 1) ** 2 * math.log(a) - 1 / (a - 1), abs=3e-3)


def asked_times(transport, mode, prediction="velocity", **settings):
    model, asked = GaussianModel(transport.path_sampler, prediction, MU, SD), []

    def recorded(x, t):
        asked.append(float(t.flatten()[0]))
        return model(x, t)

    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    end = getattr(Sampler(transport), f"sample_{mode}")(**settings)(z, recorded)[-1]
    return asked, z, end


def test_fixed_steps_are_taken_at_shifted_points():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    asked, *_ = asked_times(create_transport(time_shift=4.0), "ode", sampling_method="euler", num_steps=9)
    assert asked == pytest.approx(shifted(t, 4.0)[:-1].tolist())
    asked, *_ = asked_times(create_transport(time_shift=4.0), "ode", sampling_method="euler", num_steps=9, reverse=True)
    assert asked == pytest.approx(shifted(t, 4.0).flip(0)[:-1].tolist())
    asked, *_ = asked_times(create_transport(time_shift=4.0), "sde", diffusion_form="sigma", num_steps=9)
    assert asked == pytest.approx([*(0.96 * shifted(t, 4.0)).tolist()])  # the last one without noise
    # Of predicted data Euler's last step is from the last point before the end.
    settings = {"sampling_method": "heun2", "num_steps": 9, "prediction": "data"}
    asked, *_ = asked_times(create_transport("Linear", "data", time_shift=4.0), "ode", **settings)
    assert max(asked) == pytest.approx(float(shifted(t, 4.0)[-2]))


@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("a", [0.3, 5.0])
def test_samples_are_those_of_the_gaussian_whatever_the_shift(path, prediction, a):
    transport = create_transport(path, prediction, time_shift=a)
    for method in ("heun2", "heun3"):
        settings = {"sampling_method": method, "num_steps": 101, "prediction": prediction}
        _, z, end = asked_times(transport, "ode", **settings)
        torch.testing.assert_close(end, MU + SD * z, rtol=0, atol=0.03)
    kept = Sampler(transport).sample_graded(torch.ones(9, 1), 0.5, sampling_method="heun2", num_steps=11)
    assert kept(z.float(), GaussianModel(transport.path_sampler, prediction, MU, SD))[-1].isfinite().all()


ADAPTIVE = ["dopri5", "dopri8", "bosh3", "adaptive_heun"]


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("reverse", [False, True])
def test_adaptive_solvers_control_their_error_in_the_shifted_time(method, reverse):
    """They ask for the times that torchdiffeq asks for of dx/ds = v(x, t(s)) t'(s), and arrive."""
    a, start, tolerances = 6.0, float(reverse), {"atol": 1e-5, "rtol": 1e-3}
    transport = create_transport(time_shift=a)
    asked, z, end = asked_times(transport, "ode", sampling_method=method, reverse=reverse, **tolerances)
    model, by_hand = GaussianModel(transport.path_sampler, "velocity", MU, SD), []

    def slope(s, x):
        s = s.clamp(0, 1)
        t = s / (s + a * (1 - s))
        by_hand.append(float(t))
        return model(x, t.expand(len(x))) * (a / (s + a * (1 - s)) ** 2)

    times = torch.tensor([start, 1 - start], dtype=torch.float64)
    expected = odeint(slope, z, times, method=method, **tolerances, options={"step_t": times[-1:]})[-1]
    assert asked == pytest.approx(by_hand)
    torch.testing.assert_close(end, expected)
    exact = (z - MU) / SD if reverse else MU + SD * z
    torch.testing.assert_close(end, exact, rtol=0, atol=0.02)
    plain, *_ = asked_times(create_transport(), "ode", sampling_method=method, reverse=reverse, **tolerances)
    assert len(plain) != len(asked)


@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
@pytest.mark.parametrize("a", [0.3, 5.0])
def test_an_adaptive_solver_arrives_whatever_the_shift(path, prediction, a):
    transport = create_transport(path, prediction, time_shift=a)
    settings = {"sampling_method": "dopri5", "atol": 1e-8, "rtol": 1e-6, "prediction": prediction}
    _, z, end = asked_times(transport, "ode", **settings)
    _, _, plain = asked_times(create_transport(path, prediction), "ode", **settings)
    torch.testing.assert_close(end, plain, rtol=0, atol=1e-4)
    torch.testing.assert_close(end, MU + SD * z, rtol=0, atol=0.03)  # VP and noise keep off the ends


def test_a_trajectory_of_an_adaptive_solver_is_at_shifted_times():
    """As one of fixed steps is; the state at t = (1 - t) z + t (mu + sd z) in the mean of a flow of Gaussians."""
    transport, z = create_transport(time_shift=4.0), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    model = GaussianModel(transport.path_sampler, "velocity", MU, SD)
    sampler = Sampler(transport).sample_ode(trajectory=True, num_steps=9, atol=1e-8, rtol=1e-8)
    t = shifted(torch.linspace(0, 1, 9, dtype=torch.float64), 4.0)[:, None, None]
    expected = t * MU + ((1 - t) ** 2 + t**2 * SD**2).sqrt() * z
    torch.testing.assert_close(torch.stack(list(sampler(z, model))), expected, rtol=0, atol=1e-6)


def test_the_likelihood_of_an_adaptive_solver_is_the_same_with_a_shift():
    transport, x1 = create_transport(time_shift=4.0), torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None]
    model = GaussianModel(transport.path_sampler, "velocity", MU, SD)
    logp, _ = Sampler(transport).sample_ode_likelihood(exact_trace=True, atol=1e-8, rtol=1e-8)(x1, model)
    torch.testing.assert_close(logp, torch.distributions.Normal(MU, SD).log_prob(x1[:, 0].float()).double())


def test_graded_control_by_an_adaptive_solver_takes_the_shift():
    """Entries that start late have less of the way left, and all arrive."""
    keep = torch.tensor([0.0, 0.5, 0.9]).view(1, 3, 1, 1)
    reference, z = torch.full((4, 3, 1, 1), MU), torch.zeros(4, 3, 1, 1)
    ends, counts = [], []
    for a in (1.0, 8.0):
        transport = create_transport(combostoc_type="UNSYNC_ALL", time_shift=a)
        sampler = Sampler(transport).sample_graded(reference, keep, sampling_method="dopri5", atol=1e-6, rtol=1e-6)
        ends.append(sampler(z, GaussianModel(transport.path_sampler, "velocity", MU, SD))[-1])
        counts.append(sampler.nfe)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)
    assert counts[0] != counts[1]


def test_an_sde_of_shifted_steps_has_the_right_moments(seeded):
    transport = create_transport(time_shift=3.0)
    sampler = Sampler(transport).sample_sde(diffusion_form="sigma", last_step="Euler", num_steps=101)
    x = sampler(torch.randn(20_000, 1), GaussianModel(transport.path_sampler, "velocity", MU, SD))[-1]
    assert x.mean().item() == pytest.approx(MU, abs=0.02) and x.std().item() == pytest.approx(SD, rel=0.03)


def test_steps_of_one_size_and_a_shift_do_not_go_together():
    with pytest.raises(ValueError, match="schedule 'size' takes steps of one size, which time shift 4 does not"):
        Sampler(create_transport(time_shift=4.0)).sample_graded(torch.ones(2, 1), 0.5, schedule="size")


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "much"])
def test_a_shift_is_a_positive_number_or_auto(value):
    with pytest.raises(ValueError, match="time_shift must be a positive number or 'auto'"):
        create_transport(time_shift=value)


# ---- the clamped loss ----------------------------------------------------------------------------------------------


def test_the_clamped_loss_in_closed_form(seeded):
    """Of a model that predicts 0, for t uniform up to 0.999: E[x1^2] E[1 / max(1 - t, C)^2]."""
    for clamp, left in ((0.05, 0.001), (0.3, 0.001)):
        transport = create_transport("Linear", "data", "velocity", loss_clamp=clamp)
        x1 = MU + SD * torch.randn(400_000, 1)
        loss = transport.training_losses(lambda x, t: torch.zeros_like(x), x1)["loss"].mean().item()
        weight = (1 / clamp - 1 + (clamp - left) / clamp**2) / (1 - left)
        assert loss == pytest.approx((MU**2 + SD**2) * weight, rel=0.02)


@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
def test_the_clamp_changes_only_times_near_the_data(path):
    losses, x1 = [], torch.randn(64, 3)
    for settings in ({}, {"loss_clamp": 0.0}, {"loss_clamp": 0.2}):
        transport = create_transport(path, "data", "velocity", **settings)
        torch.manual_seed(0)
        losses.append(transport.training_losses(lambda x, t: 0 * x, x1)["loss"])
        torch.manual_seed(0)
        sigma, _ = transport.path_sampler.compute_sigma_t(transport.sample(x1)[0])
    assert torch.equal(losses[0], losses[1])
    far = sigma >= 0.2
    assert torch.equal(losses[2][far], losses[0][far]) and (losses[2][~far] < losses[0][~far]).all() and (~far).any()


@pytest.mark.parametrize("settings", [{}, {"prediction": "data"}, {"prediction": "noise", "loss_weight": "velocity"}])
def test_the_clamp_is_of_one_loss(settings):
    with pytest.raises(ValueError, match=r"loss_clamp 0\.05 is for prediction data and loss_weight velocity"):
        create_transport(**settings, loss_clamp=0.05)
