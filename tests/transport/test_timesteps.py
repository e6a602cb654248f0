import functools
import math
from itertools import product

import pytest
import torch

from models import ComboStoc, ComboStoc_models, SiT
from tests.conftest import golden
from transport import ComboStocType, Transport, create_transport, draw_timesteps, timestep_shape, timesteps
from transport.names import OF_SHAPES
from transport.segments import takes_segments
from transport.timesteps import OLD_NAMES, WITH_NUMBERS

TYPES = [c.name for c in ComboStocType if c.name not in OF_SHAPES]
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
@pytest.mark.parametrize("settings", [{}, {"use_halfmixing": False}, {"use_blend": False}, {"use_blend": "sample"}])
def test_segments_are_the_batch_in_its_two_kinds(kind, settings, seeded):
    """Asynchronous samples as they are, synchronous ones as one time each; joined they are the batch again."""
    transport = create_transport(train_eps=0.01, combostoc_type=kind, **settings)
    for shape in ((6, 4, 8, 8), (5, 4, 8, 8), (6, 5, 3), (1, 4, 8, 8), (4, 2, 3, 4, 4)):
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


# ---- ways of drawing -----------------------------------------------------------------------------------------------

N, D = 125_000, 8  # a million draws
VAR_LOGNORMAL = 0.043379  # of sigmoid(n), by quadrature


def moments(draw) -> tuple[float, float, float]:
    """Mean and variance of an entry, and covariance of two entries of a sample."""
    torch.manual_seed(0)
    t = draw(torch.empty(N, 2, 2, 2, dtype=torch.float64)).expand(N, 2, 2, 2).flatten(1)
    assert t.min() >= 0 and t.max() <= 1
    away = t - t.mean()
    variance, of_sum = away.square().mean().item(), away.sum(1).square().mean().item()
    return t.mean().item(), variance, (of_sum / D - variance) / (D - 1)


@pytest.mark.parametrize(
    ("draw", "mean", "variance", "covariance"),
    [
        (timesteps.diffusion_forcing, 1 / 2, 1 / 12, 0),
        (timesteps.logit_normal, 1 / 2, VAR_LOGNORMAL, VAR_LOGNORMAL),
        (timesteps.blend, 1 / 2, 1 / 18, 1 / 36),
        (timesteps.blend_logit_normal, 1 / 2, VAR_LOGNORMAL * 2 / 3, VAR_LOGNORMAL / 3),
        (timesteps.blend_logit_normal_async, 1 / 2, VAR_LOGNORMAL * 2 / 3, VAR_LOGNORMAL / 6),
        (timesteps.asyncpatch, 1 / 2, 1 / 9, 1 / 12),
        (timesteps.self_flow, 1 / 2, 1 / 12, 5 / 8 / 12),
    ],
)
def test_moments_of_the_draws(draw, mean, variance, covariance):
    assert moments(draw) == pytest.approx((mean, variance, covariance), abs=1.5e-3)


def test_logit_normal_times_are_normal_before_the_sigmoid():
    torch.manual_seed(0)
    t = timesteps.logit_normal(torch.empty(N, 3, 1), loc=0.5, scale=2.0)
    assert t.shape == (N, 1, 1)  # one a sample
    n = torch.logit(t.double())
    assert n.mean().item() == pytest.approx(0.5, abs=0.03) and n.std().item() == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 64, 192])
def test_shares_are_in_bounds_and_have_their_sum(d):
    torch.manual_seed(0)
    total = torch.cat([torch.tensor([0.0, d]), torch.rand(1000) * d])
    shares = timesteps.split_total(total, d, sharpness=1.0)
    assert shares.shape == (1002, d) and shares.min() >= 0 and shares.max() <= 1
    assert (shares.mean(1) - total / d).abs().max() < 1e-6


@pytest.mark.parametrize("d", [2, 3, 64])
def test_the_mean_of_a_samples_times_is_uniform(d):
    torch.manual_seed(0)
    means = timesteps.srm(torch.empty(20_000, d, dtype=torch.float64)).mean(1).sort().values
    assert (means - torch.linspace(0, 1, 20_000)).abs().max() < 0.015  # Kolmogorov and Smirnov's distance


def test_which_entry_comes_first_does_not_matter_to_srm():
    torch.manual_seed(0)
    t = timesteps.srm(torch.empty(40_000, 3))
    assert (t.mean(0) - 0.5).abs().max() < 0.01 and t.var(0).std() < 0.01


