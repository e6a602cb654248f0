import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import grid, save_image, save_npz, to_uint8, to_uint8_later


def test_to_uint8_rounds_as_the_predecessors_do():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    bytes_ = to_uint8(values.reshape(6, 1, 1, 1))
    assert bytes_.shape == (6, 1, 1, 3)  # grey becomes three equal channels
    assert bytes_[:, 0, 0, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_grid_holds_every_picture_enlarged_by_whole_factors():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    picture = np.asarray(grid(images, [str(k) for k in range(5)], columns=3))
    step_x, step_y = 64 + 4, 64 + 14 + 4
    assert picture.shape == (2 * step_y + 4, 3 * step_x + 4, 3)
    for k, image in enumerate(images):
        x, y = 4 + k % 3 * step_x, 4 + k // 3 * step_y
        assert np.array_equal(picture[y : y + 64 : 8, x : x + 64 : 8], image)
        caption = picture[y + 64 : y + 64 + 14, x : x + 64]
        assert caption.min() < 128  # something is written there


def test_a_long_caption_stays_under_its_picture():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    picture = np.asarray(grid(images, ["a very long name of a class", ""], columns=2))
    assert picture[4 + 64 :, 4 + 64 + 4 :].min() == 255 and picture[4 + 64 :, : 4 + 64].min() < 128


def test_eight_pictures_make_the_grid_of_sit():
    width, height = grid(np.zeros((8, 64, 64, 3), np.uint8)).size
    assert (width // 64, height // 64) == (4, 2)


def test_npz_streams_what_the_files_hold(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for image, path in zip(images, paths, strict=True):
        save_image(Image.fromarray(image), path)
    save_npz(paths, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as npz:
        assert npz.files == ["arr_0"] and npz["arr_0"].dtype == np.uint8
        assert np.array_equal(npz["arr_0"], images)


def test_npz_holds_one_picture_in_memory_at_a_time(tmp_path):
    save_image(Image.new("RGB", (64, 64)), tmp_path / "0.png")
    tracemalloc.start()
    save_npz([tmp_path / "0.png"] * 500, tmp_path / "all.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6 and (tmp_path / "all.npz").stat().st_size > 500 * 64 * 64 * 3


def test_nothing_half_written_is_left(tmp_path):
    good = tmp_path / "0.png"
    save_image(Image.new("RGB", (4, 4)), good)
    with pytest.raises(FileNotFoundError):
        save_npz([good, tmp_path / "absent.png"], tmp_path / "all.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["0.png"]


def test_pictures_may_be_fetched_later():
    images = torch.linspace(-1, 1, 24).reshape(2, 1, 3, 4)
    expected = to_uint8(images)
    wait = to_uint8_later(images)
    images.zero_()  # what is fetched is what was there
    assert np.array_equal(wait(), expected) and np.array_equal(wait(), expected)
