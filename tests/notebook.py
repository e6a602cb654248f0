"""The notebook, run from start to end. `make notebook` does so in place, so that it shows what its cells make."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "run_ComboStoc.ipynb"
STEPS = "STEPS = 600"  # its parameter, as it is written there
WIDGET = "application/vnd.jupyter.widget-view+json"


class WithoutFrontEnd(NotebookClient):
    """A client in which widgets have no front end: what they show is the cell's output, as other output is. nbclient
    plays a front end for them, and now and then waits for ever (nbclient#312)."""

    def handle_comm_msg(self, *args: object) -> None: ...


def executed(folder: Path, steps: int | None = None) -> NotebookNode:
    """The notebook after all of its cells, in a new kernel, with what it writes in a folder.

    Args:
        steps: of training, in place of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell does not run.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if steps is not None:
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        assert cell.source.startswith(STEPS)
        cell.source = f"STEPS = {steps}"
    client = WithoutFrontEnd(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout=1200,
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what is another in every run: the log's times and rates, widgets, the Python's version."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="notebook-") as name:
        nbformat.write(tidy(executed(Path(name))), NOTEBOOK)
