import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from data.images import center_crop_arr, to_tensor
from data.order import BatchOrder
from data.pictures import to_uint8
from data.sets import Digits, ImageFolder, check_same_everywhere, load_dataset
from runtime import distributed
from runtime.errors import DataError
from tests.conftest import golden

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


def test_another_batch_size_goes_on_from_the_image():
    """Every image of the epoch that is begun comes once; then whole epochs, as if it had always been so."""
    before = BatchOrder(100, 16, 0, 1, seed=4)
    visited = [key for batch in batches(before, 8) for key in batch][96:]  # six steps an epoch; two of the second
    after = BatchOrder(100, 5, 0, 1, seed=4, start_step=8, start=before.images(8))
    rest = batches(after, 14 + 20)
    epoch = visited + [key for batch in rest[:13] for key in batch]
    assert sorted(k for k, _ in epoch) == sorted({k for k, _ in epoch}) and len(epoch) == 97
    third = BatchOrder(100, 5, 0, 1, seed=4, start_step=40)  # 20 steps an epoch
    assert rest[13:] == batches(third, 21)
    assert [after.images(8 + k) for k in (0, 1, 13, 14, 33)] == [132, 137, 200, 205, 300]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 33, 100])
@pytest.mark.parametrize("steps", [0, 3, 6, 20])
def test_passes_over_the_data_are_counted_whatever_the_batch_size(batch_size, steps):
    """The last step of epoch 5 is the last whose images are of it; images never go backwards."""
    before = BatchOrder(100, 16, 0, 1, seed=4)
    order = BatchOrder(100, batch_size, 0, 1, seed=4, start_step=steps, start=before.images(steps))
    last = order.last_step(5)
    assert order.images(last - 1) < 500 == order.images(last)
    counts = [order.images(k) for k in range(steps, last + 1)]
    assert counts == sorted(set(counts)) and counts[0] >= before.images(steps)
    assert BatchOrder(100, 16, 0, 1, seed=4, start_step=steps).last_step(5) == 30


def test_without_mirroring_the_order_stays():
    plain, mirrored = (batches(BatchOrder(50, 8, 0, 1, seed=1, flip=flip), 30) for flip in (False, True))
    assert [[(k, False) for k, _ in batch] for batch in mirrored] == plain != mirrored


def test_an_epoch_visits_every_image_once_and_epochs_differ():
    order = BatchOrder(48, 8, 0, 1, seed=2)
    epochs = [[i for b in batches(order, 12)[6 * e : 6 * e + 6] for i, _ in b] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(48)) and epochs[0] != epochs[1]
    assert [i for b in batches(BatchOrder(48, 8, 0, 1, seed=3), 6) for i, _ in b] != epochs[0]
    mirrored = [m for b in batches(order, 600) for _, m in b]
    assert 0.45 < sum(mirrored) / len(mirrored) < 0.55


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


def test_fewer_images_than_a_batch():
    with pytest.raises(DataError, match="5 images, fewer than one global batch of 8"):
        BatchOrder(5, 8, 0, 1, seed=0)
