import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.sets import ImageFolder
from experiments import cifar10
from experiments.cifar10 import CIFAR10, CLASSES, DataError


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """torchvision's files, of two pictures a class and with checksums of their own."""
    folder = tmp_path / "theirs" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    parts = {"data_batch_1": slice(0, 12), "data_batch_2": slice(12, 20), "test_batch": slice(0, 3)}
    content: dict[str, dict] = {"batches.meta": {"label_names": list(CLASSES)}}
    for name, part in parts.items():
        content[name] = {"data": pixels[part], "labels": [i % 10 for i in range(20)][part]}
    sums = {}
    for name, batch in content.items():
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return folder, pixels


@pytest.mark.parametrize("above", [False, True])
def test_torchvisions_files_become_pngs_of_the_same_pixels(above, batches, tmp_path, capsys):
    folder, pixels = batches
    cifar10.main(["--out", str(tmp_path / "out"), "--source", str(folder.parent if above else folder)])
    assert "20 pictures" in capsys.readouterr().out
    dataset = ImageFolder(tmp_path / "out", 32)
    assert dataset.class_names == list(CLASSES) and dataset.labels == sorted(2 * list(range(10)))
    with Image.open(tmp_path / "out" / "cat" / "00013.png") as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), pixels[13])


def test_files_that_are_not_as_published_are_not_read(batches, tmp_path):
    folder, _ = batches
    (folder / "data_batch_2").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match=r"cifar-10-batches-py has not all files of CIFAR-10"):
        cifar10.main(["--out", str(tmp_path / "out"), "--source", str(folder)])
    assert not (tmp_path / "out").exists()


def jpegs() -> dict[str, bytes]:
    """Names and bytes of two pictures a class for training, and one to test."""
    content = {}
    for k, name in enumerate(CLASSES):
        for i, part in enumerate(("train", "train", "test")):
            file = io.BytesIO()
            Image.new("RGB", (32, 32), (20 * k, 50 * i, 90)).save(file, "JPEG")
            content[f"{part}/{name}/{i:04d}.jpg"] = file.getvalue()
    return content


def put(kind: str, tmp_path, content: dict[str, bytes]):
    """The pictures as a source of some kind."""
    if kind.startswith("zip"):
        with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name if kind == "zip" else f"CIFAR-10-images/{name}", data)
        return tmp_path / "pictures.zip"
    for name, data in content.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "pictures" / ("train" if kind == "train" else "")


@pytest.mark.parametrize("kind", ["folder", "train", "zip", "zip of a folder"])
def test_jpegs_are_copied_byte_for_byte_without_those_to_test(kind, tmp_path, capsys):
    content = jpegs()
    source = put(kind, tmp_path, content | {"train/cat/readme.txt": b"no picture"})
    cifar10.main(["--out", str(tmp_path / "out"), "--source", str(source)])
    assert "20 pictures" in capsys.readouterr().out
    written = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert {f"train/{name}": data for name, data in written.items()} == {
        name: data for name, data in content.items() if name.startswith("train")
    }


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda content: {k: v for k, v in content.items() if "/frog/" not in k}, r"in place of .* frog"),
        (lambda content: {k.replace("/cat/", "/3/"): v for k, v in content.items()}, r"holds 3, airplane"),
        (lambda content: {k: v for k, v in content.items() if "/dog/" not in k} | {"train/dog/a.txt": b""}, "dog"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_other_folders_are_refused_before_anything_is_written(kind, change, said, tmp_path):
    source = put(kind, tmp_path, change(jpegs()))
    with pytest.raises(DataError, match=said):
        cifar10.main(["--out", str(tmp_path / "out"), "--source", str(source)])
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_none_and_what_cannot_be_fetched_are_said(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    for source, said in (("absent", "--source .*absent does not exist"), ("a.txt", "is a file")):
        with pytest.raises(DataError, match=said):
            cifar10.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / source)])
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"cannot be fetched.*--source"):
        cifar10.main(["--out", str(tmp_path / "out")])
