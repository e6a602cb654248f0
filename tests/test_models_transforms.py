"""The transformers under torch's transforms: values as they should be, and as the table of docs/library.md says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import ComboStoc, SiT
from shapes.network import Parts
from tests.conftest import ROOT

IMAGE, SHAPE = (4, 4, 4), (5, 3)  # of a sample: (C, H, W), (L, F)
ROWS = {  # family, a sample's shape, its times' shape
    "SiT": (SiT, IMAGE, ()),
    "ComboStoc, a time a sample": (ComboStoc, IMAGE, ()),
    "ComboStoc, a time an entry": (ComboStoc, IMAGE, IMAGE),
    "Parts, a time a number": (Parts, SHAPE, SHAPE),
}
GENERAL = "ComboStoc, a time an entry"
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def build(row: str, dtype=torch.float64) -> SiT:
    """A small model whose zero-initialised layers are not zero. Its features are in chunks, its blocks recomputed."""
    family, sample, _ = ROWS[row]
    torch.manual_seed(3)
    size = {"in_channels": sample[-1]} if family is Parts else {"input_size": 4}
    model = family(
        **size, hidden_size=16, depth=1, num_heads=2, num_classes=5, class_dropout_prob=0.0, grad_checkpointing=1
    )
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    if family is not SiT:
        model.t_embedder.chunk_size = 7
    return model.to(dtype)


def batch(row: str, n: int, dtype=torch.float64) -> Inputs:
    _, sample, times = ROWS[row]
    return torch.randn(n, *sample, dtype=dtype), torch.rand(n, *times, dtype=dtype), torch.arange(n) % 5


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def change(model: SiT, inputs: Inputs, dx: torch.Tensor, dt: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """The derivative of the output along (dx, dt), by central differences."""
    x, t, y = inputs
    with torch.no_grad():
        return (model(x + step * dx, t + step * dt, y) - model(x - step * dx, t - step * dt, y)) / (2 * step)


# ---- derivatives: in float64, against differences and loops --------------------------------------------------------


def by_jvp(model: SiT, inputs: Inputs) -> float:
    x, t, y = inputs
    dx, dt = torch.randn_like(x), torch.ones_like(t)  # as MeanFlow takes it
    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = jvp(lambda x, t: model(x, t, y), (x, t), (dx, dt))
    return error(derivative, change(model, inputs, dx, dt))


def by_vjp(model: SiT, inputs: Inputs) -> float:
    x, t, y = inputs
    dx, dt, v = torch.randn_like(x), torch.randn_like(t), torch.randn_like(x)
    _, pull = vjp(lambda x, t: model(x, t, y), x, t)
    to_x, to_t = pull(v)
    return error((to_x * dx).sum() + (to_t * dt).sum(), (v * change(model, inputs, dx, dt)).sum())


def by_jacobian(transform: Callable, model: SiT, inputs: Inputs) -> float:
    x, t, y = (a[:1] for a in inputs)
    dx = torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = transform(lambda x: model(x, t, y))(x)
    return error(torch.einsum("ij,j->i", jacobian.reshape(x.numel(), -1), dx.flatten()).view_as(x),
                 change(model, (x, t, y), dx, torch.zeros_like(t)))  # fmt: skip


def to_the_times(model: SiT, inputs: Inputs) -> float:
    """By backward(), with autograd's saved tensors where torch.func has none."""
    x, t, y = inputs
    dt, v = torch.randn_like(t), torch.randn_like(x)
    leaf = t.clone().requires_grad_()
    (model(x, leaf, y) * v).sum().backward()
    return error((leaf.grad * dt).sum(), (v * change(model, inputs, torch.zeros_like(x), dt)).sum())


def over_samples(model: SiT, inputs: Inputs) -> float:
    each = vmap(lambda x, t, y: model(x[None], t[None], y[None])[0])
    return error(each(*inputs), model(*inputs))


def over_models(model: SiT, inputs: Inputs) -> float:
    other = build(model.row)
    torch.nn.init.normal_(other.final_layer.linear.weight)
    parameters, buffers = stack_module_state([model, other])
    both = vmap(lambda p, b: functional_call(model, (p, b), inputs))(parameters, buffers)
    return error(both, torch.stack([model(*inputs), other(*inputs)]))


def a_sample(model: SiT, inputs: Inputs) -> float:
    """The gradients of each sample's loss, as DP-SGD and influence functions want them."""
    weights = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def loss(weights, x, t, y):
        return functional_call(model, weights, (x[None], t[None], y[None])).square().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, *inputs)
    worst = 0.0
    for k, one in enumerate(zip(*inputs, strict=True)):
        model.zero_grad()
        model(*(a[None] for a in one)).square().mean().backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        flat = (torch.cat([g[name].flatten() for name in weights]) for g in (
            {name: g[k] for name, g in gradients.items()}, expected))  # fmt: skip
        worst = max(worst, error(*flat))
    return worst


