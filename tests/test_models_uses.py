"""What others do with the models: hooks, replicas, quantisation, empty batches, arguments by position."""

import pytest
import torch
from torch import nn

from models import ComboStoc, SiT, timestep_embedding
from tests.test_models_transforms import ROWS, batch, build, error

rows = pytest.mark.parametrize("row", ROWS)


def model_and_batch(row: str, n: int = 4) -> tuple[SiT, tuple[torch.Tensor, ...]]:
    return build(row, torch.float32).eval(), batch(row, n, torch.float32)


# ---- hooks -----------------------------------------------------------------------------------------------------------


@rows
@pytest.mark.parametrize("name", ["blocks.0", "final_layer"])
def test_hooks_see_tensors_and_gradients(row, name, seeded):
    """Grad-CAM, REPA, CKA, feature extractors: what goes in, what comes out, and the gradient of both."""
    model, inputs = model_and_batch(row)
    seen = {}
    module = model.get_submodule(name)
    module.register_forward_hook(lambda m, i, o: seen.update(input=i[0], output=o))
    module.register_full_backward_hook(lambda m, i, o: seen.update(input_gradient=i[0], output_gradient=o[0]))
    model(*inputs).square().sum().backward()
    tokens = (4, *model.embed(inputs[0]).shape[1:])
    assert seen["input"].shape == seen["input_gradient"].shape == tokens
    assert seen["output"].shape == seen["output_gradient"].shape
    assert all(a.isfinite().all() and (a != 0).any() for a in seen.values())


@rows
def test_a_hook_may_replace_what_a_block_returns(row, seeded):
    model, inputs = model_and_batch(row)
    before = model(*inputs)
    model.blocks[0].register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    assert error(model(*inputs), before) > 1e-3


def test_where_times_are_a_list_blocks_keep_lists(seeded):
    model, (x, t, y) = model_and_batch("ComboStoc, a time an entry")
    seen = []
    model.blocks[0].register_forward_hook(lambda m, i, o: seen.append([p.shape[0] for p in o]))
    whole = model(x, torch.cat([t[:1], t[1:, :1, :1, :1].expand(3, 4, 4, 4)]), y)
    assert error(model(x, [t[:1], t[1:, :1, :1, :1]], y), whole) < 1e-5
    assert seen[1:] == [[1, 3]]


# ---- layers that are not as they were made ---------------------------------------------------------------------------


def replica(model: nn.Module) -> nn.Module:
    """As `DataParallel` makes them: no parameter of a replica is registered."""
    made = {m: m._replicate_for_data_parallel() for m in model.modules()}
    for old, new in made.items():
        for k, child in old._modules.items():
            setattr(new, k, made[child])
        for k, p in old._parameters.items():
            setattr(new, k, None if p is None else p.detach().clone())
    return made[model]


class Packed(nn.Module):
    """A linear layer like those of 4 bits: a weight of bytes, and products in the input's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
        self.kept = [linear]

    def forward(self, x):
        return nn.functional.linear(x, self.kept[0].weight.to(x.dtype), self.kept[0].bias.to(x.dtype))


class Stored(Packed):
    """One whose weight is kept in float8, and made what the input is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def with_linears(model: SiT, kind: type[Packed]) -> SiT:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, kind(child))
    return model


@rows
def test_replicas_have_no_parameters(row, seeded):
    model, inputs = model_and_batch(row)
    copy = replica(model)
    assert not list(copy.parameters())
    torch.testing.assert_close(copy(*inputs), model(*inputs))


@rows
@pytest.mark.filterwarnings("ignore")  # torch will move it to torchao
def test_dynamic_quantisation(row, seeded):
    model, inputs = model_and_batch(row)
    expected = model(*inputs)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert 0 < error(quantised(*inputs), expected) < 0.3


@rows
@pytest.mark.parametrize("kind", [Packed, Stored])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_whose_weights_are_no_floats_take_the_dtype_of_x(row, kind, dtype, seeded):
    model, (x, t, y) = model_and_batch(row)
    expected = model(x, t, y)
    output = with_linears(model.to(dtype), kind)(x.to(dtype), t, y)
    assert output.dtype == dtype and error(output.float(), expected) < (1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("cls", [SiT, ComboStoc])
def test_weights_say_the_dtype_where_they_are_floats(cls, seeded):
    """Also where x is in half precision, under autocast."""
    model, (x, t, y) = model_and_batch("SiT" if cls is SiT else "ComboStoc, a time a sample")
    expected = model(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(model(x.bfloat16(), t, y).float(), expected) < 0.1
        assert model.embed_timesteps(t, x.bfloat16()).dtype == torch.float32


# ---- batches and arguments -------------------------------------------------------------------------------------------


@rows
def test_an_empty_batch(row, seeded):
    """Forward, backward and under guidance: a process's share of a last batch."""
    model, (x, t, y) = model_and_batch(row, 0)
    for output in (model(x, t, y), model.train()(x, t, y), model.forward_with_cfg(x, t, y, 4.0)):
        assert output.shape == x.shape
        output.sum().backward()


def test_log_variance_by_position_or_name(seeded):
    model, inputs = model_and_batch("SiT")
    both = model(*inputs, True)
    assert both.shape == (4, 8, 4, 4)
    assert torch.equal(both, model(*inputs, log_variance=True))
    assert torch.equal(model(*inputs, False), both[:, :4])


@pytest.mark.parametrize("dim", [6, 7])
def test_features_of_times_keep_float64_and_are_float32_at_least(dim):
    t = torch.rand(5, dtype=torch.float64)
    exact = timestep_embedding(t, dim)
    assert exact.dtype == torch.float64 and exact.shape == (5, dim)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        rounded = timestep_embedding(t.to(dtype), dim)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, timestep_embedding(t.to(dtype).double(), dim).float())
    assert dim % 2 == 0 or (exact[:, -1] == 0).all()
