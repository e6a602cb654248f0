"""Models in wrappers: which take the timesteps of a batch in segments, and who is told where that is lost."""

import functools
import warnings

import pytest
import torch
from torch import nn

from models import ComboStoc, SiT
from transport import create_transport, segments
from transport.segments import takes_segments


def small() -> SiT:
    return SiT(input_size=4, hidden_size=12, depth=1, num_heads=2, num_classes=3)


class Wrapper(nn.Module):
    """A user's own, of which nothing is known."""

    def __init__(self, model) -> None:
        super().__init__()
        self.module = model

    def forward(self, x, t, y):
        return self.module(x, t, y)


def of_a_library(name: str) -> type[Wrapper]:
    """A wrapper like DeepSpeed's engine or PEFT's model: written by that library."""

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    forward.__module__ = f"{name}.engine"
    return type("Engine", (Wrapper,), {"forward": forward})


def prepared(model: SiT) -> nn.Module:
    """As `Accelerator.prepare` leaves a model under mixed precision: with another forward."""
    from accelerate.utils import convert_outputs_to_fp32

    forward = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = convert_outputs_to_fp32(forward).__get__(model)
    return model


HANDED_ON = {
    "itself": lambda m: m,
    "its forward": lambda m: m.forward,
    "partial": lambda m: functools.partial(m, y=torch.zeros(4, dtype=torch.long)),
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "an average": torch.optim.swa_utils.AveragedModel,
    "Accelerate": prepared,
    "Accelerate in an average": lambda m: torch.optim.swa_utils.AveragedModel(prepared(m)),
    "DeepSpeed": lambda m: of_a_library("deepspeed")(m),
    "PEFT in torch.compile": lambda m: torch.compile(of_a_library("peft")(m), backend="eager"),
}
HIDDEN = {"a wrapper": Wrapper, "DataParallel": nn.DataParallel, "a wrapper in another": lambda m: Wrapper(Wrapper(m))}


@pytest.mark.parametrize("wrap", HANDED_ON.values(), ids=HANDED_ON)
def test_wrappers_that_hand_on_keep_the_segments(wrap):
    assert takes_segments(wrap(small()))


@pytest.mark.parametrize("wrap", HIDDEN.values(), ids=HIDDEN)
def test_others_do_not(wrap):
    assert not takes_segments(wrap(small()))


@pytest.fixture
def transport(monkeypatch):
    monkeypatch.setattr(segments, "_warned", set())
    return create_transport(combostoc_type="UNSYNC_PATCH")


def losses(transport, model) -> torch.Tensor:
    torch.manual_seed(0)
    return transport.training_losses(model, torch.randn(4, 4, 4, 4), {"y": torch.arange(4) % 3})["loss"]


def combostoc(family=ComboStoc) -> SiT:
    torch.manual_seed(1)
    model = family(input_size=4, hidden_size=12, depth=1, num_heads=2, num_classes=3, class_dropout_prob=0.0)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    return model


def test_a_hidden_model_is_named_once_and_gives_the_same_loss(transport):
    model = combostoc()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = losses(transport, model)
        losses(transport, torch.optim.swa_utils.AveragedModel(model))
    with pytest.warns(UserWarning, match=r"^Wrapper\.forward is not marked to take segments.*takes_segments = True$"):
        torch.testing.assert_close(losses(transport, Wrapper(model)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(transport, Wrapper(model))


def test_a_subclass_with_a_forward_of_its_own_is_named(transport):
    class Fork(ComboStoc):
        def forward(self, x, t, y):
            return super().forward(x, t, y)

    with pytest.warns(UserWarning, match="Fork.forward is not marked"):
        losses(transport, combostoc(Fork))


def test_nothing_is_said_where_there_is_one_segment_or_no_such_model(transport):
    synchronous = create_transport(combostoc_type="UNSYNC_VEC")

    class Other(nn.Module):
        def forward(self, x, t, y):
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(synchronous, Wrapper(combostoc()))
        transport.training_losses(Other(), torch.randn(4, 4, 4, 4), {"y": torch.zeros(4)})
