import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.errors import DataError
from shapes import sets as shapes
from shapes.sets import Layout, ShapeData, ShapeSet, from_shapes, furniture, load_shapes, open_shapes, save_shapes
from tests.conftest import ROOT

NUMBERS = ("counts", "labels", "box.center", "box.size", "box.axes", "code.exponents")


@pytest.fixture(scope="module")
def some() -> ShapeSet:
    return furniture(seed=3, count=60)


def test_a_file_holds_the_set(some, tmp_path):
    some.ids = np.array([f"piece {k}" for k in range(len(some))])
    save_shapes(some, tmp_path / "a.npz")
    again = open_shapes(tmp_path / "a.npz")
    assert again.class_names == some.class_names and list(again.attributes) == list(some.attributes)
    for k in range(len(some)):
        assert all(np.array_equal(values, again[k][name]) for name, values in some[k].items())
    for name in ("counts", "labels", "split", "ids"):
        assert np.array_equal(getattr(again, name), getattr(some, name))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    some.ids = None


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_words_may_be_bytes(some, tmp_path, encoding):
    """As h5py and NumPy's S give them: "b'chair'" is no class."""
    save_shapes(some, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    names = ["st\u00fchle", *some.class_names[1:]]
    arrays["class_names"] = np.array([name.encode(encoding) for name in names])
    arrays["split"] = some.split.astype("S")
    arrays["ids"] = np.array([b"piece"] * len(some))
    np.savez(tmp_path / "b.npz", **arrays)
    again = open_shapes(tmp_path / "b.npz")
    assert again.class_names == [names[0] if encoding == "utf-8" else r"st\xfchle", *names[1:]]
    assert again.split.tolist() == some.split.tolist() and {*again.ids.tolist()} == {"piece"}
    assert len(again.of_split("train")) == len(some.of_split("train")) > 0


def test_shapes_is_the_embedded_set(monkeypatch, some):
    monkeypatch.setattr(shapes, "furniture", lambda: some)
    assert open_shapes("shapes") is some


def test_some_of_a_set_in_another_order(some):
    chosen = some.select([7, 2, 2])
    assert [len(chosen[k]["box.size"]) for k in range(3)] == [some.counts[k] for k in (7, 2, 2)]
    assert np.array_equal(chosen[2]["box.center"], some[2]["box.center"]) and list(chosen.labels) == [1, 2, 2]
    assert len(some.select([])) == 0 and some.select([]).attributes["box.axes"].shape == (0, 6)
    bare = from_shapes([some[0]], [0], ["chair"])
    assert len(bare.of_split("test")) == 1 and len(some.of_split("none of that name")) == 0


def damaged(some, tmp_path, **arrays):
    """The line that a file with other arrays, or without those that are None, ends in."""
    path = tmp_path / "bad.npz"
    save_shapes(some, path)
    whole = dict(np.load(path))
    whole |= {name.replace("__", "."): array for name, array in arrays.items()}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    with pytest.raises(DataError) as error:
        load_shapes(path)
    assert str(error.value).startswith(f"{path} is ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path} is ")


def test_a_damaged_array_is_named(some, tmp_path):
    def of(name, row, value):
        array = some.attributes[name].copy()
        array[row] = value
        return array

    def line(**arrays):
        return damaged(some, tmp_path, **arrays)

    assert line(counts=None, box__axes=None) == "not an .npz of shapes: it lacks counts, box.axes"
    assert line(labels=None) == "not an .npz of shapes: it lacks labels"
    parts = int(some.counts.sum())
    fewer = some.counts.copy()
    fewer[-1] -= 1
    assert line(counts=fewer) == f"damaged: box.center has {parts} parts, counts {parts - 1}"
    assert line(counts=np.where(np.arange(60) == 5, 0, some.counts)) == "damaged: shape 5 has no parts"
    assert line(counts=np.zeros(0, int)) == line(counts=some.counts * 1.0)
    assert line(counts=some.counts * 1.0) == "damaged: counts is not a list of whole numbers"
    assert (
        line(box__size=some.attributes["box.size"][:-2]) == f"damaged: box.size has {parts - 2} parts, counts {parts}"
    )
    assert line(box__axes=some.attributes["box.axes"][:, :4]) == "damaged: box.axes has 4 numbers a part"
    assert line(box__center=np.zeros(parts, np.float32)) == "damaged: box.center is not of shape (parts, width)"
    assert line(code__exponents=np.ones((parts, 2), int)) == "damaged: code.exponents is not of shape (parts, width)"
    assert line(code__exponents=of("code.exponents", 9, np.nan)) == "damaged: code.exponents is not finite"
    assert line(box__center=of("box.center", 0, np.inf)) == "damaged: box.center is not finite"
    far = some.attributes["box.center"].astype(float)
    far[3, 1] = 1e300  # beyond float32
    assert line(box__center=far) == "damaged: box.center is not finite"
    assert line(box__size=of("box.size", 4, -0.1)) == "damaged: box.size is negative"
    assert line(box__axes=of("box.axes", 4, 0.5)) == "damaged: box.axes are no rows of rotations"
    assert line(labels=some.labels[:-1]) == "damaged: labels are not one for each shape"
    assert line(split=some.split[:-1]) == "damaged: split are not one for each shape"
    assert line(split=some.labels) == "damaged: split are not words"
    assert line(code__exponents=np.zeros((parts, 0), np.float32)) == "damaged: code.exponents has no numbers"
    assert line(exists=np.ones((parts, 1), np.float32)) == "damaged: no attribute may be called exists"
    for wrong in (-1, 6):
        assert line(labels=some.labels * 0 + wrong) == "damaged: a label is none of its 6 classes"
    assert line(labels=some.labels * 1.0) == "damaged: labels are not whole numbers"
    assert line(class_names=np.array("chair")) == "damaged: a label is none of its 1 classes"
    assert line(box__center=np.array([[None]], object)).startswith("damaged: Object arrays cannot be loaded")


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_whole_numbers_may_be_of_any_kind(some, tmp_path, kind):
    save_shapes(replace(some, counts=some.counts.astype(kind), labels=some.labels.astype(kind)), tmp_path / "a.npz")
    again = load_shapes(tmp_path / "a.npz")
    for k in (0, len(some) - 1):
        assert all(np.array_equal(again[k][name], values) for name, values in some[k].items())
    assert again.labels.tolist() == some.labels.tolist()


def test_what_is_no_array_is_named(some, tmp_path):
    save_shapes(some, tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("note.npy", b"no array")
    with pytest.raises(DataError, match=r"a\.npz is damaged: note is not of shape"):
        load_shapes(tmp_path / "a.npz")


def test_a_file_of_another_kind_is_named(some, tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="does not exist \\(or give 'shapes', the embedded set\\)"):
        load_shapes(path)
    save_shapes(some, path)
    whole = path.read_bytes()
    middle = bytearray(whole)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("box.size.npy").header_offset + 60
    middle[start : start + 40] = b"\xff" * 40
    locked, unknown = bytearray(whole), bytearray(whole)
    directory = whole.index(b"PK\x01\x02")
    for at in (6, directory + 8):
        locked[at] |= 1
    for at in (8, directory + 10):
        unknown[at] = 99
    contents = {
        "is not an .npz of shapes, but empty": b"",
        "is not an .npz of shapes, but damaged": whole[: len(whole) // 2],
        "is not an .npz of shapes, but a picture": b"\x89PNG\r\n",
        "is not an .npz of shapes, but a NumPy array": b"\x93NUMPY\x01\x00",
        "is not an .npz of shapes, but text that begins with 'v 0 0 1'": b"v 0 0 1\nv 0 1 0\n",
        "is damaged: ": bytes(middle),
        "is damaged: File": bytes(locked),
        "is damaged: That compression method": bytes(unknown),
    }
    for line, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            load_shapes(path)
        assert str(error.value).startswith(f"{path} {line}") and "\n" not in str(error.value)


# ---- what a model sees ----


def test_encoding_is_undone(some):
    layout = Layout.of(some)
    for k in range(len(some)):
        x, shape = layout.encode(some[k]), some[k]
        assert x.shape == (some.counts.max(), 1 + 3 + 3 + 6 + 2) and x.dtype == torch.float32
        again = layout.decode(x)
        for name, values in shape.items():
            assert again[name].dtype == np.float32
            np.testing.assert_allclose(again[name], values, atol=1e-5)
        n = len(shape["box.size"])
        assert (x[:n, 0] == 1).all() and (x[n:, 0] == -1).all() and (x[n:, 1:] == 0).all()


def test_a_set_is_normalised(some):
    layout = Layout.of(some)
    x = torch.cat([layout.encode(some[k])[: some.counts[k]] for k in range(len(some))]).double()
    torch.testing.assert_close(x[:, 1:].mean(0), torch.zeros(14).double(), atol=1e-5, rtol=0)
    for name in layout.names:  # an attribute as a whole: its numbers keep their proportions
        values = torch.from_numpy(some.attributes[name]).double()
        seen = x[:, layout.slices[name]]
        assert seen.var(0, correction=0).mean().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(seen.std(0) / seen.std(), values.std(0) / (values - values.mean(0)).std())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_unit_of_length_does_not_matter(some, scale):
    scaled = {n: v * np.float32(scale if n in ("box.center", "box.size") else 1) for n, v in some.attributes.items()}
    layout, theirs = Layout.of(some), Layout.of(replace(some, attributes=scaled))
    x = torch.randn(50, *layout.shape, generator=torch.Generator().manual_seed(0)) * 4
    for one in x:
        torch.testing.assert_close(
            torch.from_numpy(theirs.decode(one)["box.size"] / scale),
            torch.from_numpy(layout.decode(one)["box.size"]),
            rtol=1e-4,
            atol=1e-6,
        )
    thin = {**some[0], "box.size": np.full_like(some[0]["box.size"], 0.001)}
    np.testing.assert_allclose(layout.decode(layout.encode(thin))["box.size"], 0.001, rtol=1e-3)


def test_what_never_changes_is_zero(some):
    """And comes back, whatever a model makes of it within rounding."""
    shape = {**some[0], "box.axes": np.tile(np.float32([1, 0, 0, 0, 1, 0]), (some.counts[0], 1))}
    layout = Layout.of(from_shapes([shape], [0], ["chair"]))
    assert (layout.encode(shape)[:, layout.slices["box.axes"]] == 0).all()
    assert np.array_equal(layout.decode(layout.encode(shape))["box.axes"], shape["box.axes"])


def test_attributes_stand_where_the_slices_say(some):
    layout = Layout.of(some)
    assert layout.attributes == {"exists": 1, "box.center": 3, "box.size": 3, "box.axes": 6, "code.exponents": 2}
    found = [k for part in layout.slices.values() for k in range(15)[part]]
    assert list(layout.slices) == list(layout.attributes) and found == list(range(15))
    x = layout.encode(some[1])
    size = x[: some.counts[1], layout.slices["box.size"]].numpy()
    here = slice(layout.slices["box.size"].start - 1, layout.slices["box.size"].stop - 1)
    expected = (some[1]["box.size"] - layout.mean[here]) / layout.std[here]
    np.testing.assert_allclose(size, expected, atol=1e-5)


def test_what_a_model_makes_is_boxes(some):
    layout = Layout.of(some)
    noise = torch.randn(200, layout.max_parts, 15, generator=torch.Generator().manual_seed(0)) * 4
    for x in noise:
        shape = layout.decode(x)
        assert len(shape["box.size"]) == int((x[:, 0] > 0).sum())
        assert (shape["box.size"] > 0).all()
    nothing = noise[0].clone()
    nothing[:, 0] = -torch.linspace(2, 1, layout.max_parts)
    (kept,) = layout.decode(nothing)["box.size"]  # the part that comes nearest to being there
    last = layout.decode(nothing[-1:])["box.size"][0]
    assert np.array_equal(kept, last)
    for value in (torch.nan, torch.inf):
        noise[0, 3, 5] = value
        with pytest.raises(FloatingPointError, match=r"^a shape is not finite"):
            layout.decode(noise[0])


def test_axes_are_orthonormal_whatever_they_were():
    random = np.random.default_rng(0)
    odd = [[0] * 6, [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 2, 0], [1, 2, 3, 2, 4, 6], [1, 1, 1, -1, -1, -1 + 1e-7]]
    for scale in (1e-9, 1e-3, 1, 1e6):
        axes = np.concatenate([random.normal(size=(500, 6)), np.array(odd, float)]) * scale
        for kind in (np.float64, np.float32):
            found = shapes.orthonormal(axes.astype(kind))
            first, second = found[:, :3], found[:, 3:]
            np.testing.assert_allclose((first**2).sum(1), 1, atol=1e-9)
            np.testing.assert_allclose((second**2).sum(1), 1, atol=1e-9)
            np.testing.assert_allclose((first * second).sum(1), 0, atol=1e-9)
    rotation = np.linalg.qr(random.normal(size=(50, 3, 3)))[0][:, :2].reshape(50, 6)
    np.testing.assert_allclose(shapes.orthonormal(rotation), rotation, atol=1e-12)  # stay what they are


def test_a_shape_that_does_not_fit_is_refused(some):
    layout = Layout.of(some)
    long = {name: np.concatenate([values] * 30) for name, values in some[0].items()}
    with pytest.raises(
        DataError, match=f"^a shape has {30 * some.counts[0]} parts, more than the model's {layout.max_parts}$"
    ):
        layout.encode(long)
    boxes = {name: values for name, values in some[0].items() if name.startswith("box")}
    with pytest.raises(DataError, match=r"^a shape has the attributes .*, not .*exponents"):
        layout.encode(boxes)


def test_data_are_the_sets_and_known_by_their_digest(some):
    data = ShapeData(some)
    x, label = data[(4, False)]
    assert torch.equal(x, data.layout.encode(some[4])) and label == 4 and len(data) == 60
    assert data.digest == ShapeData(furniture(seed=3, count=60)).digest
    others = [furniture(seed=4, count=60), furniture(seed=3, count=59), some.select([1, 0, *range(2, 60)])]
    assert len({data.digest, *(ShapeData(other).digest for other in others)}) == 4


def test_the_form_is_the_one_that_is_documented(some):
    text = (ROOT / "shapes" / "sets.py").read_text().partition('"""\n')[0]
    assert all(name in text for name in (*NUMBERS, "class_names", "split", "ids"))
