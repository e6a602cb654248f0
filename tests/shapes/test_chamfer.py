"""Against loops that are written as the definitions read, and what must hold for any sets."""

import pytest
import torch

from runtime.errors import DataError
from shapes import chamfer
from shapes.chamfer import chamfer_distances, coverage, nearest_means, nearest_neighbour_accuracy


def clouds(n: int, points: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Of different places and sizes, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    place, size = (torch.rand(n, 1, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return (5 + place + size * torch.rand(n, points, 3, dtype=torch.float64, generator=generator)).to(dtype)


def naive(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    found = torch.zeros(len(a), len(b), dtype=torch.float64)
    for i, x in enumerate(a.double()):
        for j, y in enumerate(b.double()):
            there = sum(min(((p - q) ** 2).sum().item() for q in y) for p in x) / len(x)
            back = sum(min(((p - q) ** 2).sum().item() for p in x) for q in y) / len(y)
            found[i, j] = there + back
    return found


# ---- distances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chamfer_is_the_definition(dtype, error):
    a, b = clouds(3, 12, 0, dtype), clouds(4, 12, 1, dtype)
    found = chamfer_distances(a, b)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), naive(a, b), rtol=error, atol=error / 10)
    torch.testing.assert_close(chamfer_distances(a), chamfer_distances(a, a.clone()), rtol=error, atol=error / 10)


@pytest.mark.parametrize("cells", [1, 7, 50, 300, 1000, 10**6])
def test_blocks_change_nothing(cells, monkeypatch):
    """Of a few points of a cloud, of one cloud, and of several clouds at a time; the last are fewer."""
    a, b = clouds(7), clouds(6, seed=1)
    expected = naive(a[:3], b[:3])
    monkeypatch.setattr(chamfer, "CELLS", cells)
    found = chamfer_distances(a, b)
    torch.testing.assert_close(found[:3, :3], expected)
    torch.testing.assert_close(found, torch.cat([chamfer_distances(x[None], b) for x in a]))
    within = chamfer_distances(a)
    torch.testing.assert_close(within, chamfer_distances(a, a.clone()))
    assert (within.diagonal() == 0).all() and (within == within.T).all()


def test_copies_are_at_nothing_and_what_is_near_is_exact():
    """Also in float32, where the matrix product alone would be wrong in the first digit."""
    a = clouds(5, dtype=torch.float32)
    assert (chamfer_distances(a, a.clone()).diagonal() == 0).all()
    moved = a + 1e-4 * torch.tensor([1.0, -2, 3])
    expected = naive(a, moved).diagonal()
    torch.testing.assert_close(chamfer_distances(a, moved).diagonal().double(), expected, rtol=1e-4, atol=0)
    near = chamfer_distances(torch.cat([a, moved]))
    assert (near == near.T).all()
    torch.testing.assert_close(near.diagonal(5).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("far", [1e5, 1e9])
def test_one_cloud_far_away_changes_nothing_for_the_others(far):
    a, b = clouds(6, dtype=torch.float32), clouds(5, seed=1, dtype=torch.float32)
    expected = chamfer_distances(a, b)
    a[2] *= far
    found = chamfer_distances(a, b)
    torch.testing.assert_close(found[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]], rtol=1e-4, atol=1e-5)
    assert (found[2] > far).all()


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (clouds(0), clouds(2), r"no shapes, or no points: .*\(0, 16, 3\)"),
        (clouds(2), clouds(2, 0), r"no shapes, or no points: .*\(2, 0, 3\)"),
        (clouds(2, 5), clouds(2, 6), "of 5 and 6 points"),
        (clouds(2)[..., :2], clouds(2), r"\(2, 16, 2\); \(N, P, 3\) is needed"),
        (clouds(2)[0], clouds(2), r"\(16, 3\); \(N, P, 3\) is needed"),
        (clouds(2).long(), clouds(2), r"int64 of shape \(2, 16, 3\)"),
        (clouds(2), clouds(3).index_fill(0, torch.tensor([1]), torch.nan), "cloud 1 of 3 is not finite"),
    ],
)
def test_bad_clouds_are_one_line(a, b, said):
    with pytest.raises(DataError, match=said) as error:
        chamfer_distances(a, b)
    assert "\n" not in str(error.value)


