"""Shapes made by hand, and distances of boxes that are known otherwise."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from shapes.meshes import rotations
from shapes.sets import Shape, from_shapes
from shapes.validity import TOLERANCE, corners, diagonal, gaps, ground_level, is_connected, stands, validity

GROUND = (0.0, 0.0)


def boxes(*rows: tuple[float, ...], turn: float = 0) -> Shape:
    """Of centres and sizes, all turned about the y axis by so many degrees."""
    values = np.array(rows, float)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    whole = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    axes = np.tile(whole[:2].reshape(1, 6), (len(values), 1))
    return {"box.center": values[:, :3] @ whole, "box.size": values[:, 3:], "box.axes": axes}


def table(width: float = 1.2, height: float = 0.7, depth: float = 0.8, leg: float = 0.05, turn: float = 0) -> Shape:
    """A top, 0.04 thick, on four legs."""
    legs = [
        (x * (width - leg) / 2, (height - 0.04) / 2, z * (depth - leg) / 2, leg, height - 0.04, leg)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    return boxes((0, height - 0.02, 0, width, 0.04, depth), *legs, turn=turn)


def changed(shape: Shape, part: int, name: str, by: tuple[float, float, float]) -> Shape:
    values = shape[name].copy()
    values[part] += by
    return {**shape, name: values}


def random_boxes(n: int, seed: int) -> Shape:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0][:, :2].reshape(n, 6)
    return {"box.center": 1.5 * rng.normal(size=(n, 3)), "box.size": rng.random((n, 3)), "box.axes": axes}


def true_distance(shape: Shape, i: int, j: int) -> float:
    """Between the nearest points of two boxes, by least squares under bounds."""
    axes, half = rotations(shape["box.axes"]), shape["box.size"] / 2
    edges = np.concatenate([axes[i], -axes[j]]).T
    bound = np.concatenate([half[i], half[j]])
    found = lsq_linear(edges, shape["box.center"][j] - shape["box.center"][i], (-bound, bound), tol=1e-14)
    return float(np.sqrt(2 * found.cost))


# ---- boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 30, 90])
def test_gaps_by_hand(turn):
    shape = boxes((0, 0, 0, 1, 1, 1), (2, 0, 0, 1, 3, 1), (0.75, 0, 0, 1, 1, 1), (0, 3, 3, 1, 1, 1), turn=turn)
    found = gaps(shape)
    assert (np.diag(found) == 0).all() and (found == found.T).all()
    expected = {(0, 1): 1, (0, 2): -0.25, (1, 2): 0.25, (0, 3): 2}
    assert {pair: found[pair] for pair in expected} == pytest.approx(expected)


def test_gaps_are_bounded_by_the_distance():
    shape = random_boxes(16, 0)
    found = gaps(shape)
    apart = 0
    for i in range(16):
        for j in range(i):
            distance = true_distance(shape, i, j)
            if distance < 1e-4:
                assert found[i, j] < 1e-4, "boxes that meet have no gap"
            else:
                apart += 1
                assert distance / np.sqrt(3) - 1e-6 <= found[i, j] <= distance + 1e-6
    assert apart > 60


def test_gaps_between_crossing_edges():
    """Two beams on edge, one across the other: the faces' normals alone see half of what is between them."""
    c = np.sqrt(0.5)
    shape = boxes((0, 0, 0, 4, 1, 1), (0, 2, 0, 1, 1, 4))
    shape["box.axes"] = np.array([[1, 0, 0, 0, c, c], [c, c, 0, -c, c, 0]])
    assert gaps(shape)[0, 1] == pytest.approx(2 - 2 * c) == true_distance(shape, 0, 1)


def test_corners_are_of_the_turned_boxes():
    found = corners(boxes((1, 2, 3, 2, 4, 6), turn=90))[0]
    assert np.ptp(found, axis=0) == pytest.approx((6, 4, 2)) and found.mean(0) == pytest.approx((3, 2, -1))
    assert diagonal(found) == pytest.approx(np.sqrt(56))


# ---- connected -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 17])
@pytest.mark.parametrize("size", [0.1, 1, 10])
def test_parts_that_touch_are_connected_at_any_size(turn, size):
    shape = table(turn=turn)
    shape = {**shape, "box.center": shape["box.center"] * size, "box.size": shape["box.size"] * size}
    slack = TOLERANCE * diagonal(corners(shape))
    assert is_connected(shape)
    assert is_connected(changed(shape, 0, "box.center", (0, 0.9 * slack, 0)))
    assert not is_connected(changed(shape, 0, "box.center", (0, 1.2 * slack, 0))), "the top is above the legs"
    assert not is_connected(changed(shape, 3, "box.center", (0, -3 * slack, 0))), "a leg has come off"
    assert not is_connected(changed(shape, 4, "box.center", (9 * size, 0, 0)))


