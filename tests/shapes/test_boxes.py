import itertools

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from shapes.boxes import TURNS, named_axes, oriented_box

CUBE = np.array(list(itertools.product([-0.5, 0.5], repeat=3)))


def rotation(axis, degrees: float) -> np.ndarray:
    axis, angle = np.asarray(axis, float) / np.linalg.norm(axis), np.deg2rad(degrees)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def any_rotation(rng) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)


def corners(box) -> np.ndarray:
    return box.center + (CUBE * box.size) @ box.axes


def distance(points, box) -> float:
    """From each point to the nearest corner, and back, in the box's longest sides."""
    apart = np.abs(corners(box)[:, None] - points).max(-1)
    return max(apart.min(0).max(), apart.min(1).max()) / box.size.max()


def contains(points, box) -> bool:
    return bool((np.abs((points - box.center) @ box.axes.T) <= box.size / 2 + 1e-9 * np.ptp(points)).all())


@pytest.mark.parametrize("seed", range(12))
def test_a_box_gives_itself(seed):
    """In any position, of any proportions, with equal edges, with points on its faces, and once in float32."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-2, 1, 3)
    size[1] = size[0] if seed % 3 == 0 else size[1]
    size[2] = size[0] if seed % 6 == 0 else size[2]
    turn, center = any_rotation(rng), rng.normal(size=3)
    points = center + (CUBE * size) @ turn
    box = oriented_box(points)
    assert distance(points, box) < 1e-9
    assert np.allclose(box.axes @ box.axes.T, np.eye(3), atol=1e-12) and np.linalg.det(box.axes) > 0
    more = center + (rng.uniform(-0.5, 0.5, (50, 3)) * size) @ turn
    assert distance(points, oriented_box(np.concatenate([more, points]))) < 1e-9
    single = points.astype(np.float32)
    assert distance(points, oriented_box(single)) * box.size.max() < 1e-6 * max(1, np.abs(points).max())


def test_an_aligned_box_has_the_identity():
    rng = np.random.default_rng(0)
    for turn in TURNS:  # whichever way round its corners are named
        size, center = rng.uniform(0.1, 2, 3), rng.normal(size=3)
        box = oriented_box(center + (CUBE * size) @ turn)
        assert (box.axes == np.eye(3)).all() and not np.signbit(box.axes).any()
        assert np.allclose(box.size, size @ np.abs(turn)) and np.allclose(box.center, center)


@pytest.mark.parametrize("degrees", [10, 30, -30, 44.9])
def test_axes_are_named_after_the_nearest_of_the_world(degrees):
    turn = rotation([0, 1, 0], degrees).T
    for order in TURNS:
        box = oriented_box((CUBE * [3, 1, 2] @ order.T) @ order @ turn)
        assert np.allclose(box.axes, turn, atol=1e-9) and np.allclose(box.size, [3, 1, 2])


def test_the_same_box_has_the_same_axes_whatever_the_rounding():
    """At 45 degrees two ways to name the axes are equally near."""
    rng = np.random.default_rng(0)
    points = (CUBE * [1, 2, 0.5]) @ rotation([0, 1, 0], 45).T
    found = [oriented_box(rng.permutation(points + rng.normal(size=(8, 3)) * 1e-9)) for _ in range(20)]
    for box in found:
        assert np.allclose(box.axes, found[0].axes, atol=1e-6) and np.allclose(box.size, found[0].size, atol=1e-6)


def test_axes_that_are_equally_near_are_named_the_same_from_wherever_one_starts():
    turn = rotation([0, 1, 0], 45).T
    for start in TURNS:
        assert np.allclose(named_axes(start @ turn), named_axes(turn), atol=1e-12)


@pytest.mark.parametrize("size", [[1, 0, 2], [1, 1, 0], [0, 0, 1], [1, 1, 1e-7], [1, 1e-7, 1e-8], [1, 1e-4, 1e-5]])
@pytest.mark.parametrize("degrees", [0, 25])
def test_flat_and_thin_parts(size, degrees):
    turn = rotation([1, 2, 3], degrees)
    points = [1, 2, 3] + (CUBE * size) @ turn
    box = oriented_box(points)
    assert distance(points, box) < 1e-7 and contains(points, box)  # what is thinner than FLAT is a line
    if degrees == 0:
        assert np.allclose(box.axes, np.eye(3), atol=1e-12) and np.allclose(box.size, size, atol=1e-12)


def test_few_points():
    point = oriented_box(np.array([[1.0, 2, 3]]))
    assert (point.size == 0).all() and (point.center == [1, 2, 3]).all() and (point.axes == np.eye(3)).all()
    line = oriented_box(np.array([[0.0, 0, 0], [3, 4, 0]]))
    assert np.allclose(np.sort(line.size), [0, 0, 5]) and np.allclose(line.center, [1.5, 2, 0])
    triangle = oriented_box(np.array([[0.0, 0, 0], [2, 0, 0], [0, 0, 1]]))
    assert np.allclose(triangle.size, [2, 0, 1]) and np.allclose(triangle.axes, np.eye(3))


def prism(sides: int, turn: float) -> np.ndarray:
    """A leg, upright."""
    angles = 2 * np.pi * np.arange(sides) / sides + turn
    return np.array([[np.cos(a) * 0.05, y, np.sin(a) * 0.05] for a in angles for y in (0.0, 1.0)])


@pytest.mark.parametrize("sides", [12, 16, 24, 64])
def test_what_is_round_gets_the_box_nearest_to_the_world(sides):
    for turn in (0, 0.03, 0.1):
        assert (oriented_box(prism(sides, turn)).axes == np.eye(3)).all()
    tilt = rotation([0, 0, 1], 10)
    assert np.allclose(oriented_box(prism(sides, 0.1) @ tilt).axes, tilt, atol=1e-9)
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(500, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    assert (oriented_box(ball).axes == np.eye(3)).all()


@pytest.mark.parametrize("degrees", [0.01, 0.5, 3])
def test_a_box_is_not_made_upright(degrees):
    turn = rotation([0, 0, 1], degrees)
    assert np.allclose(oriented_box((CUBE * [1, 1, 1]) @ turn).axes, turn, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_any_other_part_is_contained_in_a_small_box(seed):
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(30, 3)) * rng.uniform(0.1, 1, 3)) @ any_rotation(rng) + rng.normal(size=3)
    box = oriented_box(points)
    volume = np.prod(box.size)
    assert contains(points, box) and ConvexHull(points).volume <= volume
    assert volume <= np.prod(np.ptp(points, axis=0)) * (1 + 1e-9)  # of the aligned box
    turns = [any_rotation(rng) for _ in range(2000)]
    assert volume <= 1.09 * min(np.prod(np.ptp(points @ turn.T, axis=0)) for turn in turns)
