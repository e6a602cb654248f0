import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import ComboStoc, ComboStoc_models, Conditioning, PatchTimestepEmbedder, SiT, SiT_models
from tests.conftest import GOLDEN, Operations, golden, golden_model_config, relative_error

G = golden("models")
FAMILIES = {"combostoc": ComboStoc, "sit": SiT}
SHAPES = json.loads((GOLDEN / "state_dict_shapes.json").read_text())


def golden_model(family: str) -> SiT:
    model = FAMILIES[family](**golden_model_config())
    prefix = f"{family}/weights/"
    model.load_state_dict({k.removeprefix(prefix): v for k, v in G.items() if k.startswith(prefix)})
    return model.eval()


def random_model(cls=ComboStoc, **kwargs) -> SiT:
    """A small model whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(3)
    settings = {"input_size": 8, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    model = cls(**settings | kwargs)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_of_the_published_models(name):
    with torch.device("meta"):
        registry = SiT_models if name.startswith("SiT") else ComboStoc_models
        # sizes only: initialisation needs real memory, 2.7 GB for XL
        model = _shapes_only(registry[name])
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert shapes == SHAPES[name]
    assert list(shapes) == list(SHAPES[name])  # the optimiser's state is kept by position


def _shapes_only(build):
    original = SiT.initialize_weights
    SiT.initialize_weights = lambda self: None
    try:
        return build(input_size=32, num_classes=1000, learn_sigma=True)
    finally:
        SiT.initialize_weights = original


def test_registries():
    names = {f"{size}/{p}" for size in ("XS", "S", "B", "L", "XL") for p in (1, 2, 4, 8, 16, 32)}
    assert set(SiT_models) == {f"SiT-{n}" for n in names}
    assert set(ComboStoc_models) == {f"ComboStoc-{n}" for n in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_outputs(family):
    model = golden_model(family)
    x, y, t, t_full = (G[f"{family}/{k}"] for k in ("x", "y", "t_scalar", "t_full"))
    outputs = {
        "out_t_scalar": lambda: model(x, t, y),
        "out_cfg4_t_scalar": lambda: model.forward_with_cfg(x, t[:1].expand(len(x)), y, 4.0),
    }
    if family == "combostoc":
        outputs |= {
            "out_t_full": lambda: model(x, t_full, y),
            "out_t_patch": lambda: model(x, t_full[:, :1], y),
            "out_t_vec": lambda: model(x, t_full[:, :, :1, :1], y),
            "t_embedding_full": lambda: model.t_embedder(t_full),
        }
    with torch.no_grad():
        for name, output in outputs.items():
            assert relative_error(output(), G[f"{family}/{name}"]) < 1e-5, name


def test_position_embedding_is_the_predecessors():
    assert relative_error(SiT(**golden_model_config()).pos_embed, G["sit/weights/pos_embed"]) < 1e-6


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1, 1), (3, 4, 1, 1), (3, 1, 8, 8), (3, 4, 8, 8)])
def test_one_conditioning_token_equals_one_a_token(shape, seeded):
    """Every shape of t gives what its expansion to one time per entry gives, outputs and gradients."""
    model = random_model().double()
    x, y = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 10])
    t = torch.rand(shape, dtype=torch.float64)
    expanded = t.reshape(shape + (1,) * (4 - len(shape))).expand(3, 4, 8, 8)
    model.eval()
    results = []
    for times in (t, expanded):
        model.zero_grad()
        output = model(x, times, y)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, per_token in zip(*results, strict=True):
        assert relative_error(one, per_token) < 1e-6


def outputs_and_gradients(model: SiT, x, t, y) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(x, t, y)
    output.square().mean().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["per sample", "per channel", "segments"])
def test_one_token_equals_one_a_token_in_float32(kind, seeded):
    """To 1e-6, on the outputs and on the gradients as a whole: the speed costs no accuracy."""
    model = random_model(hidden_size=96, depth=4, class_dropout_prob=0.0)
    x, y = torch.randn(6, 4, 8, 8), torch.randint(10, (6,))
    t = {"per sample": torch.rand(6), "per channel": torch.rand(6, 4, 1, 1)}.get(kind)
    if t is None:
        t = [torch.rand(2, 4, 8, 8), torch.rand(1, 4, 1, 1), torch.rand(3)]
    parts = t if isinstance(t, list) else [t]
    expanded = torch.cat([s.reshape(s.shape + (1,) * (4 - s.ndim)).expand(-1, 4, 8, 8) for s in parts])
    fast, slow = outputs_and_gradients(model, x, t, y), outputs_and_gradients(model, x, expanded, y)
    assert (fast[0] - slow[0]).norm() < 1e-6 * slow[0].norm()
    difference, whole = (
        torch.cat([g.flatten() for g in gradients])
        for gradients in ([a - b for a, b in zip(fast[1:], slow[1:], strict=True)], slow[1:])
    )
    assert difference.norm() < 1e-6 * whole.norm()


def test_segments_must_cover_the_batch():
    with pytest.raises((ValueError, RuntimeError)):
        random_model()(torch.randn(4, 4, 8, 8), [torch.rand(1), torch.rand(2)], torch.zeros(4, dtype=torch.long))


def test_a_block_by_itself(seeded):
    """As README tells those who called the predecessors' block: a vector a token, or one for all."""
    block = random_model().blocks[0]
    x = torch.randn(2, 16, 48)
    outputs = []
    for c in (one := torch.randn(2, 1, 48), one.expand(2, 16, 48)):
        n, k, _ = c.shape
        conditioning = Conditioning(c.flatten(0, 1), ((n, k),))
        outputs.append(block(x, conditioning))
        (of_a_list,) = block([x], conditioning)
        assert torch.equal(of_a_list, outputs[-1])
    assert outputs[0].shape == x.shape
    torch.testing.assert_close(*outputs)


