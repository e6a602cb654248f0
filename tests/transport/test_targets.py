import pytest
import torch

from tests.conftest import GaussianModel, golden, relative_error
from transport import ModelType, Sampler, create_transport

G = golden("transport")
PATHS = ["Linear", "GVP", "VP"]
paths = pytest.mark.parametrize("path", PATHS)


def sin_model(x, t):
    return torch.sin(2 * x) * (1 + t.reshape(t.shape + (1,) * (x.ndim - t.ndim)))


@paths
def test_golden_losses(path, monkeypatch):
    names = [name for name in G if name.startswith(f"loss_uncompensated/{path}/")]
    assert len(names) == (1 + 3 + 3) * 2  # weights of the predictions, times of a sample or an entry
    for name in names:
        *_, prediction, weight, kind = name.split("/")
        transport = create_transport(path, prediction, None if weight == "None" else weight, train_eps=1e-3)
        monkeypatch.setattr(transport, "sample", lambda x1, kind=kind: (G[kind], G["x0"], x1))
        loss = transport.training_losses(sin_model, G["x1"])["loss"]
        torch.testing.assert_close(loss, G[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("with_t", [False, True])
def test_golden_compensation(with_t):
    """Both forms, the predecessor's projection and the general one, give the predecessor's numbers on Linear."""
    extra = (G["t_full"], G["x0"]) if with_t else ()
    ut = create_transport().compensate_offdiagonal_ut(G["x1"], G["Linear/t_full/xt"], G["Linear/t_full/ut"], *extra)
    assert relative_error(ut, G["Linear/t_full/ut_compensated"]) < 1e-9


@paths
def test_compensation_is_zero_on_the_diagonal(path, seeded):
    """Exactly, for every way of writing one time per sample."""
    transport = create_transport(path)
    x0, x1 = torch.randn(2, 5, 4, 8, 8)
    t = torch.rand(5)
    _, xt, ut = transport.path_sampler.plan(t, x0, x1)
    for same in (t, t[:, None, None, None], t[:, None, None, None].expand(5, 4, 8, 8)):
        torch.testing.assert_close(transport.compensate_offdiagonal_ut(x1, xt, ut, same, x0), ut, rtol=0, atol=0)


@paths
def test_compensated_target_points_at_the_nearest_diagonal_point(path, seeded):
    """u - u_compensated = x_t - x_{t*}, x_{t*} on the curve between the sample's least and greatest time."""
    transport = create_transport(path)
    x0, x1 = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    t = torch.rand(3, 4, 8, 8, dtype=torch.float64)
    _, xt, ut = transport.path_sampler.plan(t, x0, x1)
    delta = ut - transport.compensate_offdiagonal_ut(x1, xt, ut, t, x0)
    on_diagonal = xt - delta
    for k in range(3):
        times = torch.linspace(float(t[k].min()), float(t[k].max()), 4001, dtype=torch.float64)
        curve = transport.path_sampler.compute_xt(times, x0[k].expand(4001, -1, -1, -1), x1[k].expand(4001, -1, -1, -1))
        assert (curve - on_diagonal[k]).abs().flatten(1).amax(1).min() < 1e-2


def test_compensation_survives_noise_equal_to_data():
    transport = create_transport()
    x = torch.randn(2, 1, 2, 2)
    t = torch.rand(2, 1, 2, 2)
    _, xt, ut = transport.path_sampler.plan(t, x, x)
    for extra in ((), (t, x)):
        assert transport.compensate_offdiagonal_ut(x, xt, ut, *extra).isfinite().all()


def test_compensation_on_gvp_asks_for_t_and_x0():
    x = torch.randn(2, 1, 2, 2)
    with pytest.raises(ValueError, match="GVP path needs t and x0"):
        create_transport("GVP").compensate_offdiagonal_ut(x, x, x)


def test_compensation_covers_every_asynchronous_sample(monkeypatch, seeded):
    """Not the first half of the batch whatever the mix: the loss of a perfectly compensated target is zero."""
    transport = create_transport(combostoc_type="UNSYNC_ALL", use_halfmixing=False, use_blend=False)
    x0, x1 = torch.randn(2, 6, 2, 4, 4)
    t = torch.rand(6, 2, 4, 4)
    monkeypatch.setattr(transport, "sample", lambda x1: (t, x0, x1))
    _, xt, ut = transport.path_sampler.plan(t, x0, x1)
    target = transport.compensate_offdiagonal_ut(x1, xt, ut)
    loss = transport.training_losses(lambda x, t: target, x1)["loss"]
    assert loss.max() < 1e-10
    off = create_transport(combostoc_type="UNSYNC_ALL", use_compensation=False)
    monkeypatch.setattr(off, "sample", lambda x1: (t, x0, x1))
    assert off.training_losses(lambda x, t: ut, x1)["loss"].max() == 0


@paths
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score", "data"])
def test_drift_and_score_agree_between_predictions(path, prediction, seeded):
    """The exact model of Gaussian data gives the same field whichever quantity it predicts."""
    transport = create_transport(path, prediction)
    plan = transport.path_sampler
    model = GaussianModel(plan, prediction, 0.3, 0.5)
    x, t = torch.randn(64, 3, dtype=torch.float64), torch.rand(64, dtype=torch.float64) * 0.98 + 0.01
    velocity = transport.get_drift()(x, t, model)
    score = transport.get_score()(x, t, model)
    torch.testing.assert_close(velocity, GaussianModel(plan, "velocity", 0.3, 0.5)(x, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score, GaussianModel(plan, "score", 0.3, 0.5)(x, t), rtol=1e-9, atol=1e-9)
    both = transport.get_velocity_and_score()(x, t, model)
    assert torch.equal(both[0], velocity) and torch.equal(both[1], score)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score", "data"])
@paths
def test_the_loss_is_least_at_the_exact_model(path, prediction, seeded):
    """Whatever is predicted, the conditional expectation minimises the loss: a perturbed model does worse."""
    transport = create_transport(path, prediction, train_eps=0.01)
    model = GaussianModel(transport.path_sampler, prediction, 0.3, 0.5)
    x1 = 0.3 + 0.5 * torch.randn(20000, 4)

    def loss_at(scale: float, shift: float) -> torch.Tensor:
        torch.manual_seed(1)
        return transport.training_losses(lambda x, t: scale * model(x, t) + shift, x1)["loss"].mean()

    assert all(loss_at(1, 0) < loss_at(*off) for off in [(1.1, 0), (0.9, 0), (1, 0.1), (1, -0.1)])


@pytest.mark.parametrize("kind", ["UNSYNC_NONE", "UNSYNC_ALL"])
def test_bfloat16_models_train(kind, seeded):
    """The model sees bfloat16 inputs, times and targets stay in float32."""
    seen = []

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return x

    loss = create_transport(combostoc_type=kind).training_losses(model, torch.randn(4, 2, 4, 4).bfloat16())["loss"]
    assert seen == [(torch.bfloat16, torch.float32)] and loss.dtype == torch.float32 and loss.isfinite().all()


def test_prior_logp_is_that_of_a_standard_normal(seeded):
    z = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(create_transport().prior_logp(z), expected)


@paths
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "rk4"])
def test_a_model_that_knows_the_data_lands_on_them(path, method, seeded):
    """Fixed steps do not evaluate t = 1, where the velocity is infinite, and go there; others end 1e-3 short of it."""
    transport = create_transport(path, "data")
    x1, z = torch.randn(2, 3, 5, dtype=torch.float64)
    if path != "VP":
        end = Sampler(transport).sample_ode(sampling_method=method, num_steps=101)(z, lambda x, t: x1)[-1]
        assert (end - x1).abs().max() < (1e-12 if path == "Linear" else 0.02)
    end = Sampler(transport).sample_ode()(z, lambda x, t: x1)[-1]
    assert (end - x1).abs().max() < 0.05


@paths
@pytest.mark.parametrize("weight", [None, "velocity", "likelihood"])
def test_weights_make_of_an_error_of_the_data_that_of_velocity_or_score(path, weight, seeded, monkeypatch):
    transport = create_transport(path, "data", weight)
    plan, (x0, x1, error) = transport.path_sampler, torch.randn(3, 64, 3, dtype=torch.float64)
    t = torch.rand(64, dtype=torch.float64) * 0.9 + 0.05
    monkeypatch.setattr(transport, "sample", lambda x1: (t, x0, x1))
    loss = transport.training_losses(lambda x, t: x1 + error, x1)["loss"]
    xt = plan.compute_xt(t, x0, x1)
    velocity = plan.get_velocity_from_data(x1 + error, xt, t) - plan.compute_ut(t, x0, x1)
    score = plan.get_score_from_data(x1 + error, xt, t) - plan.get_score_from_data(x1, xt, t)
    var = plan.compute_drift(xt, t)[1]
    expected = {None: error**2, "velocity": velocity**2, "likelihood": var * score**2}[weight]
    torch.testing.assert_close(loss, expected.mean(1), rtol=1e-9, atol=0)


# ---- intervals -----------------------------------------------------------------------------------------------------


def interval(transport, **kwargs):
    return transport.check_interval(transport.train_eps, transport.sample_eps, **kwargs)


def test_default_eps():
    """0 for velocity on Linear and GVP; sample_eps is never derived from train_eps."""
    for path in ("Linear", "GVP"):
        assert (create_transport(path).train_eps, create_transport(path).sample_eps) == (0, 0)
        noise = create_transport(path, "noise")
        assert (noise.train_eps, noise.sample_eps) == (1e-3, 1e-3)
    vp = create_transport("VP")
    assert (vp.train_eps, vp.sample_eps) == (1e-5, 1e-3)
    assert create_transport("VP", train_eps=1e-4).sample_eps == 1e-3
    assert create_transport("VP", sample_eps=1e-2).train_eps == 1e-5


def test_eps_given_is_used():
    transport = create_transport(train_eps=0.01, sample_eps=0.02)
    assert interval(transport) == (0.01, 0.99)
    assert interval(transport, eval=True) == (0.02, 0.98)


def test_reverse_swaps_the_ends():
    transport = create_transport("VP", sample_eps=0.01)
    assert interval(transport, eval=True) == (0, 0.99)
    assert interval(transport, eval=True, reverse=True) == (0.99, 0)


def test_singular_ends_are_left_out():
    assert interval(create_transport(prediction="noise", sample_eps=0), eval=True)[0] == 1e-3
    assert interval(create_transport(prediction="data"), eval=True) == (0, 1 - 1e-3)
    assert interval(create_transport(prediction="data"), eval=True, evaluates_end=False) == (0, 1)
    assert interval(create_transport("VP", sample_eps=1e-9), eval=True)[1] == 1 - 1e-3  # 1 in float32
    assert interval(create_transport("VP", sample_eps=0), eval=True)[1] == 1 - 1e-3
    sde = {"eval": True, "sde": True, "diffusion_form": "sigma"}
    assert interval(create_transport(), **sde | {"diffusion_form": "SBDM", "last_step_size": 0.04}) == (1e-3, 0.96)
    assert interval(create_transport(), **sde, last_step_size=0.04) == (0, 0.96)
    assert interval(create_transport(), **sde) == (0, 1 - 1e-3)
    assert interval(create_transport(), **sde, evaluates_end=False) == (0, 1)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"path_type": "linear"}, "'linear'.*Linear, GVP, VP"),
        ({"prediction": "velocty"}, "'velocty'.*velocity, score, noise"),
        ({"loss_weight": "sigma"}, "'sigma'.*None, velocity, likelihood"),
        ({"combostoc_type": "UNSYNC"}, "'UNSYNC'.*UNSYNC_NONE, UNSYNC_VEC, UNSYNC_PATCH, UNSYNC_ALL"),
        ({"train_eps": -0.1}, "train_eps.*-0.1"),
        ({"sample_eps": 0.7}, "sample_eps.*0.7"),
    ],
)
def test_unknown_names_are_refused(kwargs, named):
    """An unknown prediction used to be taken for velocity."""
    with pytest.raises(ValueError, match=named):
        create_transport(**kwargs)


def test_a_model_of_another_shape_is_refused():
    transport = create_transport()
    with pytest.raises(ValueError, match=r"\(2, 8, 4, 4\).*\(2, 4, 4, 4\)"):
        transport.training_losses(lambda x, t: torch.cat([x, x], 1), torch.randn(2, 4, 4, 4))
    with pytest.raises(ValueError, match=r"\(2, 8, 4, 4\).*\(2, 4, 4, 4\)"):
        transport.get_drift()(torch.randn(2, 4, 4, 4), torch.rand(2), lambda x, t: torch.cat([x, x], 1))


def test_names_map_to_the_enumerations():
    assert create_transport(prediction="score").model_type is ModelType.SCORE
