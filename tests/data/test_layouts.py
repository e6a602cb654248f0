"""Folders that are no classes, and labels that lie in a file beside them."""

import json

import pytest

from data.layouts import splits_of
from data.listing import Children, Folder
from data.sets import ImageFolder, class_counts, load_dataset
from runtime.errors import DataError
from tests.data.test_listing import picture


def pictures(root, *folders, count: int = 2):
    for folder in folders:
        for k in range(count):
            picture(root / folder / f"{k}.png")
    return root


# ---- splits and wrappers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "meant"),
    [
        (("train/cat", "train/dog", "val/cat", "val/dog"), "give --data-path {}/train;"),
        (("Training/cat", "Testing/cat"), "give --data-path {}/Training;"),
        (("training_set/cat", "test_set/cat"), "give --data-path {}/training_set;"),
        (("valid/cat", "train/cat", "test/cat"), "give --data-path {}/train;"),
        (("train/cat",), "give --data-path {}/train;"),
        (("test/cat", "val/cat"), "give --data-path {}/"),
        (("images/cat", "images/dog"), "give --data-path {}/images;"),
        (("images/cat", "annotations/x"), "give --data-path {}/images;"),
        (("Data/CLS-LOC/train/n01", "Data/CLS-LOC/val/n01", "Annotations/CLS-LOC"), "{}/Data/CLS-LOC/train;"),
        (("ILSVRC/Data/CLS-LOC/train/n01", "ILSVRC/Annotations/x"), "{}/ILSVRC/Data/CLS-LOC/train;"),
        (("set/train/cat", "set/val/cat"), "give --data-path {}/set/train"),
        (("train2017", "val2017"), "give --data-path {}/train2017, with a folder for each class"),
        (("train", "test"), "give --data-path {}/train, with .*where they are classes, give them other names"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, folders, meant):
    pictures(tmp_path, *folders)
    with pytest.raises(DataError, match=meant.format(tmp_path)):
        ImageFolder(tmp_path, 8)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("bus", "car", "train"), None),  # of VOC and CIFAR
        (("cat", "images"), "images in .* are taken for classes"),
        (("cat", "test", "train"), "test, train in .* are taken for classes"),
        (("images",), "all pictures are of one class, images"),
        (("train",), "all pictures are of one class, train"),
        (("cat/images", "dog/images"), None),  # as in tiny ImageNet
        (("cat/images",), None),
        (("bottle/test", "bottle/train", "cable/train"), "bottle holds test, train, all of which are of class bottle"),
        (("00000", "00001"), "00000, 00001, .* FFHQ"),
        (("mask", "no_mask"), None),
        (("cat/deep/er", "dog"), None),
    ],
)
def test_classes_that_may_be_meant_go_on(tmp_path, folders, said):
    data = ImageFolder(pictures(tmp_path, *folders), 8)
    assert data.class_names == sorted({folder.partition("/")[0] for folder in folders})
    assert len(data.notes) == (said is not None)
    if said:
        import re

        assert re.search(said, data.notes[0])


def test_companions_do_not_make_a_wrapper():
    assert splits_of(Children(["images", "masks"], [], [])) == ["images"]
    assert splits_of(Children(["images", "cat"], [], [])) == splits_of(Children(["masks", "labels"], [], [])) == []


# ---- tables --------------------------------------------------------------------------------------------------------

WITH_LABELS = json.dumps({"file_name": "cat/0.png", "label": 3})


@pytest.mark.parametrize(
    ("folders", "file", "text", "said"),
    [
        (("cat", "dog"), "metadata.jsonl", WITH_LABELS, r"metadata\.jsonl holds labels \(label\)"),
        (("cat", "dog"), "metadata.csv", "file_name,category\n", r"metadata\.csv holds labels \(category\)"),
        (("pics",), "metadata.jsonl", WITH_LABELS, r"metadata\.jsonl holds labels"),
        (("pics",), "labels.csv", "a,1", r"holds one folder, pics, and labels\.csv"),
        (("images",), "labels.txt", "a 1", r"holds one folder, images, and labels\.txt"),
        (("img_align_celeba",), "list_attr_celeba.txt", "", r"list_attr_celeba\.txt"),
        (("pics",), "index.csv", "a,1", r"index\.csv, in which the labels may be"),
        (("pics",), "pics/labels.csv", "a,1", r"pics/labels\.csv"),
        (("",), "labels.csv", "a,1", r"no sub-folders: its 2 pictures lie in it directly, labels\.csv may hold"),
    ],
)
def test_labels_beside_the_folders_are_named(tmp_path, folders, file, text, said):
    pictures(tmp_path, *folders)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        ImageFolder(tmp_path, 8)


@pytest.mark.parametrize(
    ("folders", "file", "text"),
    [
        (("cat", "dog"), "labels.csv", "a,1"),
        (("cat", "dog"), "metadata.jsonl", '{"file_name": "cat/0.png", "text": "a cat"}'),
        (("cat",), "metadata.csv", "file_name,text\n"),
        (("cat", "dog"), "metadata.jsonl", "no JSON"),
        (("cat", "dog"), "dataset.json", '{"name": "pets"}'),
    ],
)
def test_folders_with_a_table_beside_them_go_on_with_a_warning(tmp_path, folders, file, text):
    pictures(tmp_path, *folders)
    (tmp_path / file).write_text(text)
    data = ImageFolder(tmp_path, 8)
    assert data.class_names == list(folders) and f"{tmp_path / file}" in data.notes[0]


@pytest.mark.parametrize("file", ["README.txt", "LICENSE", "cat/0.txt", "cat/a.label.json", "cat/b.label.json"])
def test_other_files_say_nothing(tmp_path, file):
    pictures(tmp_path, "cat")
    (tmp_path / "cat" / "c.label.json").write_text("{}")
    (tmp_path / "cat" / "d.label.json").write_text("{}")
    (tmp_path / file).write_text("label")
    assert ImageFolder(tmp_path, 8).class_names == ["cat"]


def test_classes_are_counted(tmp_path, image_folder):
    assert class_counts(ImageFolder(image_folder, 8)) == "ant 4, bee 4, cat 4"
    assert class_counts(load_dataset("digits", 8, 1)).startswith("0 178, 1 182, 2 177")
    names = [f"{k:02d}x" for k in range(12)]
    assert class_counts(ImageFolder(pictures(tmp_path, *names, count=1), 8)).endswith("09x 1, ...")


def test_a_folder_is_a_tree(image_folder):
    tree = Folder(image_folder)
    assert tree.children() == (["ant", "bee", "cat"], [], [])
    assert tree.children("ant").pictures == [f"{k}.png" for k in range(4)]
