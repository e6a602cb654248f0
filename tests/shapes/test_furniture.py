import numpy as np
import pytest

from shapes.furniture import CLASSES, pieces
from shapes.furniture.piece import DIAGONAL, MAX_PARTS, Piece
from shapes.meshes import rotations, shape_mesh
from shapes.rendering import FURNITURE, camera
from shapes.sets import ShapeSet, furniture, orthonormal


@pytest.fixture(scope="module")
def pieces_of() -> ShapeSet:
    return furniture(count=600)


def gaps(shape):
    """How far parts are from each other at least, (P, P): the separating axis of two boxes that says most."""
    turned = rotations(shape["box.axes"].astype(float))
    center, half = shape["box.center"].astype(float), shape["box.size"].astype(float) / 2
    edges = np.cross(turned[:, None, :, None], turned[None, :, None])  # (P, P, 3, 3, 3)
    norm = np.linalg.norm(edges, axis=-1, keepdims=True)
    edges = np.where(norm > 1e-6, edges / np.maximum(norm, 1e-6), 0).reshape(*edges.shape[:2], 9, 3)
    n = len(center)
    axes = np.concatenate([np.broadcast_to(turned[:, None], (n, n, 3, 3)), edges], axis=2)

    def reach(of):
        spans = (np.abs(np.einsum("ijak,ijbk->ijab", axes, of[0])) * of[1][..., None, :]).sum(-1)
        return spans

    one = reach((np.broadcast_to(turned[:, None], (n, n, 3, 3)), np.broadcast_to(half[:, None], (n, n, 3))))
    two = reach((np.broadcast_to(turned[None], (n, n, 3, 3)), np.broadcast_to(half[None], (n, n, 3))))
    apart = np.abs(np.einsum("ijak,ijk->ija", axes, center[:, None] - center[None])) - one - two
    apart = apart.max(2)
    return np.maximum(apart, apart.T)


def test_boxes_apart_are_seen():
    axes = np.tile([1.0, 0, 0, 0, 1, 0], (3, 1))
    axes[2] = [np.sqrt(0.5), np.sqrt(0.5), 0, -np.sqrt(0.5), np.sqrt(0.5), 0]
    center = np.array([[0.0, 0, 0], [1.1, 0, 0], [0.55, 1 + np.sqrt(0.5), 0]])
    found = gaps({"box.center": center, "box.size": np.ones((3, 3)), "box.axes": axes})
    assert found[0, 1] == pytest.approx(0.1) and found[0, 2] == pytest.approx(0.5, abs=1e-6)


def test_the_parts_of_a_piece_touch(pieces_of):
    for k in range(len(pieces_of)):
        touching = gaps(pieces_of[k]) < 1e-3
        reached = np.linalg.matrix_power(touching.astype(float), len(touching))[0] > 0
        assert reached.all(), f"{pieces_of.class_names[pieces_of.labels[k]]} {k}: {np.flatnonzero(~reached)}"


def test_surfaces_touch_too(pieces_of):
    """Not only the boxes around what has round corners; a part's points are looked for in the others."""
    apart = 0
    for k in range(150):
        shape = pieces_of[k]
        n = len(shape["box.size"])
        vertices, faces, _ = shape_mesh(shape, quarter=4)
        middles = vertices[faces].mean(1).reshape(n, -1, 3)
        edges = vertices[faces[:, :2]].mean(1).reshape(n, -1, 3)
        points = np.concatenate([vertices.reshape(n, -1, 3), middles, edges, shape["box.center"][:, None]], axis=1)
        touching = np.eye(n)
        for i, turned in enumerate(rotations(shape["box.axes"])):
            x, y, z = np.abs((points - shape["box.center"][i]) @ turned.T / (shape["box.size"][i] / 2 + 0.002)).T
            e1, e2 = np.maximum(shape["code.exponents"][i].astype(float), 0.1)
            x, y, z = (np.minimum(values, 2) for values in (x, y, z))
            within = (x ** (2 / e2) + z ** (2 / e2)) ** (e2 / e1) + y ** (2 / e1) <= 1
            touching[i] += within.any(0)
        touching += touching.T
        apart += not (np.linalg.matrix_power(touching, n)[0] > 0).all()
    assert apart == 0


