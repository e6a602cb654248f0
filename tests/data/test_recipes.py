"""What docs/training.md says about bringing data of other kinds into folders, run on small ones.

Those for Hugging Face's data sets and LMDB run where their packages are installed.
"""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from data.sets import ImageFolder
from tests.conftest import ROOT
from tests.data.test_listing import picture


def recipe(word: str) -> str:
    """The one block of the section that has a word in it."""
    section = (ROOT / "docs/training.md").read_text().partition("## Data of other kinds\n")[2].partition("\n## ")[0]
    blocks = [part.partition("```")[0] for part in section.split("```python\n")[1:]]
    (block,) = [block for block in blocks if word in block]
    return block


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe on tmp_path/SOURCE."""
    (tmp_path / "SOURCE").mkdir()
    monkeypatch.chdir(tmp_path)

    def run_it(word: str, data_path: str = "pictures") -> ImageFolder:
        exec(compile(recipe(word), word, "exec"), {})
        return ImageFolder(data_path, 8)

    return run_it


def encoded(colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def test_webdataset(run, tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / "SOURCE" / f"{shard:05d}.tar", "w") as tar:
            for k in range(2):
                for suffix, content in (("png", encoded((255 * k, 0, 0))), ("cls", str(shard + 2 * k).encode())):
                    info = tarfile.TarInfo(f"{k:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    data = run("tarfile")
    assert data.labels == [0, 2, 1, 3] and data[1, False][0][0].min() == 1


def test_cifar(run, tmp_path):
    pixels = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)
    for k in (1, 2):
        content = {"data": pixels, "labels": [k, 9]}
        (tmp_path / "SOURCE" / f"data_batch_{k}").write_bytes(pickle.dumps(content))
    data = run("data_batch_*")
    assert data.labels == [1, 9, 2, 9] and len(data.class_names) == 10
    assert np.array_equal(np.asarray(Image.open(data.paths[0]))[..., 1].ravel(), pixels[0, 1024:2048])


def test_a_table_beside_a_flat_folder(run, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "SOURCE" / name)
    (tmp_path / "SOURCE" / "labels.csv").write_text("name,label\nb.png,cat\na.png,dog\nc.png,cat\n")
    assert run("csv", "SOURCE").labels == [1, 0, 0]


def test_metadata(run, tmp_path):
    for name in ("x/a.png", "x/b.png"):
        picture(tmp_path / "SOURCE" / name)
    rows = [{"file_name": "x/b.png", "label": 4}, {"file_name": "x/a.png", "label": 0}]
    (tmp_path / "SOURCE" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("metadata.jsonl", "SOURCE").labels == [0, 4]


def test_hugging_face(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.new("RGB", (8, 8), (9 * k, 0, 0)) for k in range(3)], "label": [2, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "SOURCE" / "train.parquet")
    assert run("load_dataset").labels == [2, 0, 1]


def test_lmdb(run, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "SOURCE"), map_size=1 << 20) as made, made.begin(write=True) as transaction:
        for k in range(3):
            transaction.put(f"{k:03d}".encode(), encoded((9 * k, 0, 0)))
    data = run("lmdb")
    assert data.labels == [0] * 3 and data[2, False][0].shape == (3, 8, 8)
