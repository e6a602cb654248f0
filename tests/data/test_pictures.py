import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from data import pictures
from data.pictures import columns_for, fault_of, grid, save_image, save_npz, to_uint8, to_uint8_later
from runtime.errors import DataError
from tests.conftest import ROOT


def test_to_uint8_rounds_as_the_predecessors_do():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    bytes_ = to_uint8(values.reshape(6, 1, 1, 1))
    assert bytes_.shape == (6, 1, 1, 3)  # grey becomes three equal channels
    assert bytes_[:, 0, 0, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_what_is_not_finite_is_no_picture():
    images = torch.zeros(3, 1, 4, 4)
    for value in (torch.nan, torch.inf):
        images[1, 0, 2, 2] = value
        with pytest.raises(FloatingPointError, match=r"^1 of 3 pictures are not finite"):
            to_uint8(images)


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


@pytest.mark.parametrize("caption", ["kept 0 to 0.95", "kept 0.125 to 0.875", "golden retriever", "n02099601"])
def test_captions_are_whole(caption):
    text, font = pictures.legible(caption)
    lines = pictures.in_lines(text, font, 64)
    assert " ".join(lines) == caption and all(font.getlength(line) <= 64 for line in lines)
    assert grid(np.zeros((1, 8, 8, 3), np.uint8), [caption]).height == 64 + 14 * len(lines) + 8


def test_what_is_cut_off_says_so():
    text, font = pictures.legible("a name of a class " * 9)
    *_, last = lines = pictures.in_lines(text, font, 64)
    assert len(lines) == 3 and last.endswith("…") and font.getlength(last) <= 64
    whole = "x" * 15
    assert "".join(pictures.in_lines(whole, font, 64)) == whole


@pytest.mark.parametrize("name", ["ASCII", "chien épagneul", "собака", "σκύλος", "שלום", "kůň"])
def test_captions_have_letters_outside_ascii(name):
    """None is drawn as the box that stands for a letter which a font does not have."""
    text, font = pictures.legible(unicodedata.normalize("NFD", name))
    assert text == name and pictures.can_write(font, name)
    assert len({bytes(font.getmask(letter)) for letter in name}) == len(set(name))


def test_letters_that_no_font_has_are_named(monkeypatch):
    monkeypatch.setattr(pictures, "fonts", lambda: [pictures.pillows_font()])
    assert pictures.legible("a犬\nb\udcff")[0] == r"a\u72ac\nb\udcff"
    grid(np.zeros((1, 8, 8, 3), np.uint8), ["a犬\nb\udcff"])


def test_columns_are_classes_where_labels_repeat():
    assert columns_for([0, 1, 2] * 4) == 3
    assert columns_for([k % 10 for k in range(16)]) == 10  # the last row is cut short
    assert columns_for([5, 3, 1]) is None and columns_for([0, 0, 1, 1]) is None and columns_for([7] * 16) is None


def test_eight_pictures_make_the_grid_of_sit():
    width, height = grid(np.zeros((8, 64, 64, 3), np.uint8)).size
    assert (width // 64, height // 64) == (4, 2)


def test_npz_streams_what_the_files_hold(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for image, path in zip(images, paths, strict=True):
        save_image(Image.fromarray(image), path)
    save_npz(paths, range(7), tmp_path / "all.npz", 6)
    with np.load(tmp_path / "all.npz") as npz:
        assert npz.files == ["arr_0", "arr_1"] and npz["arr_0"].dtype == np.uint8
        assert np.array_equal(npz["arr_0"], images) and npz["arr_1"].tolist() == list(range(7))
    save_npz(paths, range(7), tmp_path / "again.npz", 6)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "all.npz").read_bytes()


def test_npz_of_many_pictures_takes_little_memory(tmp_path):
    """Hardly more than the process has anyway, and the file is 74 MB."""
    save_image(Image.new("RGB", (64, 64)), tmp_path / "0.png")
    program = """
import pathlib
from data import pictures
def peak(): return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))  # KiB
before = peak()
pictures.save_npz([pathlib.Path("0.png")] * 6_000, range(6_000), pathlib.Path("all.npz"), 64)
print(before, peak())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    before, after = map(int, ran.stdout.split())
    assert (tmp_path / "all.npz").stat().st_size > 6_000 * 64 * 64 * 3
    assert after - before < 30_000


def test_nothing_half_written_is_left(tmp_path):
    good = tmp_path / "0.png"
    save_image(Image.new("RGB", (4, 4)), good)
    with pytest.raises(DataError, match=r"absent\.png is damaged"):
        save_npz([good, tmp_path / "absent.png"], [0, 1], tmp_path / "all.npz", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["0.png"]


def test_pictures_that_are_not_as_they_were_written_are_named(tmp_path):
    good, other = tmp_path / "0.png", tmp_path / "1.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    save_image(Image.fromarray(pixels), good)
    whole = good.read_bytes()
    assert fault_of(good, 8) is None
    for image, says in (
        (Image.new("RGB", (9, 8)), "is 9 x 8 RGB, not 8 x 8 RGB"),
        (Image.new("L", (8, 8)), "is 8 x 8 L, not 8 x 8 RGB"),
        (Image.new("RGBA", (8, 8)), "is 8 x 8 RGBA, not"),
    ):
        save_image(image, other)
        assert says in (fault_of(other, 8) or "")
        with pytest.raises(DataError, match=r"1\.png is "):
            save_npz([good, other], [0, 1], tmp_path / "all.npz", 8)
    damaged = [whole[:k] for k in (0, 20, 60, len(whole) // 2, len(whole) - 20, len(whole) - 5)]
    damaged += [whole[:k] + bytes([whole[k] ^ 4]) + whole[k + 1 :] for k in (0, 18, 60, len(whole) // 2)]
    for content in [*damaged, b"no picture", whole[:100] + bytes(len(whole) - 100)]:
        other.write_bytes(content)
        assert "is damaged: " in (fault_of(other, 8) or ""), len(content)
        with pytest.raises(DataError, match=r"1\.png is damaged"):
            save_npz([good, other], [0, 1], tmp_path / "all.npz", 8)
    assert not (tmp_path / "all.npz").exists()


def test_pictures_may_be_fetched_later():
    images = torch.linspace(-1, 1, 24).reshape(2, 1, 3, 4)
    expected = to_uint8(images)
    wait = to_uint8_later(images)
    images.zero_()  # what is fetched is what was there
    assert np.array_equal(wait(), expected) and np.array_equal(wait(), expected)