def test_no_entry_knows_more_than_the_greatest_time_of_patch_forcing():
    torch.manual_seed(0)
    t = timesteps.patch_forcing(torch.empty(N, D, dtype=torch.float64))
    torch.manual_seed(0)
    m = torch.sigmoid(0.7 + torch.randn(N, 1, dtype=torch.float64))
    assert (t <= m).all() and (t >= 0).all()
    ratio = t / m  # 1 - |n| / 2, or where |n| > 2 (4.55 %), uniform
    assert ratio.mean().item() == pytest.approx(0.6323, abs=2e-3)
    assert (ratio > 0.5).double().mean().item() == pytest.approx(0.6827 + 0.0455 / 2, abs=2e-3)


def test_two_times_a_sample():
    torch.manual_seed(0)
    t = timesteps.self_flow(torch.empty(N, D))
    kinds = torch.tensor([len(row.unique()) for row in t[:2000]])
    assert kinds.max() == 2 and (kinds == 1).double().mean().item() == pytest.approx(0.75**8 + 0.25**8, abs=0.02)


NAMES = [name for name in timesteps.TIMES if name != "combostoc"]


@pytest.mark.parametrize("name", NAMES)
def test_every_draw_has_a_shape_that_its_type_allows(name):
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    shapes = ((5, 3, 4, 4), (1, 2, 1, 1), (4, 6, 3), (2, 2, 2, 3, 4))
    for kind, shape, dtype in product(map(ComboStocType.__getitem__, TYPES), shapes, dtypes):
        t = draw_timesteps(torch.zeros(shape, dtype=dtype), kind, times=name)
        assert t.dtype == torch.promote_types(dtype, torch.float32)
        assert t.expand(timestep_shape(shape, kind)).shape == timestep_shape(shape, kind)
        assert t.isfinite().all() and t.min() >= 0 and t.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_any_draw_is_that_of_its_segments(name):
    """Through a model that takes a time for each segment, and one that takes them all at once."""
    for kind, half in product(ASYNC, (False, True)):
        losses, transport = [], create_transport(combostoc_type=kind, times=name, use_halfmixing=half)
        for model in (SegmentRecorder(), Recorder()):
            torch.manual_seed(5)
            losses.append(transport.training_losses(model, torch.randn(6, 4, 8, 8))["loss"])
        assert torch.equal(*losses) and losses[0].isfinite().all(), (kind, half)


@pytest.mark.parametrize("name", NAMES)
def test_a_half_mixed_batch_of_any_draw(name):
    """Its synchronous half has one time a sample, with the distribution of one entry."""
    torch.manual_seed(0)
    x1 = torch.zeros(4001, 1, 2, 2)
    t = draw_timesteps(x1, ComboStocType.UNSYNC_ALL, times=name, use_halfmixing=True)
    first, second = t.expand_as(x1)[:2000].flatten(1), t.expand_as(x1)[2000:].flatten(1)
    assert (second == second[:, :1]).all()
    if name != "logit-normal":
        assert (first != first[:, :1]).any(1).double().mean() > 0.5
    assert second[:, 0].mean().item() == pytest.approx(first.mean().item(), abs=0.04)
    (alone,) = draw_timesteps(x1[:1], ComboStocType.UNSYNC_ALL, times=name, use_halfmixing=True, async_fraction=0.0)
    assert (alone == alone[0, 0, 0]).all()


def test_a_draw_of_ones_own():
    """In five lines."""

    def late(t):
        return 0.9 + 0.1 * torch.rand_like(t)

    transport = create_transport(combostoc_type="UNSYNC_PATCH", times=late)
    t, *_ = transport.sample(torch.zeros(6, 3, 4, 4))
    assert t.shape == (6, 1, 4, 4) and t.min() >= 0.9 and not transport.use_halfmixing
    assert len(transport.segments(t)) == 1
    with pytest.raises(
        ValueError, match="unknown times 'early'; choose from combostoc, diffusion-forcing, logit-normal"
    ):
        create_transport(times="early")


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8, 1), (1, 1, 1, 8), (6, 1, 1, 8), (6, 1, 8, 1), (1, 1, 8, 8)])
def test_an_own_draw_that_broadcasts_reaches_the_models(shape):
    """A time a column, a row, a position of all samples: as the models take them, and equal to times of full shape."""
    drawn = torch.rand(shape)
    losses, x1, y = [], torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=3, num_classes=2, class_dropout_prob=0.0)
    for times in (lambda t: drawn, lambda t: drawn.expand(t.shape)):
        transport = create_transport(combostoc_type="UNSYNC_PATCH", times=times)
        torch.manual_seed(0)
        losses.append(transport.training_losses(model, x1, {"y": y})["loss"])
        assert transport.sample(x1)[0].shape == (6, 1, 8, 8)
    assert torch.equal(*losses)


