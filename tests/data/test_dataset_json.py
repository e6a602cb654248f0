"""Labels in a dataset.json, in a folder and in a .zip."""

import json
import zipfile

import pytest

from data.sets import ImageFolder, class_counts
from runtime.errors import DataError
from tests.data.test_listing import picture

NAMES = [f"0000{k // 2}/img0000000{k}.png" for k in range(4)]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        picture(tmp_path / "set" / name)
    return tmp_path / "set"


def pack(folder, method=zipfile.ZIP_STORED):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        ([[name, k] for k, name in enumerate(NAMES)][::-1], [0, 1, 2, 3], 4),
        ([[name, 7] for name in NAMES], [7] * 4, 8),
        ([[name, [0, 0, 1, 0]] for name in NAMES], [2] * 4, 4),
        ([[name, [0.0, 1.0]] for name in NAMES], [1] * 4, 2),
        ({name: 3 - k for k, name in enumerate(NAMES)}, [3, 2, 1, 0], 4),
        ([[name.replace("/", "\\"), 1] for name in NAMES], [1] * 4, 2),
        ([["./" + name, 1.0] for name in NAMES], [1] * 4, 2),
        (None, [0] * 4, 1),
    ],
)
def test_labels_are_those_of_the_file(folder, packed, labels, expected, classes):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    data = ImageFolder(pack(folder) if packed else folder, 8)
    assert data.labels == expected and data.class_names == [str(k) for k in range(classes)]
    assert [data.paths.name(k).decode() for k in range(4)] == NAMES
    assert data[3, False][1] == expected[3] and data[3, False][0].shape == (3, 8, 8)
    assert "dataset.json" in class_counts(data) and len(data.notes) == (labels is None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[name, 0] for name in NAMES[:2]], r"no label for 2 of 4 pictures, 00001/img00000002\.png first"),
        ([[name, 0] for name in [*NAMES, "x.png"]], r"lists 1 pictures that are not there, x\.png first"),
        ([[name, 0] for name in [*NAMES, NAMES[1]]], r"lists 00000/img00000001\.png twice"),
        ([[NAMES[0], -1]], r"img00000000\.png is -1; numbers from 0"),
        ([[NAMES[0], 1.5]], r"img00000000\.png is 1\.5; whole numbers"),
        ([[NAMES[0], "cat"]], r"is 'cat'; whole numbers"),
        ([[NAMES[0], True]], r"is True; whole numbers"),
        ([[NAMES[0], None]], r"is None; whole numbers"),
        ([[NAMES[0], 10**12]], r"is 1000000000000; numbers from 0 to 999,999"),
        ([[NAMES[0], [0, 1, 1]]], r"is \[0, 1, 1\], which is not one-hot"),
        ([[NAMES[0], [0.2, 0.8]]], "not one-hot"),
        ([[NAMES[0], []]], "not one-hot"),
        ([NAMES[0]], "no pair of a name and a label"),
        ("labels", "its labels are 'labels'"),
        (7, "its labels are 7"),
    ],
)
def test_labels_that_do_not_fit_are_named(folder, labels, said):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=rf"dataset\.json.*{said}"):
        ImageFolder(folder, 8)


@pytest.mark.parametrize("text", ["{", "", '{"labels": {"a.png": 1, "a.png": 2}}', '{"labels": {"a.png": 1'])
def test_a_file_that_is_no_json_is_named(folder, text):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        ImageFolder(folder, 8)


def test_labels_without_folders(folder):
    for name in NAMES:
        (folder / name).rename(folder / name[6:])
    (folder / "00000").rmdir()
    (folder / "00001").rmdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": {name[6:]: k for k, name in enumerate(NAMES)}}))
    assert ImageFolder(folder, 8).labels == [0, 1, 2, 3]


def test_a_model_that_was_trained_on_other_classes(folder):
    (folder / "dataset.json").write_text(json.dumps({"labels": dict.fromkeys(NAMES, 2)}))
    assert ImageFolder(folder, 8, class_names=["0", "2"]).labels == [1] * 4
    with pytest.raises(DataError, match=r"label 2 in .*dataset\.json is no class that the model was trained on"):
        ImageFolder(folder, 8, class_names=["cat", "dog"])
