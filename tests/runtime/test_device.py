"""Which device a program computes on, and that a device without float64 is never asked for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import ComboStoc_models
from runtime import device as devices
from runtime.device import choose
from runtime.errors import UsageError
from training import step
from training.bookkeeping import LossWindow
from training.step import build_optimizer, training_step
from transport import Sampler, create_transport, integrators
from transport.solvers import SOLVERS


@pytest.fixture
def there(monkeypatch):
    """A function that says which GPUs there are."""

    def are(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return are


@pytest.mark.parametrize(
    ("gpus", "name", "place", "expected"),
    [
        ({}, None, {}, "cpu"),
        ({"cuda": 2}, None, {}, "cuda:0"),
        ({"cuda": 2}, None, {"local_rank": 1, "alone": False}, "cuda:1"),
        ({"cuda": 2}, "cpu", {}, "cpu"),
        ({"mps": True}, None, {}, "mps"),
        ({"mps": True}, "mps", {}, "mps"),
        ({"mps": True}, "cpu", {}, "cpu"),
        ({"mps": True}, None, {"alone": False}, "cpu"),
        ({"cuda": 1, "mps": True}, None, {}, "cuda:0"),
        ({}, "cuda", {}, "--device cuda: torch .* finds none here; there is cpu"),
        ({"cuda": 1}, "mps", {}, "--device mps: torch .* finds none here; there is cuda, cpu"),
        ({"mps": True}, "mps", {"alone": False}, "--device mps computes in one process"),
        ({"cuda": 1}, None, {"local_rank": 1, "alone": False}, "process 1 of this node has no GPU: 1 are visible"),
    ],
)
def test_the_device_that_is_chosen(gpus, name, place, expected, there):
    there(**gpus)
    if " " in expected:
        with pytest.raises(UsageError, match=expected):
            choose(name, **place)
    else:
        assert choose(name, **place) == torch.device(expected)


def test_float64_is_computed_where_there_is_some():
    assert devices.float64(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert devices.float64(torch.device("mps")) == torch.device("cpu")


# ---- no float64 --------------------------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Fails where a tensor of float64 is made, as a Mac's GPU does. torchdiffeq's tables are copied from the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in torch.utils._pytree.tree_leaves(made):
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), func
        return made


@pytest.fixture
def no_float64(monkeypatch):
    """The CPU is taken for a device that has none."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(integrators, "WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(step, "FUSED", ())
    return NoFloat64()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=3, num_classes=10)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)
    return model


@pytest.mark.parametrize("times", ["combostoc", "blend-logit-normal-async", "self-flow"])
def test_training_makes_no_float64(times, no_float64, model):
    transport = create_transport(combostoc_type="UNSYNC_ALL", times=times)
    opt = build_optimizer(model, 1e-3)
    weight = model.x_embedder.proj.weight
    before = weight.clone()
    x1, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    with no_float64:
        window = LossWindow(torch.device("cpu"))
        result = training_step(model, model, opt, transport, x1, y, ema_decay=0.9, precision_name="bf16")
        window.add(*result)
        mean, _ = window.close()
    assert mean == pytest.approx(result.loss.item(), rel=1e-5) and not torch.equal(before, weight)


def test_a_bad_step_changes_nothing_where_the_optimizer_is_not_fused(no_float64, model):
    opt, before = build_optimizer(model, 1e-3), [p.clone() for p in model.parameters()]
    x1 = torch.full((4, 3, 8, 8), torch.nan)
    result = training_step(model, model, opt, create_transport(), x1, torch.arange(4), ema_decay=0.9)
    assert result.bad and all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("method", [m for m in SOLVERS if m not in integrators.ADAMS_METHODS])
def test_an_ode_makes_no_float64(method, no_float64, model):
    sampler = Sampler(create_transport()).sample_ode(sampling_method=method, num_steps=4)
    z, y = torch.randn(2, 3, 8, 8), torch.arange(2)
    with no_float64:
        x = sampler(z, model.eval(), y=y)[-1]
    torch.testing.assert_close(x, sampler(z, model, y=y)[-1])


@pytest.mark.parametrize("method", integrators.ADAMS_METHODS)
def test_a_method_that_needs_float64_says_so(method, no_float64, model):
    sampler = Sampler(create_transport()).sample_ode(sampling_method=method, num_steps=4)
    with pytest.raises(FloatingPointError, match=f"{method} computes in float64, which cpu does not have"):
        sampler(torch.randn(2, 3, 8, 8), model, y=torch.arange(2))


@pytest.mark.parametrize("mode", ["SDE", "graded ODE", "graded SDE", "likelihood"])
def test_other_samplers_make_no_float64(mode, no_float64, model):
    sampler, reference, y = Sampler(create_transport()), torch.randn(2, 3, 8, 8), torch.arange(2)
    keep = torch.rand(2, 3, 8, 8)
    with no_float64:
        sample = {
            "SDE": lambda: sampler.sample_sde(num_steps=4, diffusion_form="sigma"),
            "graded ODE": lambda: sampler.sample_graded(reference, keep),
            "graded SDE": lambda: sampler.sample_graded(reference, keep, mode="SDE", num_steps=4),
            "likelihood": lambda: sampler.sample_ode_likelihood(),
        }[mode]()
        assert sample(torch.randn(2, 3, 8, 8), model.eval(), y=y)[-1].isfinite().all()
