import pytest
import torch

from shapes.network import Parts, Parts_models
from transport import Sampler, create_transport

L, F, WIDTHS = 5, 13, (1, 3, 3, 6)
TIMES = {"(N,)": (4,), "(N, 1, 1)": (4, 1, 1), "(N, L, 1)": (4, L, 1), "(N, 1, F)": (4, 1, F), "(N, L, F)": (4, L, F)}


@pytest.fixture
def model():
    """Whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(3)
    model = Parts(F, hidden_size=32, depth=2, num_heads=4, num_classes=3)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def batch(seeded):
    return torch.randn(4, L, F), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("shape", TIMES.values(), ids=TIMES)
def test_permuted_parts_give_permuted_parts(model, batch, shape):
    """With times that go with their parts."""
    (x, y), t, order = batch, torch.rand(shape), torch.randperm(L)
    permuted = t[:, order] if t.ndim == 3 and t.shape[1] == L else t
    out = model(x, t, y)
    torch.testing.assert_close(model(x[:, order], permuted, y), out[:, order], rtol=1e-5, atol=1e-5)
    assert out.shape == x.shape and not torch.allclose(out[:, order], out, atol=1e-2)


def test_times_that_say_the_same_give_the_same(model, batch):
    x, y = batch
    t = torch.rand(4)
    expected = model(x, t, y)
    for shape in TIMES.values():
        same = t.reshape(4, *[1] * (len(shape) - 1)).expand(shape)
        torch.testing.assert_close(model(x, same, y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["part", "number"])
def test_a_time_reaches_its_own_part_and_number(model, batch, what):
    """All parts see the change of one time; the part's own conditioning changes alone."""
    (x, y), t = batch, torch.full((4, L, F), 0.3)
    changed = t.clone()
    changed[:, 2, slice(None) if what == "part" else 7] = 0.8
    moved = (model.embed_timesteps(changed, x) - model.embed_timesteps(t, x)).abs().amax((0, 2))
    assert moved[2] > 1e-3 and (moved[[0, 1, 3, 4]] == 0).all()
    assert ((model(x, changed, y) - model(x, t, y)).abs().amax((0, 2)) > 0).all()


def test_any_number_of_parts(model):
    for length in (1, 2, 30):
        x = torch.randn(2, length, F)
        assert model(x, torch.rand(2, length, F), torch.tensor([0, 1])).shape == x.shape


@pytest.mark.parametrize("shape", [(4, F, L), (4, 2, F), (3, 1, 1), (4, L), (4, L, F, 1)])
def test_other_times_are_refused(model, batch, shape):
    x, y = batch
    with pytest.raises(ValueError, match="does not fit x of shape"):
        model(x, torch.rand(shape), y)


def test_guidance_is_of_all_numbers(model, batch):
    x, y = batch
    null = torch.full_like(y, model.num_classes)
    t = torch.rand(4, L, 1)
    both = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), 3.0)
    cond, uncond = model(x, t, y), model(x, t, null)
    torch.testing.assert_close(both[:4], uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-4)


def test_bf16_keeps_the_residual_stream_in_float32(model, batch):
    x, y = batch
    t = torch.rand(4, L, F)
    exact = model(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, t, y)
        assert model.embed(x).dtype == torch.float32
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


@pytest.mark.parametrize("kind", ["NONE", "PART", "ATT", "ATT_PART", "VEC", "ALL"])
@pytest.mark.parametrize(("prediction", "half"), [("data", False), ("velocity", True)])
def test_every_type_trains(kind, prediction, half, seeded):
    """With segments, too: a step makes the loss of its own batch less."""
    settings = {"combostoc_type": f"UNSYNC_{kind}", "times": "diffusion-forcing", "use_halfmixing": half}
    transport = create_transport("Linear", prediction, attributes=WIDTHS, **settings)
    model = Parts_models["Parts-XS"](in_channels=F, num_classes=3)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x1, y, losses = torch.randn(6, L, F), torch.tensor([0, 1, 2, 0, 1, 2]), []
    for _ in range(3):
        torch.manual_seed(3)
        loss = transport.training_losses(model, x1, {"y": y})["loss"].mean()
        losses.append(loss.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert losses[2] < losses[0]


def test_graded_control_of_parts(model, batch, seeded):
    """A part that is kept comes back bit for bit, others change; parts, attributes, entries."""
    (x, y), sampler = batch, Sampler(create_transport("Linear", "data", combostoc_type="UNSYNC_ALL", attributes=WIDTHS))
    keeps = {name: torch.zeros(1, L, F) for name in ("parts", "numbers", "both")}
    keeps["parts"][:, [0, 3]] = 1
    keeps["numbers"][..., 4:7] = 1
    keeps["both"][:, 1:3, 1:4] = 1
    keeps["both"][:, 4] = 0.5
    for keep in keeps.values():
        for settings in ({"sampling_method": "euler"}, {"mode": "SDE", "diffusion_form": "sigma"}):
            end = sampler.sample_graded(x, keep, num_steps=6, **settings)(torch.randn_like(x), model, y=y)[-1]
            kept = keep.expand_as(x) == 1
            assert torch.equal(end[kept], x[kept]) and (end[~kept] != x[~kept]).all() and end.isfinite().all()


def test_graded_control_with_an_oracle_of_one_shape_lands_on_it(seeded):
    x1, sampler = (
        torch.randn(3, L, F, dtype=torch.float64),
        Sampler(create_transport("Linear", "data", attributes=WIDTHS)),
    )
    z, keep = torch.randn_like(x1), torch.rand(1, L, F)
    for schedule in ("number", "size"):
        sample = sampler.sample_graded(x1, keep, schedule=schedule, sampling_method="euler", num_steps=11)
        assert (sample(z, lambda x, t: x1)[-1] - x1).abs().max() < 1e-5
