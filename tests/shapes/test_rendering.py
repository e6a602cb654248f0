import numpy as np
import pytest

from shapes.meshes import PALETTE
from shapes.rendering import BACKGROUND, View, camera, render
from shapes.sets import furniture


def boxes(*centers, size=0.3, exponents=None):
    n = len(centers)
    made = {
        "box.center": np.array(centers, float),
        "box.size": np.broadcast_to(np.array(size, float), (n, 3)).copy(),
        "box.axes": np.tile([1.0, 0, 0, 0, 1, 0], (n, 1)),
    }
    return made if exponents is None else {**made, "code.exponents": np.array(exponents, float)}


def coloured(picture):
    """Pixels of parts; the ground and its shadow are nearly grey."""
    return np.ptp(picture.astype(int), axis=2) > 15


def part_at(picture):
    """The part whose colour a pixel has, -1 where it has none."""
    pixels = picture.astype(float)
    hue = pixels / np.linalg.norm(pixels, axis=2, keepdims=True)
    palette = PALETTE / np.linalg.norm(PALETTE.astype(float), axis=1, keepdims=True)
    near = hue @ palette.T
    return np.where(coloured(picture) & (near.max(2) > 0.997), near.argmax(2), -1)


VIEW = View((0.0, 0.0, 0.0), 2.0)


@pytest.mark.parametrize("center", [(0, 0, 0), (0.4, -0.3, 0.2), (-0.5, 0.4, -0.3)])
@pytest.mark.parametrize("exponents", [None, [(0.02, 0.02)]])
def test_a_box_lands_where_it_should(center, exponents):
    found = coloured(render(boxes(center, exponents=exponents), 200, VIEW))
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.15 + center
    seen = (corners @ camera().T)[:, :2] * 100
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert columns[[0, -1]] == pytest.approx([100 + seen[:, 0].min(), 99 + seen[:, 0].max()], abs=1.5)
    assert rows[[0, -1]] == pytest.approx([100 - seen[:, 1].max(), 99 - seen[:, 1].min()], abs=1.5)
    x, y = camera()[:2] @ center * 100
    assert found[round(100 - y), round(100 + x)]


def test_the_camera_is_in_front_and_above():
    """The front of a cube, its right side and its top are seen, each of another brightness; up is up."""
    right, up, near = camera()
    np.testing.assert_allclose(camera() @ camera().T, np.eye(3), atol=1e-12)
    assert right[0] > 0.5 and up[1] > 0.5 and near[2] > near[0] > 0 and near[1] > 0
    picture = render(boxes((0, 0, 0), size=0.8), 100, VIEW)

    def brightness(point):
        x, y = camera()[:2] @ point * 50
        return float(picture[round(50 - y), round(50 + x)].mean())

    top, front, side = brightness([0, 0.4, 0]), brightness([0, 0, 0.4]), brightness([0.4, 0, 0])
    assert top > front + 10 and front > side + 10


@pytest.mark.parametrize("exponents", [None, (1.0, 1.0)])
def test_what_is_nearer_hides_what_is_farther(exponents):
    near, far = camera()[2] * 0.6, camera()[2] * -0.6
    both = None if exponents is None else [exponents] * 2
    for centers, seen in (((near, far), 0), ((far, near), 1)):
        found = part_at(render(boxes(*centers, exponents=both), 100, VIEW))
        assert (found == seen).sum() > 100 and not (found == 1 - seen).any()
    aside = part_at(render(boxes([0.6, 0, 0], [-0.6, 0, 0], exponents=both), 100, VIEW))
    assert (aside == 0).sum() == pytest.approx((aside == 1).sum(), rel=0.1)


def test_parts_that_cut_each_other_are_each_seen_where_they_are_nearer():
    cross = boxes((0, 0, 0), (0, 0, 0))
    cross["box.size"] = np.array([[1.2, 0.1, 0.1], [0.1, 1.2, 0.1]])
    found = part_at(render(cross, 120, VIEW))
    for part, point in ((0, [0.5, 0, 0.05]), (0, [-0.5, 0, 0.05]), (1, [0, 0.5, 0.05]), (1, [0, -0.5, 0.05])):
        x, y = camera()[:2] @ point * 60
        assert found[round(60 - y), round(60 + x)] == part


