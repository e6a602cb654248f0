import math

import numpy as np
import pytest

from shapes.meshes import (
    FADED,
    PALETTE,
    linear,
    part_colours,
    rotations,
    shape_mesh,
    superquadrics,
    surface_points,
    write_glb,
)
from shapes.sets import furniture, orthonormal

SIZE = np.array([0.6, 0.2, 1.1])


def shape(*sizes, exponents=None, seed=0):
    """Turned parts here and there."""
    random = np.random.default_rng(seed)
    n = len(sizes)
    made = {
        "box.center": random.normal(size=(n, 3)),
        "box.size": np.array(sizes, float),
        "box.axes": orthonormal(random.normal(size=(n, 6))),
    }
    return made if exponents is None else {**made, "code.exponents": np.array(exponents, float)}


def area(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def volume(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def is_closed(faces):
    """Every edge is run along once in each direction."""
    edges = [tuple(edge) for f in faces.tolist() for edge in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))]
    return len(set(edges)) == len(edges) and {(b, a) for a, b in edges} == set(edges)


def test_a_box_is_exact():
    made = shape(SIZE, SIZE[::-1])
    vertices, faces, part = shape_mesh(made)
    x, y, z = SIZE
    assert vertices.shape == (16, 3) and list(part) == [0] * 12 + [1] * 12 and is_closed(faces)
    assert area(vertices, faces) == pytest.approx(4 * (x * y + y * z + z * x))
    assert volume(vertices, faces[:12]) == pytest.approx(x * y * z)  # positive: seen from outside
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    corners = made["box.center"][1] + (signs * SIZE[::-1]) @ rotations(made["box.axes"])[1]
    np.testing.assert_allclose(sorted(map(tuple, vertices[8:])), sorted(map(tuple, corners)))


@pytest.mark.parametrize("exponents", [(1, 1), (0.1, 0.1), (0.1, 1), (1.6, 1), (2, 2), (0.6, 0.4), (0.0, 0.0), (-3, 9)])
def test_a_superquadric_is_closed_and_within_its_box(exponents):
    vertices, faces, part = shape_mesh(shape(SIZE, exponents=[exponents]))
    assert np.isfinite(vertices).all() and is_closed(faces) and faces.max() == len(vertices) - 1 and not part.any()
    assert 0 < volume(vertices, faces) <= SIZE.prod() * (1 + 1e-9)
    grid, _ = superquadrics(np.array([exponents], float))
    np.testing.assert_allclose([grid.min((0, 1)), grid.max((0, 1))], [[-1] * 3, [1] * 3])
    for axis in range(
        3
    ):  # a mirror image of itself, which it is not where a 0 is only nearly one: 1e-17 ** 0.02 is 0.46
        mirrored = grid[0] * np.where(np.arange(3) == axis, -1, 1)
        np.testing.assert_allclose(*(np.array(sorted(map(tuple, g.round(9) + 0.0))) for g in (grid[0], mirrored)))


def superquadric_volume(e1, e2):
    """2 a b c e1 e2 B(e1 / 2 + 1, e1) B(e2 / 2, e2 / 2), of half axes 1 (Jaklic et al., 2000)."""

    def beta(x, y):
        return math.gamma(x) * math.gamma(y) / math.gamma(x + y)

    return 2 * e1 * e2 * beta(e1 / 2 + 1, e1) * beta(e2 / 2, e2 / 2)


def test_the_formula_for_volumes():
    assert superquadric_volume(1, 1) == pytest.approx(4 / 3 * math.pi)
    assert superquadric_volume(1e-6, 1) == pytest.approx(2 * math.pi, rel=1e-5)


@pytest.mark.parametrize("exponents", [(1, 1), (0.1, 0.1), (0.1, 1), (1.6, 1), (0.6, 0.4)])
def test_the_volume_is_a_superquadrics(exponents):
    """The finer the grid the better: the error falls with the square of the step."""
    exact = superquadric_volume(*exponents)
    coarse, fine = (
        abs(volume(grid[0], faces) - exact) / exact
        for grid, faces in (superquadrics(np.array([exponents], float), quarter) for quarter in (6, 24))
    )
    assert coarse < 0.04 and fine < 0.0025


def test_small_exponents_are_nearly_a_box():
    volumes = []
    for e in (0.4, 0.2, 0.1, 0.05, 0.0):
        vertices, faces, _ = shape_mesh(shape(SIZE, exponents=[(e, e)]))
        volumes.append(volume(vertices, faces) / SIZE.prod())
    assert volumes == sorted(volumes) and volumes[-1] > 0.997


def implicit(points, made, part):
    x, y, z = np.abs((points - made["box.center"][part]) @ rotations(made["box.axes"])[part].T / (SIZE / 2)).T
    e1, e2 = made["code.exponents"][part]
    return ((x ** (2 / e2) + z ** (2 / e2)) ** (e2 / e1) + y ** (2 / e1)) ** (e1 / 2)


