from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models import ComboStoc_models
from tests.conftest import Operations
from training.step import build_optimizer, ema_decay, ema_lines, learning_rate, lerp_together, training_step, update_ema
from transport import create_transport


@pytest.fixture
def job(seeded):
    """Model, average, optimiser, transport and a batch."""
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=4, num_classes=10, class_dropout_prob=0.0)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    ema = deepcopy(model).requires_grad_(False)
    batch = torch.randn(8, 4, 8, 8), torch.randint(10, (8,))
    return model, ema, build_optimizer(model, 1e-3), create_transport(combostoc_type="UNSYNC_ALL"), *batch


def test_a_step_in_parts_is_the_step_of_their_mean(job):
    """Gradients of each part, half-mixed by itself, averaged; then one update of model and average."""
    model, ema, opt, transport, x1, y = job
    expected = deepcopy(model)
    torch.manual_seed(1)
    losses = [transport.training_losses(expected, x1[k : k + 2], {"y": y[k : k + 2]})["loss"] for k in range(0, 8, 2)]
    loss = torch.cat(losses).mean()
    loss.backward()
    build_optimizer(expected, 1e-3).step()
    torch.manual_seed(1)
    before = deepcopy(ema)
    got = training_step(model, ema, opt, transport, x1, y, ema_decay=0.9, grad_accum=4)
    torch.testing.assert_close(got.loss, loss.detach())
    assert not got.bad
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)  # a step of AdamW is 1e-3
    for average, old, new in zip(ema.parameters(), before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(average, 0.9 * old + 0.1 * new.detach())


def test_the_learning_rate_rises_stays_and_falls():
    def rates(steps: int, **kwargs: int) -> list[float]:
        settings = {"peak": 1.0, "warmup_steps": 0, "decay_steps": 0} | kwargs
        return [learning_rate(k, steps, **settings) for k in range(steps)]

    assert rates(5) == [1.0] * 5
    assert rates(8, warmup_steps=3, decay_steps=1) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5]
    assert rates(8, decay_steps=7) == [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]  # the next one would be 0


def test_the_decay_of_the_average():
    decays = [ema_decay(k, decay=0.999, warmup=True) for k in (0, 8, 90, 8990, 10**6)]
    assert decays == [0.1, 0.5, 0.91, 8991 / 9000, 0.999]
    assert ema_decay(0, decay=0.999, warmup=False) == 0.999


def test_short_runs_are_told_that_their_average_is_the_initialisation():
    (line,) = ema_lines(1000, decay=0.9999, warmup=False)
    assert "90% of the averaged weights" in line and "--ema-warmup" in line
    for steps, settings in ((50_000, {}), (1000, {"warmup": True}), (1000, {"decay": 0.99}), (2, {"decay": 0.0})):
        assert ema_lines(steps, **{"decay": 0.9999, "warmup": False} | settings) == []


def test_weight_decay_and_betas_are_adamws(job):
    model = job[0]
    group = build_optimizer(model, 1e-3, [0.8, 0.9], 0.1).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.1)
    group = build_optimizer(model, 1e-3).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0)


