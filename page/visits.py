"""Files of a page live as long as its visits: uploads, samples and drawings of visitors who have left are deleted."""

import math
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from page.hosts import App, Scope, Send

# Requests that stay open: as long as a tab is, and as long as something is generated for it.
LASTING = ("/heartbeat/", "/queue/data")
GRACE = 60.0  # seconds that a file outlives its visit: for uploads on their way, and tabs that are reloaded
MAX_AGE = 86400.0  # seconds that a file lives at most, where a tab is left open


def last_touched(path: Path) -> float:
    """The time at which a file was written or handed out, in seconds; inf if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


class Visits:
    """An ASGI application whose open requests tell which files are still of use, and a sweeper of the others.

    A file that is older than every open visit is nobody's: all files that a visit shows were made, or touched, during
    it.

    Args:
        app: the application that answers.
        folder: folder of the files. Those that are in it already stay.
    """

    def __init__(self, app: App, folder: Path) -> None:
        self.app, self.folder = app, folder
        self.open: dict[int, float] = {}  # since when
        self.lasting = frozenset(folder.rglob("*"))
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Scope]], send: Send) -> None:
        if scope["type"] != "http" or not any(part in scope["path"] for part in LASTING):
            await self.app(scope, receive, send)
            return
        self.open[id(scope)] = time.time()
        try:
            await self.app(scope, receive, send)
        finally:
            del self.open[id(scope)]

    def sweep(self, now: float) -> None:
        """Delete files that are of no use at a time, in seconds, and folders that are empty."""
        before = max(min([now, *self.open.copy().values()]) - GRACE, now - MAX_AGE)
        old = [path for path in self.folder.rglob("*") if path not in self.lasting and last_touched(path) < before]
        for path in sorted(old, reverse=True):  # what is in a folder before the folder
            with suppress(OSError):  # the folder is not empty, or another was faster
                path.rmdir() if path.is_dir() else path.unlink()

    def run(self, every: float = 5.0) -> None:
        """Sweep until `close`."""
        while not self.ended.wait(every):
            self.sweep(time.time())

    def __enter__(self) -> "Visits":
        self.sweeper = threading.Thread(target=self.run, name="sweeper", daemon=True)
        self.sweeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.sweeper.join()