def test_two_pieces_are_not_one():
    """Every part touches another one, and yet."""
    one, other = table(), table()
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    assert is_connected(both)
    both["box.center"][5:, 0] += 2
    assert not is_connected(both)
    bridge = boxes((1, 0.68, 0, 2, 0.02, 0.1))
    assert is_connected({name: np.concatenate([both[name], bridge[name]]) for name in both})


def test_one_part_is_connected_and_order_does_not_matter():
    assert is_connected(boxes((0, 0, 0, 1, 1, 1)))
    chain = boxes(*((k, 0, 0, 1, 0.1, 0.1) for k in range(12)))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(12)
        shape = {name: values[order] for name, values in chain.items()}
        assert is_connected(shape)
        without = {name: np.delete(values, np.argmax(order == 5), 0) for name, values in shape.items()}
        assert not is_connected(without)


# ---- standing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 25, 45])
def test_a_table_stands(turn):
    shape = table(turn=turn)
    assert stands(shape, GROUND)
    slack = TOLERANCE * diagonal(corners(shape))
    for up, does in ((0.9, True), (1.1, False), (-0.9, True), (-1.1, False)):
        moved = {**shape, "box.center": shape["box.center"] + [0, up * slack, 0]}
        assert stands(moved, GROUND) == does
        assert stands(moved, (-0.1, 0.1)), "where the set's shapes are as high"


def test_what_falls_over_does_not_stand():
    shape = table()
    three = {name: np.delete(values, 4, 0) for name, values in shape.items()}
    assert stands(three, GROUND), "the centre of mass is at the edge of three legs"
    two = {name: values[:3] for name, values in shape.items()}  # both at one side
    assert not stands(two, GROUND)
    assert not stands(changed(shape, 0, "box.center", (0.9, 0, 0)), GROUND), "the top is beside the legs"
    longer = changed(changed(shape, 1, "box.size", (0, 0.2, 0)), 1, "box.center", (0, -0.1, 0))
    longer["box.center"][:, 1] += 0.2
    assert not stands(longer, GROUND), "one leg is longer"


def test_what_is_flat_is_judged():
    """Whose boxes have no volume."""
    assert stands(boxes((0, 0, 0, 1, 0, 1)), GROUND)
    assert stands(boxes((0, 0.5, 0, 1, 1, 0)), GROUND)
    upright = boxes((0, 0, 0, 0.1, 0, 0.1), (2, 1, 0, 1, 0, 1))
    assert not stands(upright, GROUND)  # a large panel beside a small foot
    assert not stands(boxes((0, 0, 0, 0, 0, 0)), GROUND)


def test_a_thin_foot_is_enough_below_the_middle():
    assert stands(boxes((0, 0.5, 0, 1, 1, 0.01)), GROUND)
    assert stands(boxes((0, 0.05, 0, 0.02, 0.1, 0.02), (0, 0.6, 0, 1, 1, 1)), GROUND)
    assert not stands(boxes((0.3, 0.05, 0, 0.02, 0.1, 0.02), (0, 0.6, 0, 1, 1, 1)), GROUND)


# ---- sets ----------------------------------------------------------------------------------------------------------


def test_validity_of_a_set():
    good = table()
    floating = {**good, "box.center": good["box.center"] + [0, 1, 0]}
    broken = changed(good, 0, "box.center", (0, 0.2, 0))
    heavy = boxes((1.6, 0.68, 0, 2, 0.3, 0.8))  # at its side
    falling = {name: np.concatenate([good[name], heavy[name]]) for name in good}
    shapes = from_shapes([good, good, floating, broken, falling], [0] * 5, ["table"])
    assert validity(shapes, GROUND) == pytest.approx(
        {"connected_percent": 80, "standing_percent": 60, "valid_percent": 40}
    )


def test_the_ground_of_a_set_is_where_nearly_all_stand():
    shapes = [{**table(), "box.center": table()["box.center"] + [0, k / 1000, 0]} for k in range(400)]
    shapes[7]["box.center"] -= 5
    low, high = ground_level(from_shapes(shapes, [0] * 400, ["table"]))
    assert low == pytest.approx(0.002, abs=0.003) and high == pytest.approx(0.397, abs=0.003)
