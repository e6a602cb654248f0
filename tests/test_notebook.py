"""The notebook runs from start to end, and what is committed of it is small and of no machine."""

import re

import nbformat

from tests.notebook import NOTEBOOK, executed, tidy


def pictures(notebook: nbformat.NotebookNode) -> list[str]:
    """The first line of each cell that shows pictures, once a picture."""
    outputs = [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [cell.source.partition("\n")[0] for cell, output in outputs if "image/png" in output.get("data", {})]


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def test_it_runs_from_start_to_end(tmp_path):
    """With fewer steps it shows as many pictures as are committed, those of a slider without a front end, too."""
    committed, made = nbformat.read(NOTEBOOK, as_version=4), executed(tmp_path, steps=12)
    assert (tmp_path / "results" / "ComboStoc-XS-2-notebook" / "ckpt.pt").is_file()
    assert pictures(made) == pictures(committed) and len(pictures(made)) >= 8
    assert any("interact" in line for line in pictures(made))
    assert printed(made) == printed(committed) and printed(made).endswith("the reference's: True\n")


def test_what_is_committed_is_small_whole_and_of_no_machine():
    text, notebook = NOTEBOOK.read_text(), nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < 1_500_000
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [
        *range(1, 1 + sum(cell.cell_type == "code" for cell in notebook.cells))
    ]
    assert tidy(nbformat.from_dict(notebook)) == notebook
    words = [cell.source for cell in notebook.cells]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        kinds = output.get("data", {})
        words += [output.get("text", ""), *(str(kinds[kind]) for kind in kinds if not kind.startswith("image/"))]
    assert not re.findall(r"(?<![\w.:/<])/[\w.-]+/[\w./-]*", "\n".join(words))  # paths from a root


def test_its_cells_are_short():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 20
