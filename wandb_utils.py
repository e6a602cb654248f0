"""Weights & Biases: WANDB_KEY, ENTITY and PROJECT come from the environment and are read only with --wandb.

With WANDB_MODE=offline nothing is sent and none of the three is needed.
"""

import argparse
import hashlib
import os
from typing import Any

import numpy as np

from errors import UsageError


def is_offline() -> bool:
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")


def required(variable: str) -> str:
    """An environment variable that --wandb needs.

    Raises:
        UsageError: it is not set and wandb is to go online.
    """
    value = os.environ.get(variable, "")
    if not value and not is_offline():
        raise UsageError(f"--wandb needs the environment variable {variable} (or WANDB_MODE=offline)")
    return value


def generate_run_id(exp_name: str) -> str:
    """A stable id, so that a continued experiment continues its run."""
    return hashlib.md5(exp_name.encode()).hexdigest()[:16]


def initialize(args: argparse.Namespace, entity: str, exp_name: str, project_name: str) -> None:
    """Log in and start, or continue, the run of an experiment."""
    import wandb

    key = required("WANDB_KEY")
    if key:
        wandb.login(key=key)
    wandb.init(
        entity=entity or None,
        project=project_name or "combostoc",
        name=exp_name,
        config=vars(args),
        id=generate_run_id(exp_name),
        resume="allow",
    )


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