@pytest.mark.parametrize("shape", [(6, 1, 1, 1), (6, 3, 1, 1)])
def test_an_own_draw_that_is_the_same_for_all_positions_stays_so(shape):
    """For one conditioning vector serves all tokens then."""
    transport = create_transport(combostoc_type="UNSYNC_ALL", times=lambda t: torch.rand(shape))
    assert transport.sample(torch.zeros(6, 3, 8, 8))[0].shape == shape


RENAMED = {  # what each was called, and is drawn by
    "uniform": timesteps.diffusion_forcing,
    "lognormal": timesteps.logit_normal,
    "blend-lognormal": timesteps.blend_logit_normal,
    "blend-lognormal-async": timesteps.blend_logit_normal_async,
    "mean": timesteps.srm,
    "spread": timesteps.asyncpatch,
    "below": timesteps.patch_forcing,
    "two": timesteps.self_flow,
}


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_draw_what_they_drew(old):
    assert RENAMED.keys() == OLD_NAMES.keys()
    transport = create_transport(combostoc_type="UNSYNC_ALL", times=old)
    assert transport.times == RENAMED[old].__name__.replace("_", "-") in timesteps.TIMES
    torch.manual_seed(0)
    drawn = draw_timesteps(x1 := torch.zeros(3, 2, 4, 4), ComboStocType.UNSYNC_ALL, times=old)
    torch.manual_seed(0)
    assert torch.equal(drawn, RENAMED[old](torch.empty_like(x1)))
    if "lognormal" in old:
        assert create_transport(times=f"{old}:-0.8,0.5").times == f"{transport.times}:-0.8,0.5"


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_loc_and_scale_are_those_of_the_normal(name):
    """With a single entry a time is a blend of two, which a small SCALE brings together at sigmoid(LOC)."""
    x1 = torch.zeros(N, 2, 2, 1)

    def drawn(times):
        torch.manual_seed(0)
        return draw_timesteps(x1, ComboStocType.UNSYNC_ALL, times=times)

    assert torch.equal(drawn(name), drawn(f"{name}:0,1"))
    assert (drawn(f"{name}:-0.8,1e-3") - torch.sigmoid(torch.tensor(-0.8))).abs().max() < 2e-3
    shifted, wide = (torch.logit(drawn(f"{name}:{numbers}").double()) for numbers in ("1,0.01", "1,0.02"))
    torch.testing.assert_close(wide - 1, 2 * (shifted - 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ("early", "unknown times 'early'; choose from"),
        ("logit-normal:", "LOC,SCALE, two numbers"),
        ("logit-normal:1", "LOC,SCALE, two numbers"),
        ("logit-normal:1,2,3", "LOC,SCALE, two numbers"),
        ("blend-logit-normal:0,0", "the second positive"),
        ("lognormal:nan,1", "times 'lognormal:nan,1'"),
        ("logit-normal:0,inf", "the second positive"),
        ("blend:0,1", "numbers are for logit-normal, .*, not for blend"),
        ("two:0,1", "not for self-flow"),
    ],
)
def test_draws_that_are_none_end_in_one_line(times, says):
    with pytest.raises(ValueError, match=says):
        create_transport(times=times)
    with pytest.raises(ValueError, match=says):
        draw_timesteps(torch.zeros(1, 1), ComboStocType.UNSYNC_NONE, times=times)


# ---- shapes --------------------------------------------------------------------------------------------------------

ATTRIBUTES = (1, 3, 3, 6)  # existence and a box
WHERE = {  # what has one time: over parts, over the numbers of an attribute, over all numbers
    "UNSYNC_NONE": (1, 1),
    "UNSYNC_PART": (5, 1),
    "UNSYNC_ATT": (1, 4),
    "UNSYNC_ATT_PART": (5, 4),
    "UNSYNC_VEC": (1, 13),
    "UNSYNC_ALL": (5, 13),
}


