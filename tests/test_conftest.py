"""Whether a machine's GPUs are hidden from the suite and found by the GPU tests, which a machine without one shows."""

import os
import runpy

import pytest

from tests.conftest import GPUS, HIDDEN_GPUS, ROOT, pytest_configure, with_gpus


@pytest.mark.parametrize("visible", ["2,3", "", None])
def test_gpus_are_hidden_and_found_again_also_by_a_worker(visible, monkeypatch):
    monkeypatch.delenv(HIDDEN_GPUS)
    monkeypatch.delenv(GPUS)
    if visible is not None:
        monkeypatch.setenv(GPUS, visible)
    for _ in ("pytest", "a worker of pytest-xdist, which inherits the environment"):
        pytest_configure()
        assert os.environ[GPUS] == ""
        assert with_gpus().get(GPUS) == visible


def test_the_tests_modules_hide_nothing_where_they_are_imported(monkeypatch):
    """As the GPU tests' processes import them, after CUDA has started."""
    monkeypatch.setenv(GPUS, "5")
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    assert os.environ[GPUS] == "5"