def test_vertices_and_points_lie_on_the_surface():
    made = shape(SIZE, exponents=[(0.6, 1.0)])
    vertices, _, _ = shape_mesh(made)
    np.testing.assert_allclose(implicit(vertices, made, 0), 1)
    points = surface_points(made, 500, np.random.default_rng(0))
    on = implicit(points, made, 0)
    assert points.shape == (500, 3) and on.min() > 0.93 and on.max() < 1 + 1e-9  # a chord is within


def test_points_are_uniform_by_area():
    made = shape(SIZE, (0.2, 0.2, 0.2))
    made["box.center"] = np.array([[0.0, 0, 0], [3, 0, 0]])
    points = surface_points(made, 60_000, np.random.default_rng(0))
    local = (points - made["box.center"][0]) @ rotations(made["box.axes"])[0].T / (SIZE / 2)
    big = np.abs(local).max(1) < 2  # of the first box
    other = (points - made["box.center"][1]) @ rotations(made["box.axes"])[1].T / 0.1
    np.testing.assert_allclose(np.where(big, np.abs(local).max(1), np.abs(other).max(1)), 1, atol=1e-9)
    x, y, z = SIZE
    faces = 2 * np.array([y * z, x * z, x * y])
    assert big.mean() == pytest.approx(faces.sum() / (faces.sum() + 6 * 0.04), abs=0.01)
    local = local[big]
    side = np.abs(local).argmax(1)
    np.testing.assert_allclose(np.bincount(side) / len(side), faces / faces.sum(), atol=0.01)
    top = local[(side == 1) & (local[:, 1] > 0)][:, [0, 2]]  # spread evenly over one side
    cells, _, _ = np.histogram2d(*top.T, bins=4, range=[[-1, 1]] * 2)
    assert cells.max() / cells.min() < 1.3


def test_points_are_the_generators():
    made = shape(SIZE, SIZE, exponents=[(0.1, 1), (1, 1)])
    one, two, other = (surface_points(made, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_part_i_has_its_colour():
    colours = part_colours(23)
    assert np.array_equal(colours[:10], colours[10:20]) and len({*map(tuple, PALETTE.tolist())}) == 10
    faded = part_colours(3, [False, True, False])
    assert np.array_equal(faded, [PALETTE[0], FADED, PALETTE[2]]) and not np.array_equal(PALETTE[1], FADED)


def test_colours_of_a_glb_are_linear():
    black, dark, grey, white = linear(np.array([0, 10, 188, 255], np.uint8))
    assert (black, dark, grey, white) == (0, 1, 128, 255)  # 188 is half as bright as 255


def test_parts_may_have_numbers_of_their_own(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    two = furniture(count=1)[0]
    two = {name: values[:2] for name, values in two.items()}
    write_glb(
        [two, two], tmp_path / "a.glb", numbers=[np.array([3, 12]), np.array([0, 1])], faded=[None, [True, False]]
    )
    scene = trimesh.load_scene(tmp_path / "a.glb")
    colours = {name: list(mesh.visual.material.baseColorFactor[:3]) for name, mesh in scene.geometry.items()}
    expected = {"shape 0 part 3": PALETTE[3], "shape 0 part 12": PALETTE[2], "shape 1 part 0": FADED}
    expected |= {"shape 1 part 1": PALETTE[1]}
    assert colours == {name: linear(colour).tolist() for name, colour in expected.items()}


def test_a_glb_has_a_node_a_shape_and_a_mesh_a_part(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    three = furniture(count=2)
    path, counts = tmp_path / "a.glb", [*three.counts.tolist(), 1]
    faded = [[False] * counts[0], [True] * counts[1], [False]]
    write_glb([three[0], three[1], shape(SIZE)], path, names=["a chair", "a table", "a box"], faded=faded)
    scene = trimesh.load_scene(path)
    assert len(scene.geometry) == sum(counts) and [file.name for file in tmp_path.iterdir()] == ["a.glb"]
    assert {"0 a chair", "1 a table", "2 a box"} < set(scene.graph.nodes)
    mesh = scene.geometry["1 a table part 0"]
    vertices, faces, part = shape_mesh(three[1])
    assert mesh.is_watertight and mesh.volume == pytest.approx(volume(vertices, faces[part == 0]), rel=1e-4)
    assert list(mesh.visual.material.baseColorFactor[:3]) == linear(FADED).tolist()
    assert list(scene.geometry["0 a chair part 1"].visual.material.baseColorFactor[:3]) == linear(PALETTE[1]).tolist()
    boxes = []
    for k, name in enumerate(("0 a chair", "1 a table", "2 a box")):
        assert sum(node.startswith(f"{name} part ") for node in scene.graph.nodes) == counts[k]
        corners = [
            trimesh.transform_points(scene.geometry[scene.graph[node][1]].vertices, scene.graph[node][0])
            for node in scene.graph.nodes_geometry
            if node.startswith(name)
        ]
        together = np.concatenate(corners)
        boxes.append((together.min(0), together.max(0)))
    for k, (low, high) in enumerate(boxes):  # side by side
        assert all(
            (high < other_low)[[0, 2]].any() or (other_high < low)[[0, 2]].any() for other_low, other_high in boxes[:k]
        )
