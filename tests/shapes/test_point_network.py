"""What a network must learn of a set, and what its distance must say."""

import pytest
import torch

from evaluation.metrics import frechet_distance, moments
from runtime.errors import DataError
from shapes import point_network
from shapes.point_network import FEATURES, PointNetwork

POINTS = 64


def boxes_and_balls(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of surfaces, of many heights, and which they are."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, POINTS, 3, generator=generator)
    labels = torch.arange(n) % 2
    length = torch.where(labels[:, None, None] == 0, points.norm(dim=2, keepdim=True), points.abs().amax(2, True))
    size = 0.3 + torch.rand(n, 1, 3, generator=generator) * torch.tensor([0.2, 1, 0.2])
    return points / length * size, labels


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(point_network, "STEPS", 60)


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_network, "STEPS", 60)
        return PointNetwork(*boxes_and_balls(200, 0), 2)


def test_it_learns_classes_and_forms(network):
    assert network.accuracy > 0.85 and network.explained > 0.15
    clouds, labels = boxes_and_balls(100, 1)
    assert (network.classes(clouds) == labels).double().mean() > 0.85
    assert network.features(clouds).shape == (100, FEATURES)
    assert network.moments.cov.trace() > 0


def test_sets_of_one_class_have_features_too():
    clouds, _ = boxes_and_balls(100, 0)
    alone = PointNetwork(clouds, torch.zeros(100), 1)
    assert alone.accuracy == 1 and alone.explained > 0.1
    assert alone.distance(clouds + 0.3) > 3 * alone.distance(boxes_and_balls(100, 1)[0])


def test_the_distance_is_of_the_features_and_in_units_of_the_data(network):
    clouds, reference = boxes_and_balls(100, 1)[0] + 0.1, boxes_and_balls(100, 2)[0]
    found = [moments(network.features(c)) for c in (clouds, reference)]
    assert network.distance(clouds, reference) == pytest.approx(frechet_distance(*found) / found[1].cov.trace().item())
    assert network.distance(boxes_and_balls(200, 0)[0]) == pytest.approx(0, abs=1e-6), "what it was trained on"


def test_the_distance_grows_with_noise(network):
    clouds, _ = boxes_and_balls(200, 0)
    noise = torch.randn(clouds.shape, generator=torch.Generator().manual_seed(3))
    found = [network.distance(clouds + scale * noise) for scale in (0, 0.03, 0.1, 0.3)]
    assert found == sorted(found) and len(set(found)) == 4


def test_features_do_not_depend_on_the_order_of_points_or_on_who_is_beside(network):
    clouds, _ = boxes_and_balls(6, 1)
    features = network.features(clouds)
    torch.testing.assert_close(network.features(clouds.flip(1)), features)
    torch.testing.assert_close(network.features(clouds.double()[2:4]), features[2:4])


def test_a_seed_makes_one_network_and_leaves_the_generator_alone(monkeypatch):
    monkeypatch.setattr(point_network, "STEPS", 5)
    clouds, labels = boxes_and_balls(30, 0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = PointNetwork(clouds, labels, 2, seed=4)
    assert torch.equal(torch.rand(3), expected)
    second, other = PointNetwork(clouds, labels, 2, seed=4), PointNetwork(clouds, labels, 2, seed=5)
    assert torch.equal(first.features(clouds), second.features(clouds))
    assert not torch.equal(first.features(clouds), other.features(clouds))


@pytest.mark.parametrize(
    ("clouds", "said"),
    [
        (torch.zeros(1, 5, 3), "cannot be trained on 1 shape"),
        (torch.zeros(0, 5, 3), "no shapes"),
        (torch.full((3, 5, 3), torch.nan), "cloud 0 of 3 is not finite"),
    ],
)
def test_bad_sets_are_one_line(clouds, said):
    with pytest.raises(DataError, match=said):
        PointNetwork(clouds, torch.zeros(len(clouds)), 1)