def test_a_piece_stands_on_the_ground_in_its_middle(pieces_of):
    for k in range(len(pieces_of)):
        shape = pieces_of[k]
        boxes, _, _ = shape_mesh({name: values for name, values in shape.items() if name.startswith("box")})
        low, high = boxes.min(0), boxes.max(0)
        np.testing.assert_allclose([low[1], *(low + high)[[0, 2]]], 0, atol=1e-4)
        assert np.linalg.norm(high - low) == pytest.approx(DIAGONAL, abs=1e-3)
        assert 0.7 < (high - low).max() < DIAGONAL
        seen = (boxes - FURNITURE.center) @ camera().T
        assert np.abs(seen[:, :2]).max() < FURNITURE.extent / 2, "is not whole in the picture"


def test_parts_are_boxes(pieces_of):
    size, axes, exponents = (pieces_of.attributes[name] for name in ("box.size", "box.axes", "code.exponents"))
    assert size.min() > 0.005 and exponents.min() >= 0.08 and exponents.max() <= 2
    np.testing.assert_allclose(orthonormal(axes), axes, atol=1e-6)
    assert pieces_of.counts.min() >= 2 and pieces_of.counts.max() <= MAX_PARTS
    turned = (np.abs(axes[:, :3]).max(1) < 1 - 1e-6).mean()
    assert 0.05 < turned < 0.4  # some lean, most stand


def test_classes_and_the_split():
    whole = furniture()
    assert len(whole) == 4000 and whole.class_names == CLASSES and whole.split is not None
    for split, share in (("train", 0.85), ("val", 0.05), ("test", 0.1)):
        of = whole.of_split(split)
        assert len(of) == pytest.approx(4000 * share, rel=0.01)
        assert np.bincount(of.labels, minlength=6) == pytest.approx(len(of) / 6, rel=0.04)
    assert len({whole[k]["box.size"].tobytes() for k in range(len(whole))}) > 3990
    assert np.bincount(whole.counts, minlength=21)[3:21].min() > 10  # pieces of a few parts and of many


def test_a_seed_has_the_same_pieces_everywhere():
    """The numbers are fixed: results on the set are compared with older ones."""
    first, again, other = furniture(5, 60), furniture(5, 90), furniture(6, 60)
    assert all(np.array_equal(values, again.select(range(60)).attributes[n]) for n, values in first.attributes.items())
    assert not np.array_equal(first.counts, other.counts)
    shapes, labels, split = pieces(0, 400)
    assert labels[:7] == [0, 1, 2, 3, 4, 5, 0] and split[:102] == ["train"] * 102 and split[102] == "val"
    digest = [round(float(np.concatenate([s[name] for s in shapes]).sum()), 2) for name in shapes[0]]
    assert digest == DIGEST, digest


DIGEST = [1260.77, 2726.44, 7282.7, 2119.51]  # sums of centres, sizes, axes, exponents


def test_every_choice_of_a_builder_is_taken():
    """What chance chooses from is reached, first to last, and never beyond."""
    for value in (0.0, 1 - 2**-53):
        piece = Piece(lambda value=value: value)
        assert piece.one_of("first", "middle", "last") == ("first" if value == 0 else "last")
        assert 2 <= piece.between(2, 3) <= 3


@pytest.mark.parametrize(
    ("a", "b"), [((0, 0, 0), (1, 0, 0)), ((0, 0, 0), (0, 0, 1)), ((0, 0, 0), (0, 1, 0)), ((1, 2, 3), (1.5, 2.3, 3.4))]
)
@pytest.mark.parametrize("e", [(0.1, 0.1), (0.1, 1.0)])
def test_a_bar_reaches_from_one_point_to_the_other(a, b, e):
    piece = Piece(lambda: 0.5)
    piece.bar(a, b, 0.2, 0.1, e)
    row = np.array(piece.parts[0])
    turned = rotations(row[None, 6:12])[0]
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    line = np.subtract(b, a)
    along = int(np.abs(turned @ line / np.linalg.norm(line)).argmax())
    assert abs(turned[along] @ line) == pytest.approx(np.linalg.norm(line))
    assert row[3:6][along] == pytest.approx(np.linalg.norm(line))
    np.testing.assert_allclose(row[:3], np.add(a, b) / 2, atol=1e-12)
    assert sorted(np.delete(row[3:6], along)) == pytest.approx([0.1, 0.2])
