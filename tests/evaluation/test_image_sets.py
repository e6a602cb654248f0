import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data.sets import Digits
from evaluation.image_sets import open_images
from runtime.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)


def joined(images, size: int) -> np.ndarray:
    """All images, read by one process, which two read as well."""
    parts = list(images.batches(size))
    assert all(part.dtype == torch.uint8 and len(indices) == len(part) <= size for indices, part in parts)
    assert [i for indices, _ in parts for i in indices] == list(range(len(images)))
    shared = [batch for rank in range(2) for batch in images.batches(size, rank, 2)]
    for (ours, part), (theirs, same) in zip(parts, sorted(shared, key=lambda b: b[0][0]), strict=True):
        assert ours == theirs and torch.equal(part, same)
    return torch.cat([part for _, part in parts]).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_an_npz_is_read_as_it_was_written(save, size, tmp_path):
    save(tmp_path / "x.npz", arr_0=PIXELS, arr_1=np.arange(10))
    images = open_images(str(tmp_path / "x.npz"))
    assert len(images) == 10 and np.array_equal(joined(images, size), PIXELS)


def test_a_large_npz_is_never_in_memory_whole(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((3000, 64, 64, 3), np.uint8))  # 37 MB
    tracemalloc.start()
    for _ in open_images(str(tmp_path / "x.npz")).batches(50):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_a_folder_is_its_pictures_in_order(tmp_path):
    (tmp_path / "below").mkdir()
    for k, name in enumerate(("b.png", "a.png", "below/c.png")):
        Image.fromarray(PIXELS[k]).save(tmp_path / name)
    assert np.array_equal(joined(open_images(str(tmp_path)), 2), PIXELS[[1, 0, 2]])


def test_pictures_of_a_folder_are_cropped_as_training_does(image_folder):
    from data.images import center_crop_arr

    found = joined(open_images(str(image_folder), 16), 5)
    assert found.shape == (12, 16, 16, 3)
    first = center_crop_arr(Image.open(image_folder / "ant" / "0.png"), 16)
    assert np.array_equal(found[0], np.asarray(first))


def test_any_flipped_byte_of_a_compressed_file_is_read_or_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", PIXELS[:3] // 64)
    whole = (tmp_path / "x.npz").read_bytes()
    refused = 0
    for k in range(0, len(whole), 3):
        (tmp_path / "y.npz").write_bytes(whole[:k] + bytes([whole[k] ^ 255]) + whole[k + 1 :])
        try:
            joined(open_images(str(tmp_path / "y.npz")), 2)
        except DataError as error:
            assert "y.npz" in str(error)
            refused += 1
    assert refused > len(whole) / 3 / 2


def test_digits_are_the_embedded_ones():
    found = joined(open_images("digits"), 500)
    assert found.shape == (1797, 8, 8, 3) and np.ptp(found, axis=-1).max() == 0
    np.testing.assert_allclose(found[0, :, :, 0] / 127.5 - 1, Digits(8, 1)[0, False][0][0], atol=1e-6)


def test_what_is_no_set_of_images_is_named(tmp_path, image_folder):
    np.savez(tmp_path / "other.npz", images=PIXELS)
    np.savez(tmp_path / "float.npz", PIXELS / 255)
    np.savez(tmp_path / "grey.npz", PIXELS[..., 0])
    np.savez(tmp_path / "first.npz", PIXELS.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "none.npz", PIXELS[:0])
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00v\x00{'descr'")
    np.savez(tmp_path / "x.npz", PIXELS)
    with zipfile.ZipFile(tmp_path / "x.npz") as whole, zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole.read("arr_0.npy")[:-100])
    damaged = bytearray((tmp_path / "x.npz").read_bytes())
    damaged[500] ^= 1
    (tmp_path / "flipped.npz").write_bytes(damaged)
    for name, message in (
        ("other.npz", "has no arr_0; it holds images"),
        ("float.npz", r"float64 of shape \(10, 6, 5, 3\); uint8 of \(N, H, W, 3\)"),
        ("grey.npz", r"uint8 of shape \(10, 6, 5\); uint8 of"),
        ("first.npz", r"shape \(10, 3, 6, 5\)"),
        ("none.npz", r"shape \(0, 6, 5, 3\)"),
        ("text.npz", "is no .npz file"),
        ("absent.npz", "does not exist"),
        ("folder", "holds no images"),
        ("header.npz", "damaged"),
        ("cut.npz", "damaged: arr_0 ends too early"),
        ("flipped.npz", "damaged"),
    ):
        with pytest.raises(DataError, match=message) as raised:
            joined(open_images(str(tmp_path / name)), 2)
        assert name in str(raised.value)
    with pytest.raises(DataError, match=r"1\.png is 33 x 23, .*0\.png is 33 x 20: give --image-size"):
        joined(open_images(str(image_folder)), 2)
    (tmp_path / "folder" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image .*a\.png cannot be read"):
        joined(open_images(str(tmp_path / "folder")), 2)