# ---- of sets -------------------------------------------------------------------------------------------------------


def between_and_within(samples: torch.Tensor, test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return chamfer_distances(samples), chamfer_distances(samples, test), chamfer_distances(test)


def test_numbers_of_sets_are_their_definitions():
    samples, test = clouds(12, 20), clouds(12, 20, 1)
    samples[3] = test[5] = test[6]  # the last two have a copy on both sides
    within, between, real = between_and_within(samples, test)
    n = range(12)
    to_samples = sum(min(between[i, j].item() for i in n) for j in n) / 12
    to_test = sum(min(between[i, j].item() for j in n) for i in n) / 12
    assert nearest_means(between) == pytest.approx((to_samples, to_test), rel=1e-12)
    covered = {j for i in n for j in n if between[i, j] == between[i].min()}
    assert coverage(between) == pytest.approx(100 * len(covered) / 12) and 20 < coverage(between) < 90
    right = 0.0
    for k in n:
        for own, other in ((within[k], between[k]), (real[k], between[:, k])):
            nearest = min(own[i].item() for i in n if i != k)
            nearest_other = other.min().item()
            right += 0.5 if nearest == pytest.approx(nearest_other, rel=1e-9) else float(nearest < nearest_other)
    assert nearest_neighbour_accuracy(within, between, real) == pytest.approx(100 * right / 24)


def test_numbers_of_sets_by_hand():
    """Points of a line: samples at 0 and 1, test shapes at 0.1 and 5."""
    samples, test = torch.tensor([0.0, 1]), torch.tensor([0.1, 5])
    within, between, real = ((a[:, None] - b).square() for a, b in ((samples, samples), (samples, test), (test, test)))
    assert nearest_means(between) == pytest.approx(((0.01 + 16) / 2, (0.01 + 0.81) / 2))
    assert coverage(between) == 50
    # The nearest to 0 is 0.1, to 1 is 0.1, to 0.1 is 0, and to 5 is 1: wrong, all.
    assert nearest_neighbour_accuracy(within, between, real) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_against_itself(dtype):
    """All is covered, and 1-NN, who takes each shape's copy for its neighbour, is never right."""
    a = clouds(20, dtype=dtype)
    within, between, real = between_and_within(a, a.clone())
    assert nearest_means(between) == (0, 0) and coverage(between) == 100
    assert nearest_neighbour_accuracy(within, between, real) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_within_a_set_are_all_covered_and_tie(dtype):
    a = clouds(10, dtype=dtype)
    a = torch.cat([a, a])
    within, between, real = between_and_within(a, a.clone())
    assert coverage(between) == 100
    assert nearest_neighbour_accuracy(within, between, real) == 50, "each has a copy on both sides"


def test_halves_of_one_set_are_hard_to_tell_and_other_sets_are_not():
    a = clouds(400, 10)
    within, between, real = between_and_within(a[:200], a[200:])
    assert 42 < nearest_neighbour_accuracy(within, between, real) < 58
    within, between, real = between_and_within(a[:200], a[200:] + 3)
    assert nearest_neighbour_accuracy(within, between, real) == 100


def test_distances_grow_with_noise():
    a = clouds(20)
    noise = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(3))
    found = [nearest_means(chamfer_distances(a + scale * noise, a)) for scale in (0, 0.01, 0.03, 0.1, 0.3)]
    for numbers in zip(*found, strict=True):
        assert list(numbers) == sorted(numbers) and len(set(numbers)) == 5


@pytest.mark.parametrize("sizes", [(3, 4), (1, 1)])
def test_1nn_takes_sets_of_one_size(sizes):
    n, m = sizes
    with pytest.raises(ValueError, match=f"not {n} and {m} shapes"):
        nearest_neighbour_accuracy(torch.zeros(n, n), torch.zeros(n, m), torch.zeros(m, m))
