"""Progress bars: on the first process only, and sparse where nobody watches."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """A tqdm bar that appears after a second; off a terminal, in a job's log file, every half minute."""
    delay, pause = (1, 0.1) if on_terminal() else (30, 30)
    disable = sys.stderr is None or os.environ.get("RANK", "0") != "0"
    settings = {"delay": delay, "mininterval": pause, **kwargs}
    return tqdm(iterable, **settings | {"disable": disable or settings.get("disable", False)})


def on_terminal() -> bool:
    """Whether somebody watches stderr, which may be a file, closed, or absent, as in a process without a console."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError, OSError):
        return False
