import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from data.sets import ImageFolder
from experiments import fashion_mnist


def test_debians_files_become_a_folder_of_classes(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    (tmp_path / "debian").mkdir()
    for part in ("train", "t10k"):
        images = struct.pack(">4i", 0x803, 12, 28, 28) + pixels.tobytes()
        (tmp_path / "debian" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        numbers = struct.pack(">2i", 0x801, 12) + labels.tobytes()
        (tmp_path / "debian" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(numbers))
    fashion_mnist.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "debian")])
    assert "12 pictures" in capsys.readouterr().out
    dataset = ImageFolder(tmp_path / "out", 28)
    assert len(dataset) == 12 and len(dataset.class_names) == 10
    assert dataset.class_names[0] == "0-T-shirt-top" and dataset.class_names[9] == "9-Ankle boot"
    with Image.open(tmp_path / "out" / "1-Trouser" / "00011.png") as image:
        assert np.array_equal(np.asarray(image), pixels[11])


def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(fashion_mnist.DataError, match=r"cannot be fetched.*dataset-fashion-mnist"):
        fashion_mnist.load(tmp_path, tmp_path / "absent")
