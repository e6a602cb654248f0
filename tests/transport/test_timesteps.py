import pytest
import torch

from models import ComboStoc, SiT
from tests.conftest import golden
from transport import ComboStocType, Transport, create_transport, draw_timesteps, timestep_shape
from transport.transport import takes_segments

TYPES = [c.name for c in ComboStocType]
ASYNC = TYPES[1:]
G = golden("timesteps")
async_types = pytest.mark.parametrize("kind", ASYNC)


def sin_model(x, t):
    return torch.sin(2 * x) * (1 + t.reshape(t.shape + (1,) * (x.ndim - t.ndim)))


@async_types
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("blend", [False, True])
def test_golden_draws(kind, half, blend):
    """Bit for bit the predecessor's draws; with half-mixing, its loss too."""
    name = f"{kind}/half{half:d}/blend{blend:d}"
    transport = create_transport(combostoc_type=kind, use_halfmixing=half, use_blend=blend)
    torch.manual_seed(int(G["seed"]))
    t, x0, x1 = transport.sample(G["x1"])
    assert torch.equal(t.expand_as(x1), G[f"{name}/t"])
    assert torch.equal(x0, G[f"{name}/x0"])
    if half:
        torch.manual_seed(int(G["seed"]))
        loss = transport.training_losses(sin_model, G["x1"])["loss"]
        torch.testing.assert_close(loss, G[f"{name}/loss"], rtol=1e-5, atol=0)


def test_golden_sit():
    """UNSYNC_NONE is SiT under the same seed."""
    transport = create_transport()
    torch.manual_seed(int(G["seed"]))
    t, x0, _ = transport.sample(G["x1"])
    assert torch.equal(t, G["SiT/t"]) and torch.equal(x0, G["SiT/x0"])
    torch.manual_seed(int(G["seed"]))
    torch.testing.assert_close(transport.training_losses(sin_model, G["x1"])["loss"], G["SiT/loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (6, 5, 3), (6, 4, 2, 8, 8)])
def test_shapes_in_any_number_of_dimensions(shape):
    n, c, *rest = shape
    ones = (1,) * len(rest)
    expected = {
        "UNSYNC_NONE": (n,),
        "UNSYNC_VEC": (n, c, *ones),
        "UNSYNC_PATCH": (n, 1, *rest),
        "UNSYNC_ALL": shape,
    }
    for kind, t_shape in expected.items():
        assert timestep_shape(shape, ComboStocType[kind]) == t_shape
        for half in (False, True):
            for blend in (False, True):
                t = draw_timesteps(torch.zeros(shape), ComboStocType[kind], use_halfmixing=half, use_blend=blend)
                assert t.shape == t_shape
        loss = create_transport(combostoc_type=kind).training_losses(sin_model, torch.randn(shape))["loss"]
        assert loss.shape == (n,) and loss.isfinite().all()


def test_on_one_channel_a_time_a_position_is_one_an_entry():
    """Why the study of grey digits leaves UNSYNC_PATCH out."""
    losses = []
    for kind in ("UNSYNC_PATCH", "UNSYNC_ALL"):
        torch.manual_seed(0)
        transport = create_transport(combostoc_type=kind)
        losses.append(transport.training_losses(sin_model, torch.linspace(-1, 1, 384).reshape(6, 1, 8, 8))["loss"])
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (5, 4, 8, 8), (6, 5, 3), (1, 4, 8, 8), (4, 2, 3, 4, 4)])
@pytest.mark.parametrize("settings", [{}, {"use_halfmixing": False}, {"use_blend": False}, {"use_blend": "sample"}])
def test_segments_are_the_batch_in_its_two_kinds(kind, shape, settings, seeded):
    """Asynchronous samples as they are, synchronous ones as one time each; joined they are the batch again."""
    transport = create_transport(train_eps=0.01, combostoc_type=kind, **settings)
    t, *_ = transport.sample(torch.zeros(shape))
    segments = transport.segments(t)
    assert torch.equal(torch.cat([s.expand(-1, *t.shape[1:]) for s in segments]), t)
    is_mixed = "use_halfmixing" not in settings and shape[0] > 1
    if kind in ("UNSYNC_PATCH", "UNSYNC_ALL") and is_mixed:
        n_async = shape[0] // 2
        ones = (1,) * (len(shape) - 1)
        assert [s.shape for s in segments] == [(n_async, *t.shape[1:]), (shape[0] - n_async, *ones)]
    else:
        assert len(segments) == 1 and segments[0] is t


