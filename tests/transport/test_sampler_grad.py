"""Derivatives of samplers (grad=True), and likelihoods in autograd's modes."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import GaussianModel
from transport import Sampler, create_transport

MU, SD = 0.4, 0.6
ODE = {"euler": {}, "heun2": {}, "rk4": {}, "dopri5": {"rtol": 1e-6}}
MAKERS = {
    **{name: ("sample_ode", {"sampling_method": name, "num_steps": 6, **more}) for name, more in ODE.items()},
    "Euler": ("sample_sde", {"sampling_method": "Euler", "num_steps": 6, "diffusion_form": "sigma"}),
    "Heun": ("sample_sde", {"sampling_method": "Heun", "num_steps": 6, "diffusion_form": "linear", "last_step": None}),
    "Tweedie": ("sample_sde", {"num_steps": 6, "diffusion_form": "sigma", "last_step": "Tweedie"}),
}


class Net(nn.Module):
    """A small field with weights, and no linear one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x, t, scale):
        return torch.tanh(self.layer(x)) * (1 + t[:, None]) * scale


def sample(name, z, net, scale, **settings):
    maker, own = MAKERS[name]
    torch.manual_seed(7)  # an SDE's noise
    sampler = getattr(Sampler(create_transport()), maker)(**own, **settings)
    return sampler(z, net, scale=scale)[-1], sampler


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_to_noise_weights_and_conditions_are_differences(name, checkpointing, seeded):
    net = Net()
    z, scale = torch.randn(4, 3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    v, step = torch.randn_like(z), 1e-5
    inputs = [z, scale, net.layer.weight.data]
    directions = [torch.randn_like(a) for a in inputs]

    def moved(h: float) -> torch.Tensor:
        at = [a + h * d for a, d in zip(inputs, directions, strict=True)]
        net.layer.weight.data = at[2]
        return (sample(name, at[0], net, at[1])[0] * v).sum()

    difference = (moved(step) - moved(-step)) / (2 * step)
    net.layer.weight.data = inputs[2]
    z, scale = z.clone().requires_grad_(), scale.clone().requires_grad_()
    end, sampler = sample(name, z, net, scale, grad=True, grad_checkpointing=checkpointing)
    evaluations = sampler.nfe
    assert torch.equal(end, sample(name, z, net, scale)[0])
    gradients = torch.autograd.grad((end * v).sum(), [z, scale, net.layer.weight])
    along = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-8)
    assert sampler.nfe == evaluations  # and not those of the backward pass


@pytest.mark.parametrize("path", ["Linear", "GVP"])
def test_the_gradient_of_a_gaussians_flow_is_its_closed_form(path):
    """Noise goes to mu + sd z."""
    transport = create_transport(path)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    model = GaussianModel(transport.path_sampler, "velocity", MU, SD)
    x = Sampler(transport).sample_ode(grad=True, atol=1e-9, rtol=1e-9)(z, model)[-1]
    (gradient,) = torch.autograd.grad(x.sum(), z)
    torch.testing.assert_close(gradient, torch.full_like(z, SD), rtol=1e-5, atol=0)


def test_graded_control_has_gradients_and_decompensation_keeps_them(seeded):
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    reference, z = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2, requires_grad=True)
    keep = torch.rand(2, 3, 2, 2)
    for decompensate in (False, True):
        sampler = Sampler(transport).sample_graded(
            reference, keep, grad=True, sampling_method="euler", num_steps=4, decompensate=decompensate
        )
        (gradient,) = torch.autograd.grad(sampler(z, lambda x, t: -x)[-1].sum(), z)
        assert (gradient != 0).all() and gradient.isfinite().all()


def kept_bytes(**settings) -> int:
    """What a sampler's graph holds for the backward pass of a wide model."""
    wide = nn.Sequential(nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 2))
    kept = {}

    def keep(a):
        kept[a.untyped_storage().data_ptr()] = a
        return a

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda a: a):
        sampler = Sampler(create_transport()).sample_ode(sampling_method="euler", num_steps=20, grad=True, **settings)
        sampler(torch.randn(8, 2, requires_grad=True), lambda x, t: wide(x))
    return sum(a.untyped_storage().nbytes() for a in kept.values())


def test_checkpointing_keeps_states_and_no_activations():
    assert kept_bytes(grad_checkpointing=True) < kept_bytes() / 10


def test_grad_follows_the_callers_mode_and_checkpointing_asks_for_it():
    sampler = Sampler(create_transport()).sample_ode(sampling_method="euler", num_steps=4, grad=True)
    z = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert not sampler(z, lambda x, t: -x)[-1].requires_grad
    assert sampler(z, lambda x, t: -x)[-1].requires_grad
    for make in ("sample_ode", "sample_sde"):
        with pytest.raises(ValueError, match="grad_checkpointing is for samplers with grad=True"):
            getattr(Sampler(create_transport()), make)(grad_checkpointing=True)


# ---- likelihood ------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.weight = nn.Parameter(torch.tensor(-0.5))

    def forward(self, x, t, y):
        return torch.sin(x) * self.weight * self.embedding(y) * (1 + t[:, None])


@pytest.mark.parametrize("exact_trace", [False, True])
@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_a_likelihood_is_the_same_in_every_mode(method, exact_trace, seeded):
    """With data, labels and a probe that were made in the mode."""
    model, x, y = Scaled(), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    probe = torch.tensor([1.0, -1.0]).expand(4, 2)
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            score = Sampler(create_transport()).sample_ode_likelihood(
                sampling_method=method, num_steps=4, exact_trace=exact_trace, probe=probe.clone()
            )
            results.append(score(x.clone(), model, y=y.clone()))
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@torch.no_grad()
def without_autograd(x, t):
    return -x


def of_weights_made_in_inference(x, t, made=[]):  # noqa: B006
    if not made:
        with torch.inference_mode():
            made.append(torch.full((2,), 2.0))
    return x * made[0]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (without_autograd, "output does not depend on x as autograd sees it.*no_grad"),
        (lambda x, t: -x.detach(), "output does not depend on x"),
        (lambda x, t: -x.detach() * torch.ones(2, requires_grad=True), "output does not depend on x"),
        (of_weights_made_in_inference, "were made in torch.inference_mode"),
    ],
)
@pytest.mark.parametrize("exact_trace", [False, True])
def test_a_model_without_a_derivative_is_one_line(model, named, exact_trace):
    score = Sampler(create_transport()).sample_ode_likelihood(
        sampling_method="euler", num_steps=3, exact_trace=exact_trace
    )
    with torch.inference_mode(), pytest.raises(RuntimeError, match=f"^a likelihood needs the derivative.*{named}"):
        score(torch.randn(3, 2), model)


def test_other_errors_of_a_model_stay_its_own():
    def broken(x, t):
        raise RuntimeError("of the model's own")

    with pytest.raises(RuntimeError, match="of the model's own"):
        Sampler(create_transport()).sample_ode_likelihood()(torch.randn(3, 2), broken)


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_batch_is_sampled(name):
    end, _ = sample(name, torch.zeros(0, 3, dtype=torch.float64), Net(), 1.0)
    assert end.shape == (0, 3) and not math.isnan(end.sum())
