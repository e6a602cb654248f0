from pathlib import Path

import pytest

from runtime.files import link, replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as beside:
        beside.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("path", [".", "/"])
def test_what_has_no_name_is_a_folder(path):
    with pytest.raises(IsADirectoryError), replacing(Path(path)):
        pass


def test_a_second_name_survives_the_replacement_of_the_first(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    two.write_text("other")
    link(one, two)
    with replacing(one) as beside:
        beside.write_text("new")
    assert (one.read_text(), two.read_text()) == ("new", "old")