def of_the_gradient(model: SiT, inputs: Inputs) -> float:
    """A Hessian times a vector, forward over reverse, against the difference of two gradients."""
    x, t, y = inputs
    dx, step = torch.randn_like(x), 1e-5
    gradient = grad(lambda x: model(x, t, y).square().sum())
    with sdpa_kernel(SDPBackend.MATH):
        _, product = jvp(gradient, (x,), (dx,))
    return error(product, (gradient(x + step * dx) - gradient(x - step * dx)) / (2 * step))


# ---- graphs: made with one size of batch, run with another -----------------------------------------------------------


def compiled(model: SiT, example: Inputs, other: Inputs) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", fullgraph=True)(*other)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def traced(model: SiT, example: Inputs, other: Inputs) -> torch.Tensor:
    return torch.jit.trace(model, example)(*other)


def exported(model: SiT, example: Inputs, other: Inputs) -> torch.Tensor:
    n = torch.export.Dim("n")
    return torch.export.export(model, example, dynamic_shapes=({0: n}, {0: n}, {0: n})).module()(*other)


def onnx(model: SiT, example: Inputs, other: Inputs, path, **settings) -> torch.Tensor:
    """By the interpreter that comes with onnx."""
    from onnx.reference import ReferenceEvaluator

    torch.onnx.export(model, example, path, input_names=["x", "t", "y"], **settings)
    feed = dict(zip("xty", (a.numpy() for a in other), strict=True))
    return torch.from_numpy(np.asarray(ReferenceEvaluator(str(path)).run(None, feed)[0]))


def onnx_of_a_trace(model: SiT, example: Inputs, other: Inputs, path) -> torch.Tensor:
    axes = {name: {0: "n"} for name in "xty"}
    return onnx(model, example, other, path, dynamo=False, dynamic_axes=axes)


def onnx_of_an_export(model: SiT, example: Inputs, other: Inputs, path) -> torch.Tensor:
    n = torch.export.Dim("n")
    return onnx(model, example, other, path, dynamo=True, dynamic_shapes=({0: n}, {0: n}, {0: n}), verbose=False)


DERIVATIVES = {
    "`jvp`": by_jvp,
    "`vjp`": by_vjp,
    "`jacfwd`": lambda *args: by_jacobian(jacfwd, *args),
    "`jacrev`": lambda *args: by_jacobian(jacrev, *args),
    "`jvp` of `grad`": of_the_gradient,
    "gradient to t": to_the_times,
    "`vmap` over samples": over_samples,
    "`vmap` over models": over_models,
    "gradients a sample": a_sample,
}
GRAPHS = {
    "`torch.compile(fullgraph=True)`": compiled,
    "`torch.jit.trace`": traced,
    "`torch.export`": exported,
    "ONNX, `dynamo=False`": onnx_of_a_trace,
    "ONNX, `dynamo=True`": onnx_of_an_export,
}
SLOW = ["`torch.export`", "ONNX, `dynamo=False`", "ONNX, `dynamo=True`"]  # a second each, or several


def table() -> dict[str, dict[str, str]]:
    """What docs/library.md says of each transform and row."""
    lines = (ROOT / "docs" / "library.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| transform |"))
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[start:]]
    header, rows = cells[0][1:], cells[2 : next(i for i, c in enumerate(cells) if c == [""])]
    return {name: dict(zip(header, says, strict=True)) for name, *says in rows}


def outcome(relative_error: float) -> str:
    return "equal" if relative_error < 1e-5 else f"off by {relative_error:.0e}"


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("transform", DERIVATIVES)
def test_derivatives(transform, row, seeded):
    model = build(row)
    model.row = row
    assert outcome(DERIVATIVES[transform](model, batch(row, 3))) == table()[transform][row]


@pytest.mark.parametrize(
    ("transform", "row"),
    [  # of the slow ones with the most general family only; the others: make drill
        pytest.param(name, row, marks=pytest.mark.drill if name in SLOW and row != GENERAL else ())
        for name in GRAPHS
        for row in ROWS
    ],
)
@pytest.mark.filterwarnings("ignore")  # what a trace takes for constant: channels and positions
def test_graphs_serve_other_sizes_of_a_batch(transform, row, seeded, tmp_path):
    model = build(row, torch.float32).eval()
    example, other = batch(row, 3, torch.float32), batch(row, 7, torch.float32)
    where = [tmp_path / "model.onnx"] if transform.startswith("ONNX") else []
    with torch.no_grad():
        output = GRAPHS[transform](model, example, other, *where)
        assert outcome(error(output, model(*other))) == table()[transform][row]


def test_the_table_is_of_all_transforms_and_families():
    assert list(table()) == [*DERIVATIVES, *GRAPHS]
    assert all(list(row) == list(ROWS) for row in table().values())
