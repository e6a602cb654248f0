import errno
import os
from collections import Counter

import pytest
from PIL import Image

from data.listing import Paths, image_files
from data.sets import ImageFolder
from evaluation.image_sets import open_images
from runtime.errors import DataError


def picture(path, kind: str = "PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path, kind)
    return path


@pytest.fixture
def classes(tmp_path):
    for name in ("ant", "bee", "cat"):
        for k in range(2):
            picture(tmp_path / name / f"{k}.png")
    return tmp_path


# ---- what cannot be listed or followed -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("where", ["", "bee", "bee/deep"])
def test_a_folder_that_cannot_be_listed_is_named(classes, monkeypatch, code, where):
    """At the top, a class, or deep in it: never fewer images without a word."""
    picture(classes / "bee" / "deep" / "2.png")
    scandir = os.scandir

    def fail(path):
        if str(path) == str(classes / where):
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(DataError, match=rf"folder {classes / where} cannot be listed: {os.strerror(code)}"):
        ImageFolder(classes, 8)
    with pytest.raises(DataError, match=rf"folder {classes / where} cannot be listed"):
        open_images(str(classes))


@pytest.mark.parametrize("target", ["absent", "bee"])
@pytest.mark.parametrize("where", ["bee", "ant/more"])
def test_a_link_that_cannot_be_followed_is_named(classes, target, where):
    """A class that vanishes would shift the labels of all after it. A link to itself is a loop."""
    link = classes / where
    if link.exists():
        link.rename(classes / "moved")
    link.symlink_to(classes / "absent" if target == "absent" else link)
    reason = "No such file" if target == "absent" else "symbolic links"
    with pytest.raises(DataError, match=rf"{link} cannot be followed: .*{reason}"):
        ImageFolder(classes, 8)


def test_a_link_that_cannot_be_a_folder_of_images_is_left_out(classes):
    for link in (classes / "README.txt", classes / "ant" / "labels.json"):
        link.symlink_to(classes / "absent")
    assert len(ImageFolder(classes, 8)) == len(ImageFolder(classes, 8).paths) > 0


def test_a_link_to_a_picture_that_is_gone_is_a_picture_that_cannot_be_read(classes):
    """Training names it, and stops if there are many."""
    (classes / "ant" / "2.png").symlink_to(classes / "absent.png")
    data = ImageFolder(classes, 8)
    assert len(data) == 7
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        data[2, False]


# ---- what is no data -----------------------------------------------------------------------------------------------


LEFT = ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".Trashes"]
LEFT += [".ipynb_checkpoints", ".git", "#snapshot", "@Recycle", "__macosx"]


@pytest.mark.parametrize("name", LEFT)
def test_folders_that_systems_leave_are_neither_classes_nor_in_them(classes, name):
    picture(classes / name / "x.png")
    picture(classes / "bee" / name / "deep" / "x.png")
    data = ImageFolder(classes, 8)
    assert data.class_names == ["ant", "bee", "cat"] and len(data) == 6
    assert len(open_images(str(classes))) == 6


def test_files_that_systems_and_editors_leave_are_not_read(classes):
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", "ehthumbs.db", ".0.png.swp"):
        (classes / "bee" / name).write_bytes(b"\0\5\x16\7" * 9)
    for name in (".0.png", "0.png~", "#0.png#", "0.png.part"):
        picture(classes / "bee" / name)
    (classes / "bee" / ".#0.png").symlink_to("me@here.1:2")  # Emacs's lock
    assert len(ImageFolder(classes, 8)) == 6


def test_a_folder_of_data_may_have_a_hidden_name_above_it(tmp_path):
    picture(tmp_path / ".cache" / "@eaDir" / "ant" / "0.png")
    assert len(ImageFolder(tmp_path / ".cache" / "@eaDir", 8)) == 1


