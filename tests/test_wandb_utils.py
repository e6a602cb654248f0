import pytest

import wandb_utils
from errors import UsageError

from .conftest import DIGITS_ARGS, run_cli

VARIABLES = ("WANDB_KEY", "ENTITY", "PROJECT")


def test_variables_are_required_online_only(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for variable in VARIABLES:
        with pytest.raises(UsageError, match=f"environment variable {variable}"):
            wandb_utils.required(variable)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_utils.required("ENTITY") == ""
    monkeypatch.setenv("ENTITY", "me")
    assert wandb_utils.required("ENTITY") == "me"


def test_a_continued_experiment_continues_its_run():
    assert wandb_utils.generate_run_id("a") == wandb_utils.generate_run_id("a") != wandb_utils.generate_run_id("b")


def test_training_with_wandb_offline(tmp_path):
    """The real wandb, writing its run to disk; numbers and a picture are in it."""
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    steps = ["--max-steps", "2", "--log-every", "1", "--sample-every", "2"]
    run_cli("train.py", *DIGITS_ARGS, *steps, "--wandb", cwd=tmp_path, **env)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb")) and list(run.rglob("*.png"))
