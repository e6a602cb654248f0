"""Weights & Biases. Its settings come from the environment and are read only with --wandb.

The key is WANDB_KEY, or else the one that wandb itself finds: WANDB_API_KEY, or that of `wandb login`. The run goes to
ENTITY and PROJECT. With WANDB_MODE=offline nothing is sent and none of them is needed.
"""

import argparse
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import DataError, UsageError, first_line
from runtime.files import replacing

RUN_FILE = "wandb-run.json"


def is_offline() -> bool:
    """Whether the environment tells wandb to stay offline."""
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")


def required(variable: str) -> str:
    """The value of an environment variable that --wandb needs.

    Raises:
        UsageError: it is not set and wandb is to go online.
    """
    value = os.environ.get(variable, "")
    if not value and not is_offline():
        raise UsageError(f"--wandb needs the environment variable {variable} (or WANDB_MODE=offline)")
    return value


def check_login() -> None:
    """See that the server takes the key, before anything is written; offline there is nothing to check.

    Raises:
        UsageError: something is not set.
        DataError: the key is not valid, or the server does not answer.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("--wandb needs wandb: pip install wandb") from None
    required("ENTITY")
    required("PROJECT")
    if is_offline():
        return
    if key := os.environ.get("WANDB_KEY"):
        os.environ["WANDB_API_KEY"] = key  # not wandb.login(key=...), which would keep it in the user's .netrc
    try:
        if not wandb.login(verify=True, prompt=False):
            raise UsageError(
                "--wandb needs a key: set WANDB_KEY or WANDB_API_KEY, or run `wandb login` (or WANDB_MODE=offline)"
            )
    except wandb.Error as error:
        what = first_line(error).replace("WANDB_API_KEY", "WANDB_KEY" if key else "WANDB_API_KEY")
        raise DataError(f"--wandb: the key is not valid, or the server does not answer: {what}") from None


def run_id(folder: Path, is_new: bool) -> str:
    """The id of the run that belongs to an experiment's folder, kept in it.

    A run that begins anew gets a new one, and so does a copy of a folder, so that no two folders ever log to one run. A
    folder that was renamed is known by its inode, one that was put back from a backup by its path; a copy has neither.
    """
    path, inode, name = folder / RUN_FILE, folder.stat().st_ino, str(folder.resolve())
    try:
        kept = json.loads(path.read_text())
        if not is_new and (kept["inode"] == inode or kept["folder"] == name):
            return str(kept["id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged
    made = uuid.uuid4().hex[:16]
    with replacing(path) as beside:
        beside.write_text(json.dumps({"id": made, "inode": inode, "folder": name}) + "\n")
    return made


def initialize(args: argparse.Namespace, entity: str, exp_name: str, project_name: str, run: str | None = None) -> None:
    """Start the run of an experiment, or continue the one of this id.

    Raises:
        DataError: Weights & Biases does not have it, for instance because there is no such entity.
    """
    import wandb

    try:
        wandb.init(
            entity=entity or None,
            project=project_name or "combostoc",
            name=text(exp_name),
            config={name: text(str(v)) if isinstance(v, str | Path) else v for name, v in vars(args).items()},
            id=run,
            resume="allow" if run else None,
        )
    except wandb.Error as error:
        raise DataError(f"--wandb, ENTITY {entity}, PROJECT {project_name}: {first_line(error)}") from None


def text(name: str) -> str:
    """A path's name as UTF-8, with bytes that are not spelled out."""
    return name.encode(errors="backslashreplace").decode()


def log(stats: dict[str, Any], step: int | None = None) -> None:
    """Log numbers."""
    import wandb

    wandb.log(dict(stats), step=step)


def log_image(sample: np.ndarray, step: int | None = None) -> None:
    """Log a picture, (H, W, 3) uint8."""
    import wandb

    wandb.log({"samples": wandb.Image(sample)}, step=step)


def finish() -> None:
    """Flush and end the run."""
    import wandb

    wandb.finish()