def test_what_is_left_out_of_a_class_is_counted(classes):
    for k in range(3):
        (classes / "bee" / f"{k}.json").write_text("{}")
    (classes / "cat" / "README").write_text("P 1")
    (classes / "cat" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    picture(classes / "loose.jpg", "JPEG")
    (classes / "README.txt").write_text("a word about the data")
    data = ImageFolder(classes, 8)
    assert len(data) == 6
    assert data.notes == [
        f"1 pictures directly in {classes} are in the folder of no class: left out",
        f"files in {classes} that are no pictures: left out (3 .json, 1 without a suffix, 1 .heic)",
    ]
    (classes / "dog").mkdir()
    (classes / "dog" / "0.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"dog holds no images \(.*\.png.*\); it holds 1 \.heic"):
        ImageFolder(classes, 8)


# ---- what is a picture ---------------------------------------------------------------------------------------------


def test_a_folder_that_mixes_kinds_is_read_whole(tmp_path):
    """By content: the suffixes that cameras and browsers give, other ones, none, a wrong one."""
    kinds = {
        "JPEG": ("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e", "f.png", "g.jpg_large", "n01440764_10026"),
        "PNG": ("h.PNG", "i.dat", "j.jpg", "k.apng"),
        "GIF": ("l.gif", "m"),
        "WEBP": ("n.webp", "o.1"),
        "BMP": ("p.bmp", "q.dib", "r.raw"),
        "TIFF": ("s.tif", "t.tiff", "u.x"),
        "PPM": ("v.ppm", "w.pnm", "x.y"),
    }
    for kind, names in kinds.items():
        for name in names:
            picture(tmp_path / "class" / name, kind)
    data = ImageFolder(tmp_path, 8)
    assert len(data) == sum(map(len, kinds.values())) and data.notes == []
    for k in range(len(data)):
        assert abs(data[k, False][0].mean((1, 2)) - data[0, False][0].mean((1, 2))).max() < 0.05, data.paths[k]
    assert len(open_images(str(tmp_path))) == len(data)


def test_a_file_is_not_opened_to_list_it_where_its_name_says_what_it_is(classes, monkeypatch):
    (classes / "ant" / "0.json").write_text("{}")
    monkeypatch.setattr("builtins.open", lambda *args, **settings: pytest.fail(f"opened {args[0]}"))
    assert len(ImageFolder(classes, 8)) == 6


def test_what_is_no_file_is_not_opened(tmp_path):
    """To open a pipe would wait for a writer for ever."""
    picture(tmp_path / "class" / "0.png")
    os.mkfifo(tmp_path / "class" / "pipe")
    others: Counter[str] = Counter()
    assert len(image_files(tmp_path, others)) == 1 and others == {"without a suffix": 1}


# ---- paths in one array --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["/data/ünï", ".", "/", "a/../b"])
def test_paths_come_back_as_they_were(root):
    names = ["ant/0.png", "ant/écrit 写真.png", os.fsdecode(b"bee/\xff\xfe.png"), "c"]
    paths = Paths(root)
    paths.extend(os.path.join(root, name) for name in names[:2])
    paths.extend(os.path.join(root, name) for name in names[2:])
    assert len(paths) == 4 and list(paths) == [os.path.join(root, name) for name in names]
    assert paths[-1] == os.path.join(root, "c") and paths.name(2) == b"bee/\xff\xfe.png"
    for index in (4, -5):
        with pytest.raises(IndexError):
            paths[index]


def test_a_million_paths_are_two_objects(tmp_path):
    """Not one for each path, which every data worker would get a copy of."""
    import gc
    import sys

    paths = Paths("/data")
    paths.extend(f"/data/n{k % 1000:08d}/{k}.JPEG" for k in range(10_000))
    held = [held for held in gc.get_referents(*gc.get_referents(paths)) if not isinstance(held, type)]
    held += gc.get_referents(paths)
    assert len(held) < 20 and sum(map(sys.getsizeof, held)) < 10_000 * 40
    assert paths[7777] == "/data/n00000777/7777.JPEG"


def test_a_digest_tells_listings_apart(classes):
    first = ImageFolder(classes, 8).digest
    moved = classes.with_name(classes.name + " moved")
    classes.rename(moved)
    assert ImageFolder(moved, 16).digest == first  # relative to the root, whatever the size
    (moved / "cat" / "1.png").rename(moved / "cat" / "2.png")
    second = ImageFolder(moved, 8).digest
    (moved / "cat").rename(moved / "dog")
    third = ImageFolder(moved, 8).digest
    (moved / "dog" / "2.png").unlink()
    assert len({first, second, third, ImageFolder(moved, 8).digest}) == 4
