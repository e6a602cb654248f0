"""Progress bars: on the first process only, and sparse where nobody watches."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **kwargs: Any) -> tqdm:
    """A tqdm bar that appears after a second; off a terminal, in a job's log file, after and every half minute."""
    delay, pause = (1, 0.1) if sys.stderr.isatty() else (30, 30)
    settings = {"delay": delay, "mininterval": pause, "disable": os.environ.get("RANK", "0") != "0"}
    return tqdm(iterable, **(settings | kwargs))
