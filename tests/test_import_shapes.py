import os
import sys

import numpy as np
import pytest

import import_shapes
from runtime.errors import DataError, run_program
from shapes.sets import ShapeData, load_shapes
from tests.shapes.test_importing import BROKEN, TABLE, TRIANGLES, changed, cuboid, obj_text, ply_file, same, write


@pytest.fixture
def furniture(tmp_path):
    """Thirty shapes of three classes in three formats, with what lies beside them."""
    for k in range(10):
        write(tmp_path / "in" / "table" / f"{k}.obj", obj_text(TABLE))
        write(tmp_path / "in" / "box" / f"{k}.glb", changed())
        write(tmp_path / "in" / "rod" / f"{k}.ply", ply_file([cuboid([k, 0, 0], [0.1, 1, 0.1])], TRIANGLES))
    write(tmp_path / "in" / "table" / "wood.mtl", "newmtl wood")
    return tmp_path / "in"


def run(*arguments) -> None:
    import_shapes.main([str(argument) for argument in arguments])


def left(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_folder_becomes_a_set(furniture, tmp_path, capsys):
    out = tmp_path / "set.npz"
    run(furniture, "--out", out, "--split", "0.8,0.1,0.1", "--keep-scale")
    assert capsys.readouterr().out == (
        f"30 shapes of 3 classes in {out}: 70 parts (median 1, most 5), 24 train, 3 val, 3 test; "
        "left out: files that are no meshes: 1 .mtl\n"
    )
    shapes = load_shapes(out)
    assert shapes.class_names == ["box", "rod", "table"] and np.bincount(shapes.labels).tolist() == [10, 10, 10]
    assert shapes.ids.tolist()[:2] == ["box/0.glb", "box/1.glb"] and shapes.ids[-1] == "table/9.obj"
    for k in range(10):
        assert same(shapes[k], TABLE[:1]) and same(shapes[20 + k], TABLE)
        assert same(shapes[10 + k], [cuboid([k, 0, 0], [0.1, 1, 0.1])])
    data = ShapeData(shapes.of_split("train"))
    assert len(data) == 24 and data[0, False][0].shape == (5, 13)
    again = out.read_bytes()
    run(furniture, "--out", out, "--split", "0.8,0.1,0.1", "--keep-scale")
    assert out.read_bytes() == again and left(tmp_path) == ["in", "set.npz"]


def test_shapes_are_of_one_size_without_a_split(furniture, tmp_path):
    run(furniture, "--out", tmp_path / "set.npz", "--up", "z")
    shapes = load_shapes(tmp_path / "set.npz")
    assert shapes.split is None
    assert np.allclose(shapes[0]["box.size"], np.array([[2, 1, 0.1]]) / 2)  # y and z of the file have changed places
    assert np.allclose(shapes[0]["box.center"], [[0, 0.25, 0]], atol=1e-7)


def test_what_cannot_be_read_is_named_and_left_out(furniture, tmp_path, capsys):
    for name, (content, _) in BROKEN.items():
        write(furniture / "box" / name, content)
    write(furniture / "broken" / "a\nb.obj", "")
    out = tmp_path / "set.npz"
    run(furniture, "--out", out, "--max-bad", "0.9", "--max-parts", "4")
    printed = capsys.readouterr()
    warnings = printed.err.splitlines()
    bad = len(BROKEN) + 1
    assert sum(line.startswith("Warning: left out: mesh ") for line in warnings) == bad
    gone = "Warning: no shape is left of 2 classes, which are left out: broken, table"
    assert warnings[-1] == gone and len(warnings) == bad + 1
    assert printed.out == (
        f"20 shapes of 2 classes in {out}: 20 parts (median 1, most 1); "
        f"left out: {bad} unreadable, 10 with more than 4 parts, files that are no meshes: 1 .mtl\n"
    )
    assert load_shapes(out).class_names == ["box", "rod"] and left(tmp_path) == ["in", "set.npz"]


def test_too_many_that_cannot_be_read_stop_it(furniture, tmp_path, capsys):
    write(furniture / "box" / "a.obj", "")
    run(furniture, "--out", tmp_path / "set.npz")  # one may always be
    before = (tmp_path / "set.npz").read_bytes()
    with pytest.raises(
        DataError, match=r"1 of 31 meshes cannot be read, more than --max-bad 0 allows; the last: mesh "
    ):
        run(furniture, "--out", tmp_path / "set.npz", "--max-bad", "0")
    for name in "bc":
        write(furniture / "box" / f"{name}.obj", "")
    with pytest.raises(DataError, match=r"2 of 33 meshes cannot be read, more than --max-bad 0\.05 allows"):
        run(furniture, "--out", tmp_path / "set.npz")
    assert (tmp_path / "set.npz").read_bytes() == before and left(tmp_path) == ["in", "set.npz"]


def test_a_folder_without_shapes_is_an_error(tmp_path):
    write(tmp_path / "pictures" / "a.png", "")
    write(tmp_path / "broken" / "a.obj", "")
    write(tmp_path / "large" / "a.obj", obj_text(TABLE))
    for name, reason in {
        "absent": "folder .*absent does not exist",
        "pictures": r"holds no meshes \(\.glb, \.gltf, \.obj, \.ply\); it holds 1 \.png",
        "pictures/a.png": "is a file, empty; a folder of meshes is needed",
        "broken": "no mesh in .*broken makes a shape: 1 unreadable",
        "large": "no mesh in .*large makes a shape: 1 with more than 2 parts",
    }.items():
        with pytest.raises(DataError, match=reason):
            run(tmp_path / name, "--out", tmp_path / "set.npz", "--max-parts", "2")
    assert left(tmp_path) == ["broken", "large", "pictures"]


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_read(furniture, tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for out, reason in {"absent/set.npz": "absent does not exist", "folder.npz": "folder.npz is a folder"}.items():
        with pytest.raises(DataError, match=reason):
            run(furniture, "--out", tmp_path / out)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("--out set.npy", "'set.npy' does not end in .npz"),
        ("--out set.npz --split 0.9,0.2,0.1", "'0.9,0.2,0.1' is not three shares whose sum is 1"),
        ("--out set.npz --split 0.9,0.1", "is not three shares"),
        ("--out set.npz --split nan,0.5,0.5", "is not three shares"),
        ("--out set.npz --split a,b,c", "--split"),
        ("--out set.npz --max-parts 0", "not a positive whole number"),
        ("--out set.npz --max-bad 2", "not in"),
        ("--out set.npz --up x", "--up"),
        ("", "--out"),
    ],
)
def test_arguments_that_cannot_be_carried_out(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        run("folder", *arguments.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and reason in said and said.count("\n") == 1


def test_the_program_ends_with_one_line_and_a_code(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["import_shapes.py"])
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"st\xfchle")
    write(tmp_path / name / name / "a.obj", obj_text(TABLE))
    write(tmp_path / name / name / "b.obj", "v 1 2\n")
    sys.stderr.reconfigure(errors="backslashreplace")  # as a process's is
    run_program(lambda: run(name, "--out", "set.npz"))
    said = capfd.readouterr()
    assert said.out.startswith("1 shapes of 1 class in set.npz: 5 parts") and said.err.count("\n") == 1
    assert load_shapes(tmp_path / "set.npz").class_names == [r"st\xfchle"]
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: run("absent", "--out", "other.npz"))
    assert ended.value.code == 1
    assert capfd.readouterr().err == "import_shapes.py: error: folder absent does not exist\n"