def test_a_step_has_the_learning_rate_it_is_given(job):
    """AdamW's first step is the rate, in every parameter with a gradient."""
    model, ema, opt, transport, x1, y = job
    before = deepcopy(model)
    training_step(model, ema, opt, transport, x1, y, ema_decay=0.9, lr=1e-4)
    moved = max((p - q).abs().max().item() for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert moved == pytest.approx(1e-4, rel=0.02)


def test_long_gradients_are_scaled_down_and_short_ones_left(job, monkeypatch):
    model, ema, opt, transport, x1, y = job
    norms = []

    def step() -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    monkeypatch.setattr(opt, "step", step)
    for limit in (None, 1e9, 1e-3):
        torch.manual_seed(1)
        training_step(model, ema, opt, transport, x1, y, ema_decay=0.9, max_grad_norm=limit)
    assert norms[0] == norms[1] > 1e-3 and norms[2] == pytest.approx(1e-3, rel=1e-3)


def test_weights_average_gradients_and_loss_stay_float32_in_bf16(job):
    model, ema, opt, transport, x1, y = job
    losses = {}
    for name in ("fp32", "bf16"):
        torch.manual_seed(1)
        trained = deepcopy(model) if name == "fp32" else model
        losses[name] = training_step(trained, ema, opt, transport, x1, y, ema_decay=0.9, precision_name=name).loss
    assert losses["bf16"].dtype == torch.float32
    assert 0 < abs(losses["bf16"] - losses["fp32"]) < 0.01 * losses["fp32"]
    tensors = [*model.parameters(), *ema.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert {v.dtype for state in opt.state.values() for v in state.values()} == {torch.float32}


def test_bf16_rounds_no_gradient_of_what_stays_float32(job):
    """Times and output are computed without autocast, also backwards."""
    model, ema, opt, transport, x1, y = job
    training_step(model, ema, opt, transport, x1, y, ema_decay=0.9, precision_name="bf16")
    for name in ("final_layer.linear.weight", "t_embedder.mlp.0.weight", "t_embedder.patchEmb.proj.weight"):
        grad = model.get_parameter(name).grad
        assert not torch.equal(grad, grad.bfloat16().float()), name
    inner = model.get_parameter("blocks.0.mlp.fc1.weight").grad
    assert torch.equal(inner, inner.bfloat16().float())


def test_processes_exchange_gradients_once_a_step(job, tmp_path):
    model, ema, opt, transport, x1, y = job
    exchanges = []

    def hook(state, bucket):
        exchanges.append(1)
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, hook)
        counts = []
        for parts in (1, 1, 4):  # DDP arranges its buckets after the first step
            exchanges.clear()
            training_step(wrapped, ema, opt, transport, x1, y, ema_decay=0.9, grad_accum=parts)
            counts.append(len(exchanges))
    finally:
        torch.distributed.destroy_process_group()
    assert counts[1] == counts[2] > 0


def test_parts_must_be_equal(job):
    with pytest.raises(ValueError, match="batch of 8 cannot be computed in 3 equal parts"):
        training_step(*job, ema_decay=0.9, grad_accum=3)


def test_the_average_is_an_exponential_one():
    average, model = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    expected = 0.9 * average.weight.detach() + 0.1 * model.weight.detach()
    update_ema(average, model, 0.9, bad=torch.tensor(False))
    torch.testing.assert_close(average.weight.detach(), expected)


def test_on_a_gpu_the_average_of_all_parameters_takes_three_kernels():
    """Their arithmetic here, on the CPU: that of lerp, in which nothing moves after a bad step."""
    averages, parameters = ([torch.randn(n, 3) for n in range(1, 40)] for _ in range(2))
    weight = torch.tensor(0.0)
    with Operations() as operations:
        lerp_together(averages, parameters, weight)
    assert operations.names == ["aten._foreach_sub", "aten._foreach_mul_", "aten._foreach_add_"]
    expected = [a.lerp(p, torch.tensor(0.1)) for a, p in zip(averages, parameters, strict=True)]
    lerp_together(averages, parameters, torch.tensor(0.1))
    torch.testing.assert_close(averages, expected)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(job, where, parts, monkeypatch):
    """Not even the optimiser's count of steps; the step after it is as if it had not been."""
    model, ema, opt, transport, x1, y = job
    step = partial(training_step, model, ema, opt, transport, ema_decay=0.9, grad_accum=parts, max_grad_norm=1.0)
    assert not step(x1=x1, y=y).bad
    before = deepcopy((model.state_dict(), ema.state_dict(), opt.state_dict()))
    if where == "gradient":
        final = model.final_layer.linear.weight
        handle = final.register_hook(lambda grad: grad * torch.inf)
        assert step(x1=x1, y=y).bad
        handle.remove()
    else:  # of one part only, and no gradient of it need be affected
        original = transport.training_losses

        def losses(model, x, kwargs):
            terms = original(model, x, kwargs)
            return terms | {"loss": torch.where(x.flatten(1).sum(1) == x1[-1].sum(), torch.inf, terms["loss"])}

        monkeypatch.setattr(transport, "training_losses", losses)
        assert step(x1=x1, y=y).bad
        monkeypatch.undo()
    for old, new in zip(before, (model.state_dict(), ema.state_dict(), opt.state_dict()), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)
    assert not step(x1=x1, y=y).bad
    assert opt.state[model.final_layer.linear.weight]["step"] == 2


def test_the_average_may_be_updated_as_sits_forks_do():
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = [0.75 * a + 0.25 * p for a, p in zip(average.parameters(), model.parameters(), strict=True)]
    update_ema(average, model, decay=0.75)
    assert all(torch.allclose(a, e) for a, e in zip(average.parameters(), expected, strict=True))
