"""Signals that ask a run to stop. The run sees them at the end of a step, when there is something whole to save."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# One request may arrive twice, from the scheduler and from torchrun, which passes on what it receives itself.
SAME_REQUEST = 2.0  # seconds


class StopRequest:
    """Within it the first of `STOPPING` is noted, and another, at least `SAME_REQUEST` later, ends the process at once.

    SIGHUP comes when the terminal is closed, an ssh session's for instance. Where it is ignored it stays so.
    Signals arrive by a pipe at a thread of its own, so that the second one works even while the main thread waits for
    another process in C++. The exit code is then 128 + the signal's number, as shells have it.

    Attributes:
        signum: the signal's number, 0 as long as there was none.
    """

    def __enter__(self) -> "StopRequest":
        self.signum = 0
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_end)
        self._previous = {s: signal.signal(s, lambda *_: None) for s in STOPPING if not is_ignored(s)}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def _listen(self) -> None:
        arrived = 0.0
        while number := os.read(self._read_end, 1)[0]:
            now = time.monotonic()
            if number not in STOPPING:
                continue
            if not self.signum:
                self.signum, arrived = number, now
                with suppress(OSError):  # the log's disk may be full
                    text = f"saving after this step; a second one, {SAME_REQUEST:g} s from now or later, ends at once"
                    logging.getLogger("train").info(f"{name(number)}: {text}")
            elif now - arrived >= SAME_REQUEST:
                os._exit(128 + number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd)
        os.write(self._write_end, b"\0")  # ends the listener; processes that were forked may still hold the pipe
        self._listener.join()
        os.close(self._write_end)
        os.close(self._read_end)


def is_ignored(signum: int) -> bool:
    """Whether this program was started to go on after its terminal is closed, as by nohup."""
    return signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN


def name(signum: int) -> str:
    """A signal's name, e.g. SIGTERM."""
    return signal.Signals(signum).name


@contextmanager
def blocked() -> Iterator[None]:
    """Processes that are started within never see the signals: data workers outlive a SIGTERM to the process group."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
