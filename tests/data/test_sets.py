import numpy as np
import pytest
import torch
from PIL import Image

from data.images import to_tensor
from data.pictures import to_uint8
from data.sets import Digits, ImageFolder, check_same_everywhere, load_dataset
from runtime import distributed
from runtime.errors import DataError


def test_pixels_survive_the_way_to_the_model_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (3, 16, 16) and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_uint8(tensor[None])[0], pixels)


def test_digits():
    data = Digits(8, 1)
    image, label = data[0, False]
    assert len(data) == 1797 and data.class_names == [str(k) for k in range(10)]
    assert image.shape == (1, 8, 8) and label == 0 and image.min() == -1 and data.images.max() == 1
    assert torch.equal(data[0, True][0], image)  # a mirrored 3 is no 3
    assert Digits(16, 3)[5, False][0].shape == (3, 16, 16)


def test_image_folder(image_folder):
    data = ImageFolder(image_folder, 16)
    assert len(data) == 12 and data.class_names == ["ant", "bee", "cat"] and data.labels == [0] * 4 + [1] * 4 + [2] * 4
    image, label = data[5, False]
    assert image.shape == (3, 16, 16) and label == 1
    assert torch.equal(data[5, True][0], image.flip(-1))


def test_classes_keep_the_numbers_of_the_training_data(image_folder, tmp_path):
    """Scoring a folder with only some of the classes."""
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "a.png")
    assert ImageFolder(tmp_path, 8, class_names=["ant", "bee", "cat"]).labels == [2]
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog is no class.*ant, bee, cat"):
        ImageFolder(tmp_path, 8, class_names=["ant", "bee", "cat"])


def test_a_flat_folder_where_classes_are_not_needed(image_folder):
    data = load_dataset(str(image_folder / "ant"), 8, 3, flat=True)
    assert len(data) == 4 and data.labels == [-1] * 4


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_kinds_of_pictures_become_rgb(mode, tmp_path):
    (tmp_path / "a").mkdir()
    Image.new(mode, (12, 10)).save(tmp_path / "a" / "x.png")
    assert ImageFolder(tmp_path, 8)[0, False][0].shape == (3, 8, 8)
    assert ImageFolder(tmp_path, 8, channels=1)[0, False][0].shape == (1, 8, 8)


def test_links_are_followed_and_loops_are_not(image_folder, tmp_path):
    (tmp_path / "class" / "deep").mkdir(parents=True)
    (tmp_path / "class" / "deep" / "ants").symlink_to(image_folder / "ant")
    (tmp_path / "class" / "again").symlink_to(tmp_path / "class")
    assert len(ImageFolder(tmp_path, 8)) == 4


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent does not exist"):
        ImageFolder(tmp_path / "absent", 8)
    with pytest.raises(DataError, match="no sub-folders"):
        ImageFolder(tmp_path, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images.*\.png"):
        ImageFolder(tmp_path, 8)
    (tmp_path / "empty" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        ImageFolder(tmp_path, 8)[0, False]


# ---- the same for all processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ((["a", "b"], 12, "x"), "3 classes for the first, 2 for process 2"),
        ((["a", "dog", "c"], 12, "x"), "class 1 is b for the first, dog for process 2"),
        ((["a", "b", "c"], 13, "x"), "12 images for the first, 13 for process 2"),
        ((["a", "b", "c"], 12, "y"), "12 images of some names for the first, of others for process 2"),
    ],
)
def test_processes_with_other_data_are_told_apart(monkeypatch, image_folder, other, what):
    first = (["a", "b", "c"], 12, "x")
    data = ImageFolder(image_folder, 8)
    check_same_everywhere(data, "here")
    monkeypatch.setattr(distributed, "gather", lambda value: [first, first, other])
    with pytest.raises(DataError, match=f"--data-path here is not the same for all processes: {what}"):
        check_same_everywhere(data, "here")
    monkeypatch.setattr(distributed, "gather", lambda value: [value] * 3)
    check_same_everywhere(data, "here")
