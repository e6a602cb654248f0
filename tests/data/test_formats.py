"""Data of other kinds are named for what they are."""

import numpy as np
import pytest

import kinds
from data.sets import ImageFolder
from runtime.errors import DataError
from shapes.sets import check_shapes
from tests.data.test_listing import picture


def check_path(path):
    kinds.of_data(path).check_path(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["vae-sd/00000/img-mean-std-00000000.npy", "vae-sd/dataset.json"], "REPA"),
        (["latents_rank00_shard000.safetensors"], "LightningDiT"),
        (["imagenet256_features/0.npy", "imagenet256_labels/0.npy"], "fast-DiT"),
        (["data/train-00000-of-00002.parquet"], "Parquet"),
        (["data-00000-of-00001.arrow", "state.json", "dataset_info.json"], "Arrow"),
        (["0.tar"], "WebDataset"),
        (["shards/000.tar.gz"], "tar archives"),
        (["data.mdb", "lock.mdb"], "LMDB"),
        (["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"], "CIFAR-10"),
        (["cifar-100-python/train", "cifar-100-python/meta"], "CIFAR-100"),
        (["train_data_batch_1", "val_data"], "downsampled ImageNet"),
        (["MNIST/raw/train-images-idx3-ubyte.gz"], "MNIST"),
        (["train-00000-of-01024"], "TFRecord"),
        (["a.tfrecords"], "TFRecord"),
        (["celeba.h5"], "HDF5"),
        (["train_32x32.mat"], "Matlab"),
        (["a/clip.mp4"], "videos"),
        (["cat/0.npy", "dog/0.npy"], "NumPy arrays"),
        (["latents.pt"], "PyTorch"),
        (["n01440764.tar", "n01443537.tar"], "tar archives"),
        (["train.zip"], "archives: unpack"),
    ],
)
def test_folders_of_other_formats_are_named(tmp_path, names, said):
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"{}" if name.endswith("json") else b"\0\1")
    with pytest.raises(DataError, match=rf"holds [^:]*{said}.*see docs/training\.md#data-of-other-kinds"):
        ImageFolder(tmp_path / "set", 8)


@pytest.mark.parametrize("name", ["repa/vae-sd", "cifar-100-python", "imagenet256_features"])
def test_the_folders_own_name_tells_too(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    for file in ("train", "0.npy"):
        (tmp_path / name / file).write_bytes(b"\0")
    with pytest.raises(DataError, match=r"REPA|CIFAR-100|fast-DiT"):
        ImageFolder(tmp_path / name, 8)


def test_pictures_beside_other_files_are_what_is_meant(tmp_path):
    picture(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / "0.npy").write_bytes(b"")
    (tmp_path / "all.tar").write_bytes(b"")
    assert len(ImageFolder(tmp_path, 8)) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.parquet", b"PAR1\x15\x04\x15", "a data set in Parquet"),
        ("a.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("a.tfrecord", b"\0\1\2", "TFRecord"),
        ("list.txt", b"a.png 0\n", "text that begins with 'a.png 0'"),
        ("a.png", b"\x89PNG\r\n", "a picture"),
        ("a.parquet", b"<!DOCTYPE html>", "a web page"),
        ("a.npy", b"\x93NUMPY", "a NumPy array"),
    ],
)
def test_a_file_is_named_by_what_it_is(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"is a file, .*{said}.*a folder of images is needed"):
        check_path(str(tmp_path / name))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"train_images": np.zeros((3, 8, 8, 3), np.uint8), "train_labels": np.zeros((3, 1))},
            r"images \(train_images",
        ),
        ({"arr_0": np.zeros((3, 8, 8, 3), np.uint8)}, r"holds images \(arr_0 uint8 \(3, 8, 8, 3\)\), no shapes"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, "holds images"),
        ({"mu": np.zeros(4), "sigma": np.zeros((4, 4))}, "statistics of images"),
        ({"z": np.zeros((3, 4), np.float32)}, "holds arrays"),
    ],
)
def test_an_npz_is_named_by_what_it_holds(tmp_path, arrays, said):
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(DataError, match=said):
        check_path(str(tmp_path / "m.npz"))


def test_what_is_no_npz_or_not_there_is_said(tmp_path):
    (tmp_path / "a.npz").write_text("<html>")
    with pytest.raises(DataError, match="a web page"):
        check_shapes(tmp_path / "a.npz")
    with pytest.raises(DataError, match="does not exist"):
        check_shapes(tmp_path / "b.npz")
    check_path("shapes")
    check_path("digits")
