"""All numbers of a set of small tables."""

import numpy as np
import pytest
import torch

from runtime.errors import DataError
from shapes import judging as shapes_module
from shapes import point_network
from shapes.judging import ShapeJudge
from shapes.sets import ShapeSet, from_shapes
from tests.shapes.test_validity import table

NAMES = ["test_to_samples", "samples_to_test", "coverage_percent", "1NN_accuracy_percent", "FD-points"]
NAMES += ["connected_percent", "standing_percent", "valid_percent", "compared"]
FEW = {"points": 128, "compared": 60}


def tables(n: int, seed: int = 0) -> ShapeSet:
    rng = np.random.default_rng(seed)
    return from_shapes([table(*rng.uniform(0.5, 1.5, 3)) for _ in range(n)], [0] * n, ["table"])


def noised(shapes: ShapeSet, scale: float) -> ShapeSet:
    noise = np.random.default_rng(9).normal(0, scale, shapes.attributes["box.center"].shape)
    center = (shapes.attributes["box.center"] + noise).astype(np.float32)
    return ShapeSet({**shapes.attributes, "box.center": center}, shapes.counts, shapes.labels, shapes.class_names)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_network, "STEPS", 40)
        yield


@pytest.fixture(scope="module")
def reference():
    return tables(80)


@pytest.fixture(scope="module")
def judge(reference):
    return ShapeJudge(reference, **FEW)


def test_other_shapes_of_the_same_kind_are_as_good(judge):
    found = judge.evaluate(tables(80, 1))
    assert list(found) == NAMES and all(isinstance(value, float) for value in found.values())
    assert 30 < found["1NN_accuracy_percent"] < 70 and 35 < found["coverage_percent"] < 85
    assert found["valid_percent"] == 100 and found["FD-points"] < 0.1 and found["compared"] == 60


def test_noised_copies_are_the_worse_the_more_noise(judge, reference):
    results = [judge.evaluate(noised(reference, scale)) for scale in (0, 0.1, 0.4)]
    for name in ("test_to_samples", "samples_to_test", "FD-points", "1NN_accuracy_percent"):
        values = [result[name] for result in results]
        assert values == sorted(values) and values[2] > 1.2 * values[0], name
    for name in ("coverage_percent", "valid_percent"):
        values = [result[name] for result in results]
        assert values == sorted(values, reverse=True) and values[0] > values[2], name


def test_a_set_against_itself(judge, reference):
    """Samples have points of their own, as if they were other surfaces: distances are those of the points' spacing."""
    found, other = judge.evaluate(reference), judge.evaluate(tables(80, 1))
    assert found["coverage_percent"] > 90 and found["1NN_accuracy_percent"] < 10 and found["FD-points"] < 0.02
    assert found["test_to_samples"] == pytest.approx(found["samples_to_test"], rel=0.02)
    assert 0 < found["test_to_samples"] < 0.8 * other["test_to_samples"]


def test_as_many_of_both_are_compared(judge):
    found = judge.evaluate(tables(9, 1))
    assert found["compared"] == 9 and all(np.isfinite(list(found.values())))
    within = judge._within
    judge.evaluate(tables(30, 1))
    assert judge._within is within, "real shapes are compared once"


def test_one_call_is_the_same_and_a_seed_decides(monkeypatch, reference):
    monkeypatch.setattr(point_network, "STEPS", 2)
    samples = tables(20, 1)
    once = ShapeJudge(reference, **FEW).evaluate(samples)
    assert once == pytest.approx(ShapeJudge(reference, **FEW).evaluate(samples))
    other = ShapeJudge(reference, **FEW, seed=1).evaluate(samples)
    assert all(other[name] != once[name] for name in ("test_to_samples", "samples_to_test", "FD-points"))


def test_the_network_may_be_trained_on_more(monkeypatch, reference):
    monkeypatch.setattr(point_network, "STEPS", 2)
    found = ShapeJudge(reference, training=tables(120, 5), **FEW)
    assert len(found.clouds) == 80
    assert found.evaluate(reference)["FD-points"] < 0.02, "between samples and the reference, not what it has seen"


def test_at_most_so_many_of_a_set(monkeypatch, reference):
    monkeypatch.setattr(shapes_module, "MAX_SHAPES", 12)
    monkeypatch.setattr(point_network, "STEPS", 2)
    judge = ShapeJudge(reference, **FEW)
    assert len(judge.clouds) == len(judge.reference) == 12
    assert judge.evaluate(tables(30, 1))["compared"] == 12


def test_bad_sets_are_one_line(judge, reference):
    empty = reference.select([])
    for bad, said in ((empty, "0 shapes"), (reference.select([0]), "1 shapes")):
        with pytest.raises(DataError, match=f"^samples: {said}; two or more are needed$"):
            judge.evaluate(bad)
        with pytest.raises(DataError, match=f"^reference: {said}"):
            ShapeJudge(bad)
    for name, row, shape, value in (
        *(("box.center", 5, 1, torch.inf), ("box.size", 4, 0, torch.nan), ("box.axes", 399, 79, torch.inf)),
        *(("box.center", 399, 79, -1e20), ("box.size", 5, 1, 1e20)),  # whose squares are infinite
    ):
        values = reference.attributes[name].copy()
        values[row, 1] = value
        broken = ShapeSet({**reference.attributes, name: values}, reference.counts, reference.labels, ["table"])
        with pytest.raises(DataError, match=rf"^samples: {name} of shape {shape} is not finite, or beyond 1e\+15$"):
            judge.evaluate(broken)