@pytest.mark.parametrize(("fraction", "sizes"), [(0.0, [(4, 1, 1, 1)]), (1.0, [(4, 2, 4, 4)])])
def test_a_batch_of_one_kind_is_one_segment(fraction, sizes):
    transport = create_transport(combostoc_type="UNSYNC_ALL", async_fraction=fraction)
    t, *_ = transport.sample(torch.zeros(4, 2, 4, 4))
    assert [tuple(s.shape) for s in transport.segments(t)] == sizes


class Recorder(torch.nn.Module):
    """A model that keeps the timesteps it was called with."""

    def forward(self, x, t):
        self.seen = t
        parts = [t] if isinstance(t, torch.Tensor) else t
        return sin_model(x, torch.cat([s.expand(-1, *x.shape[1:]) for s in parts]))


class SegmentRecorder(Recorder):
    def forward(self, x, t):
        return super().forward(x, t)

    forward.takes_segments = True


class ForkedRecorder(SegmentRecorder):
    def forward(self, x, t):  # as a fork that knows one tensor writes it
        return super().forward(x, t)


def loss_of(model, called=None):
    torch.manual_seed(5)
    transport = create_transport(combostoc_type="UNSYNC_ALL")
    loss = transport.training_losses(model if called is None else called, torch.randn(6, 4, 8, 8))["loss"]
    return loss, [model.seen.shape] if isinstance(model.seen, torch.Tensor) else [s.shape for s in model.seen]


