"""The study's judge of shapes: against what samples are held, and what it says of them."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import judge as drawing
from experiments import judge_shapes as module
from experiments.judge import unguided
from experiments.judge_shapes import judge_shapes, make_shape_judge
from experiments.measurements import ShapeRow
from shapes import point_network
from shapes.sets import Layout, ShapeSet, ShapeSpace, furniture

COUNT = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(point_network, "STEPS", 20)
    monkeypatch.setattr(module, "OFTEN_POINTS", 64)
    monkeypatch.setattr(module, "OFTEN_COMPARED", 20)


@pytest.fixture(scope="module")
def some() -> ShapeSet:
    return furniture(count=COUNT)


def with_split(shapes: ShapeSet, *names: str) -> ShapeSet:
    """The names in turn, or no split."""
    split = np.array([names[k % len(names)] for k in range(len(shapes))]) if names else None
    return ShapeSet(shapes.attributes, shapes.counts, shapes.labels, shapes.class_names, split)


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (("train", "val", "test"), "test"),
        (("train", "val"), "val"),
        (("train",), "train"),
        ((), None),
    ],
)
def test_what_is_held_out_is_what_was_not_trained_on(some, names, held_out):
    shapes = with_split(some, *names)
    judge = make_shape_judge(shapes)
    expected = shapes if held_out is None else shapes.of_split(held_out)
    order = np.lexsort(judge.reference.attributes["box.center"].T)
    assert np.array_equal(
        judge.reference.attributes["box.center"][order],
        expected.attributes["box.center"][np.lexsort(expected.attributes["box.center"].T)],
    )


def judged(monkeypatch, judge, made: torch.Tensor, layout: Layout, names: list[str]) -> ShapeRow:
    """The row of a model that makes these, one after the other."""
    given = iter(made)

    def draw(args, network, noise, y, model):
        return torch.stack([next(given) for _ in y]), 5

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(drawing, "guided_by", lambda args, network: network.model)
    space = ShapeSpace(layout)
    network = SimpleNamespace(
        autoencoder=space, settings={}, model=torch.nn.Linear(1, 1), num_labels=len(names), class_names=names
    )
    row = ShapeRow("x", 0, 1, "digest", len(made), 5)
    judge_shapes(unguided("SDE"), network, judge, row)
    return row


def test_real_shapes_are_better_than_noised_ones_and_the_row_is_complete(some, monkeypatch):
    shapes = with_split(some, *["train"] * (COUNT // 2), *["test"] * (COUNT // 2))  # both of all classes
    judge, layout = make_shape_judge(shapes), Layout.of(shapes)
    numbers = torch.stack([layout.encode(shapes[k]) for k in range(COUNT // 2)])  # of those that are not held out
    noise = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0))
    noise[..., 0] = 0  # of as many parts
    real = judged(monkeypatch, judge, numbers, layout, shapes.class_names)
    noised = judged(monkeypatch, judge, numbers + noise, layout, shapes.class_names)
    assert real.accuracy > 0.9 > noised.accuracy and real.fd < noised.fd
    assert real.test_to_samples < noised.test_to_samples and real.samples_to_test < noised.samples_to_test
    assert real.parts == noised.parts == pytest.approx(shapes.counts[: COUNT // 2].mean())
    values = {name: value for name, value in asdict(real).items() if isinstance(value, float) and name != "seconds"}
    assert len(values) == 9 and all(np.isfinite(value) and value > 0 for value in values.values()), values
    assert real.accuracy <= 1 and real.coverage <= 100 and real.nearest <= 100
