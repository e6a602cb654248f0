"""What sample_ddp.py leaves of a sample, for both kinds."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import DataError, UsageError
from sampling import images as images_kind
from sampling.files import BLOCK, Files, check_room
from shapes import kind as shapes_kind
from shapes.sets import Layout, ShapeSpace, furniture, load_shapes

SIDE, CLASSES = 8, ["chair", "table"]


@pytest.fixture(scope="module")
def some():
    return furniture(count=12)


@pytest.fixture(scope="module")
def layout(some):
    return Layout.of(some)


@pytest.fixture
def of_shapes(layout):
    return shapes_kind.files(SimpleNamespace(autoencoder=ShapeSpace(layout), class_names=CLASSES, num_labels=2))


@pytest.fixture
def of_images():
    return images_kind.files(SimpleNamespace(image_size=SIDE))


def written(files: Files, samples: torch.Tensor, folder: Path) -> list[Path]:
    """A batch in its files."""
    fetched = files.fetch(samples)()
    paths = [files.path(folder, i) for i in range(len(samples))]
    for sample, path in zip(fetched, paths, strict=True):
        files.write(sample, path)
    assert sorted(folder.iterdir()) == paths
    return paths


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def shapes(some, layout: Layout, n: int) -> torch.Tensor:
    return torch.stack([layout.encode(some[k]) for k in range(n)])


def test_an_image_is_a_picture_in_8_bits(of_images, tmp_path):
    x = images(3)
    for i, path in enumerate(written(of_images, x, tmp_path)):
        assert path.name == f"00000{i}.png" and of_images.fault(path) is None
        with Image.open(path) as picture:
            again = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        assert (again - x[i]).abs().max() <= 1 / 127


def test_a_shape_is_its_numbers_bit_for_bit(of_shapes, some, layout, tmp_path):
    x = shapes(some, layout, 3) + 0.01
    for i, path in enumerate(written(of_shapes, x, tmp_path)):
        assert path.name == f"00000{i}.npy" and of_shapes.fault(path) is None
        assert np.array_equal(np.load(path), x[i].numpy())


def test_what_is_not_finite_is_not_written(of_shapes, some, layout):
    x = shapes(some, layout, 3)
    x[1, 0, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="1 of 3 shapes are not finite"):
        of_shapes.fetch(x)()


def test_damaged_and_foreign_images_are_named(of_images, tmp_path):
    (path,) = written(of_images, images(1), tmp_path)
    Image.new("RGB", (SIDE + 1, SIDE)).save(tmp_path / "other.png")
    assert of_images.fault(tmp_path / "other.png")
    path.write_bytes(path.read_bytes()[:-20])
    assert of_images.fault(path)


def test_damaged_and_foreign_shapes_are_named(of_shapes, some, layout, tmp_path):
    (path,) = written(of_shapes, shapes(some, layout, 1), tmp_path)
    rows, numbers = layout.shape
    good = np.load(path)
    for wrong in (good[:-1], good[:, :-1], good.astype(np.float64), np.where(good == good[0, 0], np.inf, good)):
        np.save(path, wrong)
        assert of_shapes.fault(path) == f"is not {rows} x {numbers} finite numbers"
    np.save(path, good)
    for content in (path.read_bytes()[:-4], b"", b"\x89PNG"):
        path.write_bytes(content)
        assert (fault := of_shapes.fault(path)) and fault.startswith("is damaged: ") and "\n" not in fault


def test_images_are_packed_in_order_with_their_labels(of_images, tmp_path):
    (tmp_path / "a").mkdir()
    x = images(4)
    paths = written(of_images, x, tmp_path / "a")
    of_images.pack(paths, [1, 0, 1, 0], tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as packed:
        assert np.array_equal(packed["arr_0"], of_images.fetch(x)()) and packed["arr_1"].tolist() == [1, 0, 1, 0]


def test_shapes_are_packed_in_order_with_their_labels(of_shapes, some, layout, tmp_path):
    (tmp_path / "a").mkdir()
    paths = written(of_shapes, shapes(some, layout, 4), tmp_path / "a")
    of_shapes.pack(paths, [1, 0, 1, 0], tmp_path / "a.npz")
    packed = load_shapes(tmp_path / "a.npz")
    assert packed.class_names == CLASSES and packed.labels.tolist() == [1, 0, 1, 0]
    assert packed.counts.tolist() == some.counts[:4].tolist()
    for k in range(4):
        assert all(np.allclose(packed[k][name], some[k][name], atol=1e-5) for name in some.attributes)


def test_shapes_without_a_class_have_one_of_their_own(of_shapes, some, layout, tmp_path):
    """Whose label is the model's null class, which may be beyond the classes of the data."""
    (tmp_path / "a").mkdir()
    paths = written(of_shapes, shapes(some, layout, 2), tmp_path / "a")
    of_shapes.pack(paths, [1000, 1000], tmp_path / "a.npz")
    packed = load_shapes(tmp_path / "a.npz")
    assert [packed.class_names[k] for k in packed.labels] == ["no class"] * 2


@pytest.mark.parametrize("kind", ["of_shapes", "of_images"])
def test_without_one_of_them_nothing_is_packed(kind, request, some, layout, tmp_path):
    files = request.getfixturevalue(kind)
    (tmp_path / "a").mkdir()
    paths = written(files, shapes(some, layout, 3) if kind == "of_shapes" else images(3), tmp_path / "a")
    paths[1].unlink()
    with pytest.raises((DataError, OSError), match=paths[1].name):
        files.pack(paths, [0, 0, 0], tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("total", "fits"), [(10, True), (2_000_000, False), (1_000_000_000, False)])
def test_what_samples_take_on_disk_is_said_and_must_fit(total, fits, tmp_path, monkeypatch):
    """Pictures of 256 pixels: at least a block each and 192 KiB in the .npz."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100e9))
    files = Files(".png", 3 * 256**2, 3 * 256**2, *[lambda *_: None] * 4)
    if fits:
        assert check_room(files, tmp_path / "a" / "b", total, "images") == "10 images take up to 0.1 GB on disk"
    else:
        with pytest.raises(UsageError, match=rf"--num-fid-samples {total} takes .* GB on disk, at least, and 100.0 GB"):
            check_room(files, tmp_path / "a" / "b", total, "images")
    assert not list(tmp_path.iterdir())


def test_samples_that_are_there_take_no_more_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * BLOCK))
    files = Files(".png", 10, 0, *[lambda *_: None] * 4)
    with pytest.raises(UsageError):
        check_room(files, tmp_path, 5, "images")
    for name in ("000001.png", "000003.png", "000007.png", "2.png", "settings.json"):
        (tmp_path / name).touch()
    assert files.there(tmp_path, 5) == [1, 3]
    assert "of which 0.0 GB are left" in check_room(files, tmp_path, 5, "images")