@pytest.mark.parametrize("kind", WHERE)
def test_times_of_shapes_are_constant_where_they_must_be_and_differ_where_they_may(kind, seeded):
    """The numbers of an attribute share one in UNSYNC_ATT and UNSYNC_ATT_PART, all parts in UNSYNC_ATT, and so on."""
    for name in timesteps.TIMES:
        x1 = torch.zeros(400, 5, 13)
        transport = create_transport(combostoc_type=kind, attributes=ATTRIBUTES, times=name, use_halfmixing=False)
        t, *_ = transport.sample(x1)
        t = (t[:, None, None] if t.ndim == 1 else t).expand_as(x1)
        assert t.min() >= 0 and t.max() <= 1
        parts, numbers = WHERE[kind]
        if name == "logit-normal":
            parts, numbers = 1, 1
        if parts == 1:
            assert (t == t[:, :1]).all()
        if numbers == 1:
            assert (t == t[:, :, :1]).all()
        if numbers == len(ATTRIBUTES):
            for attribute in t.split(ATTRIBUTES, dim=2):
                assert (attribute == attribute[:, :, :1]).all()
        distinct = torch.tensor([len(sample.unique()) for sample in t])
        assert distinct.max() <= (2 if name == "self-flow" else parts * numbers)
        if name == "diffusion-forcing":
            assert (distinct == parts * numbers).double().mean() > 0.9
            starts = [0, 1, 4, 7][:numbers] if numbers <= 4 else range(13)
            own = t[:, :parts, starts].flatten(1)
            correlation = torch.corrcoef(own.T) if own.shape[1] > 1 else torch.ones(1, 1)
            assert (correlation - torch.eye(len(correlation))).abs().max() < 0.25  # independent


def test_types_are_of_images_or_of_shapes():
    with pytest.raises(ValueError, match="UNSYNC_PART is for shapes"):
        create_transport(combostoc_type="UNSYNC_PART")
    with pytest.raises(ValueError, match="UNSYNC_PATCH is for images"):
        create_transport(combostoc_type="UNSYNC_PATCH", attributes=ATTRIBUTES)
    with pytest.raises(ValueError, match=r"difficulty 0\.01 is for images"):
        create_transport(attributes=ATTRIBUTES, difficulty=0.01)


@pytest.mark.parametrize("kind", WHERE)
def test_a_half_mixed_batch_of_shapes_in_segments(kind, seeded):
    transport = create_transport(
        combostoc_type=kind, attributes=ATTRIBUTES, times="diffusion-forcing", use_halfmixing=True
    )
    t, *_ = transport.sample(torch.zeros(6, 5, 13))
    segments = transport.segments(t)
    assert torch.equal(torch.cat([s.expand(-1, *t.shape[1:]) for s in segments]), t)
    assert len(segments) == (2 if WHERE[kind][0] == 5 else 1)
    assert t.ndim == 1 or (t[3:] == t[3:, :1, :1]).all()


@pytest.mark.parametrize(
    ("times", "named"),
    [
        (lambda t: t.new_full(t.shape, math.nan), r"times by <lambda>: they hold NaN; times lie in \[0, 1\]"),
        (lambda t: torch.rand_like(t) + 0.5, r"times by <lambda>: they run from .* to 1\..*; times lie in \[0, 1\]"),
        (lambda t: -torch.rand_like(t), "they run from -"),
        (lambda t: torch.where(torch.arange(4) == 2, math.inf, 0.5)[:, None, None, None], "to inf; times lie in"),
        (lambda t: torch.rand(3), r"they are of shape \(3,\), which does not broadcast to \(4, 2, 4, 4\)"),
        (lambda t: 0.5, "it returned float, not a tensor"),
        (functools.partial(torch.full_like, fill_value=1000), "times by partial: they run from 1000 to 1000"),
    ],
)
def test_own_times_that_are_none_end_in_one_line(times, named):
    for half in (False, True):
        transport = create_transport(combostoc_type="UNSYNC_ALL", times=times, use_halfmixing=half)
        with pytest.raises(ValueError, match=named):
            transport.sample(torch.zeros(4, 2, 4, 4))


@pytest.mark.parametrize("kind", ComboStocType.__members__)
def test_an_empty_batch_has_no_times_and_no_segments(kind):
    shapes = kind in ("UNSYNC_PART", "UNSYNC_ATT", "UNSYNC_ATT_PART")
    x1 = torch.zeros(0, 5, 3) if shapes else torch.zeros(0, 4, 8, 8)
    transport = create_transport(combostoc_type=kind, attributes=(1, 2) if shapes else None)
    losses = transport.training_losses(lambda x, t: x, x1)
    assert losses["loss"].shape == (0,) and losses["pred"].shape == x1.shape
    t, *_ = transport.sample(x1)
    assert [len(part) for part in transport.segments(t)] == [0]