def test_parts_of_a_batch_share_each_product(seeded):
    """A half-mixed batch goes through every block once; only the timestep embedder works for each part by itself."""
    model = random_model(depth=2, class_dropout_prob=0.0)
    x, y = torch.randn(4, 4, 8, 8), torch.tensor([1, 2, 3, 9])
    calls, counts = [], []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    for t in (torch.rand(4, 4, 8, 8), [torch.rand(2, 4, 8, 8), torch.rand(2, 1, 1, 1)]):
        with Operations() as forward:
            output = model(x, t, y)
        with Operations() as backward:
            output.square().sum().backward()
        counts.append((forward.names.count("aten.addmm"), backward.names.count("aten.mm")))
        assert len(calls) == 2
        calls.clear()
    (forward_one, backward_one), (forward_two, backward_two) = counts
    assert (
        forward_two - forward_one == 2 and backward_two - backward_one == 3
    )  # a gradient summed would be a second one


class Shapes(TorchDispatchMode):
    """Largest tensor, in numbers, that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_timestep_features_never_exist_whole(seeded):
    """Neither forward nor backward; the embedding does not depend on the chunks."""
    embedder = PatchTimestepEmbedder(input_size=16, patch_size=2, in_channels=4, hidden_size=32)
    t = torch.rand(8, 4, 16, 16)  # 8192 entries, 2 million features
    whole = embedder(t)
    whole.square().sum().backward()
    gradients = [p.grad.clone() for p in embedder.parameters()]
    embedder.zero_grad()
    embedder.chunk_size = 1000
    kept = []
    with Shapes() as shapes:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            embedding = embedder(t)
        embedding.square().sum().backward()
    torch.testing.assert_close(embedding, whole)
    for p, expected in zip(embedder.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-4)
    assert shapes.largest <= 1000 * 256 and sum(kept) < 8192 * 256 / 8  # at a time, and until the backward pass


def test_the_silu_of_the_conditioning_is_taken_once(monkeypatch):
    calls = []
    original = F.silu
    monkeypatch.setattr(F, "silu", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    model = random_model(depth=4)
    model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 1]))
    assert len(calls) == 1 + 1  # and the timestep embedder's own


@pytest.mark.parametrize("cls", [SiT, ComboStoc])
def test_bfloat16_autocast_leaves_times_norms_and_output_in_float32(cls, seeded):
    model = random_model(cls)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.997, 0.999]), torch.tensor([0, 1])
    exact, times = model(x, t, y), model.embed_timesteps(t, x)
    inputs = {}
    for name in ("norm1", "norm2"):
        module = getattr(model.blocks[-1], name)
        module.register_forward_hook(lambda m, i, o, name=name: inputs.update({name: (i[0].dtype, o.dtype)}))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.embed_timesteps(t, x), times)
        output = model(x, t, y)
    assert output.dtype == torch.float32 and set(inputs.values()) == {(torch.float32, torch.float32)}
    assert 0 < (output - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.drill)])  # half a minute
def test_compiled_equals_eager(backend, seeded, monkeypatch):
    """Outputs and gradients of a half-mixed batch, and of inference; blocks share what is compiled."""
    by_default = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: by_default(self, **kw, backend=backend))
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    model = random_model(depth=3, class_dropout_prob=0.0)
    x, y = torch.randn(4, 4, 8, 8), torch.tensor([1, 2, 3, 9])
    t = [torch.rand(2, 4, 8, 8), torch.rand(2, 1, 1, 1)]
    eager = outputs_and_gradients(model, x, t, y)
    with torch.no_grad():
        inferred = model.eval()(x, torch.rand(4).fill_(0.3), y)
    model.train().compile_blocks()
    for compiled, expected in zip(outputs_and_gradients(model, x, t, y), eager, strict=True):
        assert (compiled - expected).norm() <= 1e-4 * expected.norm().clamp_min(1e-3)
    with torch.no_grad():
        assert relative_error(model.eval()(x, torch.rand(4).fill_(0.3), y), inferred) < 1e-4
    assert list(model.state_dict()) == list(random_model(depth=3).state_dict())
    assert counters["stats"]["unique_graphs"] == 2  # training and inference, not times three blocks


def test_constant_times_make_one_conditioning_token():
    model = random_model()
    x = torch.randn(3, 4, 8, 8)
    for shape, tokens in [((3,), 1), ((3, 1, 1, 1), 1), ((3, 4, 1, 1), 1), ((3, 1, 8, 8), 16), ((3, 4, 8, 8), 16)]:
        assert model.embed_timesteps(torch.rand(shape), x).shape == (3, tokens, 48)


def test_time_of_one_entry_reaches_its_own_token_only():
    model = random_model()
    x, t = torch.randn(1, 4, 8, 8), torch.rand(1, 4, 8, 8)
    changed = t.clone()
    changed[0, 2, 5, 3] += 0.3  # token row 2, column 1
    difference = (model.embed_timesteps(t, x) - model.embed_timesteps(changed, x)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [2 * 4 + 1]


@pytest.mark.parametrize("cls", [SiT, ComboStoc])
def test_a_fresh_model_predicts_zero(cls):
    """adaLN-Zero: the output layer starts at zero."""
    model = cls(input_size=8, hidden_size=48, depth=2, num_heads=3, num_classes=10)
    assert model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 1])).abs().max() == 0


@pytest.mark.parametrize("cls", [SiT, ComboStoc])
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_output_has_the_shape_of_the_input(cls, learn_sigma, channels):
    model = random_model(cls, in_channels=channels, learn_sigma=learn_sigma)
    x = torch.randn(2, channels, 8, 8)
    assert model(x, torch.rand(2), torch.tensor([0, 1])).shape == x.shape
    for cfg_channels in (3, None):
        guided = model.forward_with_cfg(x, torch.rand(2), torch.tensor([0, 10]), 4.0, cfg_channels=cfg_channels)
        assert guided.shape == x.shape


def test_guidance_on_three_channels_or_all():
    model = random_model().eval()
    x, y = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor([3, 10])
    t = torch.full((2,), 0.4)
    cond, uncond = model(x, t, y)
    expected = uncond + 4 * (cond - uncond)
    three = model.forward_with_cfg(x, t, y, 4.0)[0]
    all_ = model.forward_with_cfg(x, t, y, 4.0, cfg_channels=None)[0]
    torch.testing.assert_close(all_, expected)
    torch.testing.assert_close(three, torch.cat([expected[:3], cond[3:]]))


def test_labels_are_dropped_to_the_null_class_of_this_model(seeded):
    """The null class is num_classes, not 1000; in training a tenth of the labels go there, in inference none."""
    embedder = random_model().y_embedder
    labels = torch.full((20000,), 4)
    assert embedder.token_drop(torch.tensor([1, 2]), torch.tensor([1, 0])).tolist() == [10, 2]
    dropped = (embedder.token_drop(labels) == 10).float().mean()
    assert abs(dropped - 0.1) < 0.01
    table = embedder.embedding_table.weight
    assert torch.equal(embedder(labels[:9], train=False), table[4].expand(9, -1))


def test_gradient_checkpointing_changes_no_number_and_rests_in_inference(monkeypatch, seeded):
    import models

    calls = []
    original = models.checkpoint

    def counted(function, *args, **kwargs):
        calls.extend([1] if isinstance(function, models.SiTBlock) else [])
        return original(function, *args, **kwargs)

    monkeypatch.setattr(models, "checkpoint", counted)
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2, 4, 8, 8), torch.tensor([1, 2])
    results = []
    for recompute in (False, 2, True):
        model = random_model(grad_checkpointing=recompute, class_dropout_prob=0.0).train()
        output = model(x, t, y)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(calls) == {False: 0, 2: 1, True: 1 + 2}[recompute]  # of two blocks
    for plain, every_second, every in zip(*results, strict=True):
        torch.testing.assert_close(plain, every_second, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(plain, every, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        model(x, t, y)
    model.eval()(x, t, y)
    assert len(calls) == 3


def test_wrong_shapes_of_t_are_named():
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    for t in (torch.rand(3), torch.rand(2, 3, 1, 1), torch.rand(2, 4, 4, 4), torch.rand(2, 4)):
        with pytest.raises(ValueError, match="does not fit x"):
            random_model()(x, t, y)
    with pytest.raises(ValueError, match="one timestep per sample"):
        random_model(SiT)(x, torch.rand(2, 4, 8, 8), y)
    assert random_model(SiT)(x, torch.rand(2, 1, 1, 1), y).shape == x.shape


def test_input_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="input size 9 is not a multiple of the patch size 2"):
        ComboStoc(input_size=9, patch_size=2)
