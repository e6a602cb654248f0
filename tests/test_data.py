import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from data import BatchOrder, Digits, ImageFolder, center_crop_arr, load_dataset, to_tensor
from errors import DataError
from pictures import to_uint8

from .conftest import golden

G = golden("data")


@pytest.mark.parametrize("k", range(4))
def test_golden_crops(k):
    """Exactly, with the Pillow they were made with; 12, the last for Python 3.10, rounds one of them otherwise."""
    crop = np.asarray(center_crop_arr(Image.fromarray(G[f"crop/{k}/in"].numpy()), 32))
    tolerance = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 2
    assert abs(crop.astype(int) - G[f"crop/{k}/out32"].numpy()).max() <= tolerance


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


# ---- order ---------------------------------------------------------------------------------------------------------


def batches(order, count):
    return [batch for batch, _ in zip(order, range(count), strict=False)]


def test_the_global_order_does_not_depend_on_the_number_of_processes():
    one = batches(BatchOrder(103, 12, 0, 1, seed=5), 20)
    for world_size in (2, 3, 4):
        shares = [batches(BatchOrder(103, 12, rank, world_size, seed=5), 20) for rank in range(world_size)]
        assert [[key for part in parts for key in part] for parts in zip(*shares, strict=True)] == one


def test_an_order_started_later_is_the_rest_of_the_order():
    whole = batches(BatchOrder(50, 8, 0, 1, seed=1), 30)
    for start in (1, 5, 6, 7, 18):  # six steps an epoch
        assert batches(BatchOrder(50, 8, 0, 1, seed=1, start_step=start), 30 - start) == whole[start:]


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    order = BatchOrder(48, 8, 0, 1, seed=2)
    epochs = [[i for b in batches(order, 12)[6 * e : 6 * e + 6] for i, _ in b] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48)) and epochs[0] != epochs[1]
    assert [i for b in batches(BatchOrder(48, 8, 0, 1, seed=3), 6) for i, _ in b] != epochs[0]
    mirrored = [m for b in batches(order, 600) for _, m in b]
    assert 0.45 < sum(mirrored) / len(mirrored) < 0.55


def test_fewer_images_than_a_batch():
    with pytest.raises(DataError, match="5 images, fewer than one global batch of 8"):
        BatchOrder(5, 8, 0, 1, seed=0)