def test_nothing_is_where_nothing_is():
    picture = render(boxes((0, 0.3, 0), size=0.2), 96, VIEW)
    for corner in (picture[:20, :20], picture[:20, -20:], picture[-10:, :20], picture[-10:, -10:]):
        assert (corner == BACKGROUND).all()
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    outside = render(boxes((9, 9, 9)), 64, VIEW)  # a stray part is no error
    assert (outside == BACKGROUND).all()


def test_a_shadow_lies_on_the_ground():
    grey = ~coloured(render(boxes((0, 0, 0)), 96, VIEW))
    picture = render(boxes((0, 0, 0)), 96, VIEW)
    assert (picture[grey].max(1) < BACKGROUND.min() - 20).any()


def test_edges_are_smooth():
    """A silhouette's pixels are partly a part's and partly the ground's."""
    rows = render(boxes((0, 0, 0)), 100, VIEW).astype(int).sum(2)
    assert len(np.unique(rows[40:60])) > 20


def test_faded_parts_are_grey():
    two = boxes([0.6, 0, 0], [-0.6, 0, 0])
    found = part_at(render(two, 100, VIEW, faded=np.array([False, True])))
    assert set(np.unique(found)) == {-1, 0}
    plain, none = render(two, 100, VIEW), render(two, 100, VIEW, faded=[False, False])
    assert np.array_equal(plain, none) and (coloured(plain) & (found != 0)).any()


def test_a_view_holds_its_shapes_at_one_scale():
    shapes = [boxes((3.0, 0, 0), (5, 1, 0), size=1), boxes((4.0, 0.5, 3), size=0.2)]
    view = View.of(shapes)
    found = [coloured(render(shape, 150, view)) for shape in shapes]
    for picture in found:
        assert picture.any() and not (picture[[0, -1]].any() or picture[:, [0, -1]].any())
    columns = np.flatnonzero(found[0].any(0))
    assert columns[-1] - columns[0] > 120 and found[1].sum() < 0.1 * found[0].sum()


def test_a_typical_view_is_of_most_and_all_of_what_must_be_whole():
    usual, far, tall = boxes((0.0, 0, 0)), boxes((0.0, 0, 0), (30, 0, 0)), boxes((0.0, 0, 0), (0, 4, 0))
    view = View.typical([usual] * 11 + [far])
    assert view.extent < 1.2 * View.of([usual]).extent
    for picture in (render(usual, 100, view), render(tall, 100, View.typical([usual] * 11, whole=[tall]))):
        assert coloured(picture).any() and not coloured(picture)[[0, -1]].any()


def test_pictures_are_the_same_each_time():
    whole = furniture(count=6)
    for k in range(6):
        picture = render(whole[k], 64)
        assert np.array_equal(picture, render(whole[k], 64)) and coloured(picture).sum() > 100
    alone = {name: values.astype(np.float64) for name, values in whole[0].items()}
    assert np.array_equal(render(alone, 64), render(whole[0], 64))


def test_parts_may_have_the_colours_of_other_numbers():
    two = boxes((-0.5, 0, 0), (0.5, 0, 0), size=0.3)
    three = boxes((9, 9, 9), (-0.5, 0, 0), (0.5, 0, 0), size=0.3)
    plain, moved = render(three, 100, VIEW), render(two, 100, VIEW, numbers=np.array([1, 2]))
    assert np.abs(plain.astype(int) - moved).mean() < 0.5 and not np.array_equal(moved, render(two, 100, VIEW))


@pytest.mark.parametrize("exponents", [None, (1.0, 1.0)])
@pytest.mark.parametrize("centers", [[(0, 0, 0)], [(0.3, -0.2, 0.1)], [(0, 1, 0)] * 3])
def test_parts_without_size_are_a_picture_of_the_ground(centers, exponents):
    made = boxes(*centers, size=0.0, exponents=exponents and [exponents] * len(centers))
    for view in (View.of([made]), View.typical([made, made]), View.typical([made], [made])):
        with np.errstate(all="raise"):
            picture = render(made, 40, view)
        assert not coloured(picture).any()
