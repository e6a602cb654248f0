import numpy as np
import pytest
import torch
from PIL import Image

from data.feed import load_images
from data.images import to_tensor
from data.pictures import to_uint8
from data.sets import Digits, ImageFolder, check_same_everywhere, load_dataset
from runtime import distributed
from runtime.errors import DataError
from training.arguments import make_parser


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


# ---- grey ------------------------------------------------------------------------------------------------------------


def greys(root, modes):
    for k, mode in enumerate(modes):
        (root / f"{k % 2}x").mkdir(exist_ok=True, parents=True)
        Image.new(mode, (8, 8)).save(root / f"{k % 2}x" / f"{k}.png")
    return root


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L"] * 4, 1),
        (["L", "1", "LA", "I;16"], 1),
        (["L", "L", "L", "RGB"], 3),
        (["L", "P"], 3),  # whose palette may have colours
        (["RGB"] * 2, 3),
    ],
)
def test_channels_are_found_by_looking(tmp_path, modes, channels):
    greys(tmp_path, modes)
    data = ImageFolder(tmp_path, 8, None)
    assert data.channels == channels and data[0, False][0].shape == (channels, 8, 8)
    assert ImageFolder(tmp_path, 8).channels == 3 and ImageFolder(tmp_path, 8, 1)[0, False][0].shape == (1, 8, 8)


def test_what_cannot_be_read_says_nothing_of_colour(tmp_path):
    greys(tmp_path, ["L", "L"])
    (tmp_path / "0x" / "bad.png").write_bytes(b"no picture")
    assert ImageFolder(tmp_path, 8, None).channels == 1
    for k in range(2):
        (tmp_path / f"{k}x" / f"{k}.png").unlink()
        (tmp_path / f"{k}x" / "bad.png").write_bytes(b"no picture")
    assert ImageFolder(tmp_path, 8, None).channels == 3


def test_a_large_folder_is_looked_at_in_part(tmp_path, monkeypatch):
    """Evenly: the last class, too."""
    monkeypatch.setattr("data.sets.LOOKED_AT", 4)
    looked: list[str] = []
    monkeypatch.setattr("data.sets.is_grey", lambda path, read: looked.append(path) or True)
    ImageFolder(greys(tmp_path, ["L"] * 10), 8, None)
    assert [path[-7:-4] for path in looked] == ["x/0", "x/4", "x/1", "x/5"]


@pytest.mark.parametrize(
    ("modes", "asked", "trained", "channels"),
    [
        (["L", "L"], [], None, 1),
        (["L", "L"], [], 3, 3),  # begun before grey was looked for
        (["L", "L"], ["--channels", "3"], None, 3),
        (["RGB", "L"], [], None, 3),
        (["RGB", "L"], [], 1, 3),  # refused later, by the model's channels
        (["RGB", "L"], ["--channels", "1"], 1, 1),
    ],
)
def test_channels_of_training(tmp_path, modes, asked, trained, channels):
    words = ["--data-path", str(greys(tmp_path, modes)), "--vae", "none", "--image-size", "8", "--model", "SiT-XS/2"]
    args = make_parser().parse_args([*words, *asked])
    data = load_images(args, distributed.single(), trained)
    assert data.input_shape == (channels, 8, 8) and data.dataset[0, False][0].shape == (channels, 8, 8)
    found = not asked and trained is None and channels == 1
    assert len(data.lines) == found and (not found or data.settings == {"channels": 1})
