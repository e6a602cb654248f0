"""Pictures in a .zip."""

import struct
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.images import UnreadableImage
from data.order import BatchOrder
from data.sets import ImageFolder
from data.skipping import Skipping, collate
from runtime.errors import DataError
from tests.data.test_dataset_json import pack
from tests.data.test_listing import picture


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_its_folder(image_folder, tmp_path, method):
    (tmp_path / "set").symlink_to(image_folder)
    folder = ImageFolder(tmp_path / "set", 16)
    data = ImageFolder(pack(tmp_path / "set", method), 16)
    assert data.digest == folder.digest and data.class_names == folder.class_names and data.labels == folder.labels
    assert all(torch.equal(data[k, False][0], folder[k, False][0]) for k in range(len(data)))


def test_workers_and_threads_read_one_archive(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(40):
        (tmp_path / "set" / f"{k % 2}x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "set" / f"{k % 2}x" / f"{k:02d}.png")
    folder, data = ImageFolder(tmp_path / "set", 8), ImageFolder(pack(tmp_path / "set"), 8)
    order = BatchOrder(length=40, global_batch_size=8, rank=0, world_size=1, seed=0)
    loaders = [
        DataLoader(Skipping(d), batch_sampler=order, num_workers=n, collate_fn=collate)
        for d, n in ((folder, 0), (data, 2))
    ]
    for _, (x, y, bad), (x2, y2, bad2) in zip(range(10), *loaders, strict=False):
        assert torch.equal(x, x2) and torch.equal(y, y2) and bad == bad2 == {}
    wrong = []
    expected = [folder[k, False][0] for k in range(40)]

    def read():
        wrong.extend(k for k in range(40) if not torch.equal(data[k, False][0], expected[k]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_systems_leave_and_a_folder_around_all_are_no_classes(tmp_path):
    content = picture(tmp_path / "0.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/", "")
        for name in (
            "set/cat/0.png",
            "set/dog/deep/a",
            "__MACOSX/set/cat/._0.png",
            "set/.git/x.png",
            "set\\dog\\b.png",
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    data = ImageFolder(tmp_path / "set.zip", 8)
    assert data.class_names == ["cat", "dog"] and [data.paths.name(k) for k in range(3)] == [
        b"cat/0.png",
        b"dog/b.png",
        b"dog/deep/a",
    ]
    assert data[2, False][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/cat/0.png", "val/cat/0.png"], r"parts of a data set.*give --data-path a \.zip of train alone"),
        (["0.png", "1.png"], "has no sub-folders: its 2 pictures"),
        (["x/0.parquet"], "holds a data set in Parquet files"),
        ([], "has no sub-folders"),
    ],
)
def test_layouts_are_told_in_an_archive_too(tmp_path, names, said):
    content = picture(tmp_path / "0.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.writestr(name, content)
    with pytest.raises(DataError, match=said):
        ImageFolder(tmp_path / "set.zip", 8)


def test_a_damaged_archive_is_named(tmp_path):
    for k in range(3):
        picture(tmp_path / "set" / "cat" / f"{k}.png")
    path = pack(tmp_path / "set")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)
    data = ImageFolder(path, 8)
    with pytest.raises(UnreadableImage, match=r"set\.zip/cat/0\.png cannot be read: the archive is damaged"):
        data[0, False]
    assert data[1, False][0].shape == (3, 8, 8)
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"set\.zip cannot be read as a \.zip"):
        ImageFolder(path, 8)


def test_a_bomb_is_not_unpacked(tmp_path):
    """An entry that says that it has 10 bytes, and has more."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", b"0" * 100_000)
    content = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged"):
        ImageFolder(tmp_path / "a.zip", 8)[0, False]


@pytest.mark.parametrize("fault", ["encrypted", "lzma", "link"])
def test_entries_that_cannot_be_read_are_named(tmp_path, fault):
    info = zipfile.ZipInfo("cat/0.png")
    info.external_attr = 0o120777 << 16 if fault == "link" else 0
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"x", zipfile.ZIP_LZMA if fault == "lzma" else zipfile.ZIP_STORED)
    if fault == "encrypted":
        content = bytearray((tmp_path / "a.zip").read_bytes())
        content[content.index(b"PK\1\2") + 8] |= 1
        (tmp_path / "a.zip").write_bytes(content)
    said = {"encrypted": "is encrypted", "lzma": "neither stored nor deflated", "link": "is a symbolic link"}
    with pytest.raises(DataError, match=said[fault]):
        ImageFolder(tmp_path / "a.zip", 8)