def test_segments_reach_the_models_that_take_them_and_change_no_loss(tmp_path):
    """As SiT's train.py calls the transport, also through DDP and torch.compile; others get one tensor."""
    whole, halves = [(6, 4, 8, 8)], [(3, 4, 8, 8), (3, 1, 1, 1)]
    expected, shapes = loss_of(Recorder())
    assert shapes == whole
    compiled = SegmentRecorder()
    models = {"segments": (SegmentRecorder(), None, halves), "fork": (ForkedRecorder(), None, whole)}
    models["function"] = (plain := Recorder(), lambda x, t: plain(x, t), whole)
    models["compiled"] = (compiled, torch.compile(compiled, backend="eager"), halves)
    for model, called, seen in models.values():
        loss, shapes = loss_of(model, called)
        assert torch.equal(loss, expected) and shapes == seen
    model = SegmentRecorder()
    model.weight = torch.nn.Parameter(torch.zeros(1))  # DDP wants one
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        loss, shapes = loss_of(model, torch.nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(loss, expected) and shapes == halves


def test_the_models_take_segments_and_a_fork_with_its_own_forward_does_not():
    class Fork(SiT):
        def forward(self, x, t, y):
            return super().forward(x, t, y)

    small = {"input_size": 4, "hidden_size": 12, "depth": 1, "num_heads": 2}
    assert takes_segments(SiT(**small)) and takes_segments(ComboStoc(**small)) and not takes_segments(Fork(**small))


@async_types
def test_half_mixing_makes_exactly_the_first_half_asynchronous(kind, seeded):
    for n, fraction, n_async in [(8, 0.5, 4), (5, 0.5, 2), (8, 0.25, 2), (3, 0.0, 0), (3, 1.0, 3)]:
        t = draw_timesteps(torch.zeros(n, 4, 8, 8), ComboStocType[kind], async_fraction=fraction)
        varies = t.flatten(1).amax(1) > t.flatten(1).amin(1)
        assert varies.tolist() == [True] * n_async + [False] * (n - n_async)


def test_a_batch_of_one_is_asynchronous_half_the_time(seeded):
    """floor(1 * 0.5) = 0 would make single-sample batches never asynchronous."""
    draws = [draw_timesteps(torch.zeros(1, 2, 2, 2), ComboStocType.UNSYNC_ALL) for _ in range(2000)]
    share = sum(bool(t.amax() > t.amin()) for t in draws) / len(draws)
    assert abs(share - 0.5) < 4 * (0.25 / len(draws)) ** 0.5


@pytest.mark.parametrize("kind", TYPES)
def test_marginals(kind, seeded):
    """Without blend every entry is uniform (variance 1/12), also for UNSYNC_NONE, whatever use_blend says.

    With blend, Var t = E[(1-p)^2 + p^2] / 12 = 1/18 for asynchronous entries, and synchronous samples stay uniform.
    """
    n = 40000
    x1 = torch.zeros(n, 2, 2, 2)
    for blend in (False, True):
        # the blend's p is one number a batch: average over many small batches
        batches = [draw_timesteps(x, ComboStocType[kind], use_blend=blend) for x in x1.split(40)]
        is_async = [kind != "UNSYNC_NONE"] * 20 + [False] * 20
        t = torch.stack(batches)  # (1000, 40, ...)
        for group, blended in ((slice(0, 20), blend and is_async[0]), (slice(20, 40), False)):
            entries = t[:, group].flatten()
            assert entries.min() >= 0 and entries.max() < 1
            assert abs(entries.mean() - 0.5) < 0.01
            assert abs(entries.var() - (1 / 18 if blended else 1 / 12)) < 0.002


@async_types
def test_a_blend_for_each_sample(kind, seeded):
    """One p a sample: within a batch shares of the asynchronous time differ, and the marginals are those of one p."""
    x1 = torch.zeros(20000, 2, 2, 2)
    t = draw_timesteps(x1, ComboStocType[kind], use_blend="sample")
    assert t.shape == timestep_shape(x1.shape, ComboStocType[kind])
    for part, variance in ((t[:10000], 1 / 18), (t[10000:], 1 / 12)):
        assert abs(part.mean() - 0.5) < 0.01 and abs(part.var() - variance) < 0.002
    # Entries of a sample differ by p times the difference of two uniforms: E p^2 / 6 and E p^4 / 15 are its moments.
    t = draw_timesteps(torch.zeros(4000, 1, 1, 2), ComboStocType.UNSYNC_ALL, use_halfmixing=False, use_blend="sample")
    spread = (t[..., 0] - t[..., 1]).flatten()
    assert abs(spread.square().mean() - 1 / 18) < 0.003
    kurtosis = spread.pow(4).mean() / spread.square().mean() ** 2  # 2.4 if all had one p
    assert abs(kurtosis - 18**2 / 75) < 0.4


def test_an_unknown_blend_is_named():
    with pytest.raises(ValueError, match=r"use_blend.*'patch'"):
        create_transport(use_blend="patch")


def test_what_varies_is_what_the_type_says(seeded):
    x1 = torch.zeros(2, 3, 4, 4)
    all_, patch, vec = (
        draw_timesteps(x1, ComboStocType[k], use_halfmixing=False).expand_as(x1)
        for k in ("UNSYNC_ALL", "UNSYNC_PATCH", "UNSYNC_VEC")
    )
    assert all_[0].unique().numel() == 48
    assert patch[0].unique().numel() == 16 and torch.equal(patch[:, 0], patch[:, 1])
    assert vec[0].unique().numel() == 3 and torch.equal(vec[..., 0, 0], vec[..., 3, 3])


def test_draws_in_float32_for_half_precision_data():
    """bfloat16 has 8 bits: uniform draws in it would take 256 values."""
    t = draw_timesteps(torch.zeros(64, 4, 8, 8, dtype=torch.bfloat16), ComboStocType.UNSYNC_ALL)
    assert t.dtype == torch.float32


@pytest.mark.parametrize("kind", TYPES)
def test_draws_happen_on_the_device_of_the_data(kind):
    for n in (1, 4):
        assert draw_timesteps(torch.zeros(n, 2, 4, 4, device="meta"), ComboStocType[kind]).device.type == "meta"


def test_eps_bounds_the_draws(seeded):
    for kind in TYPES:
        transport = create_transport(train_eps=0.1, combostoc_type=kind)
        t, *_ = transport.sample(torch.zeros(512, 2, 4, 4))
        assert 0.1 <= t.min() < 0.12 and 0.88 < t.max() <= 0.9


def test_async_fraction_out_of_range_is_named():
    base = create_transport()
    with pytest.raises(ValueError, match=r"async_fraction.*1\.5"):
        Transport(
            model_type=base.model_type,
            path_type=base.path_type,
            loss_type=base.loss_type,
            train_eps=0,
            sample_eps=0,
            async_fraction=1.5,
        )
