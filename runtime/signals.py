"""Signals that ask a run to stop. The run sees them at the end of a step, when there is something whole to save."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from runtime.errors import in_main_thread

# Only those that the system has: Windows has neither SIGUSR1 nor SIGHUP, and has SIGBREAK.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
# One request may arrive twice, from the scheduler and from torchrun, which passes on what it receives itself.
SAME_REQUEST = 2.0  # seconds


class StopRequest:
    """A context that notes the first signal of `STOPPING`; another, at least `SAME_REQUEST` later, ends the process.

    SIGHUP comes when the terminal is closed, an ssh session's for instance. Where it is ignored it stays so.
    Signals arrive by a pipe at a thread of their own, so that the second one works even while the main thread waits for
    another process in C++. The exit code is then 128 + the signal's number, as shells have it.

    Python gives signals to the main thread alone. In another thread this context leaves them alone, and a request comes
    by `stop`.

    Attributes:
        signum: the signal's number, 0 as long as there was none.
    """

    def __enter__(self) -> "StopRequest":
        self.signum = 0
        _open.append(self)
        self._listens = in_main_thread()
        if self._listens:
            self._take_over()
        return self

    def _take_over(self) -> None:
        self._read_end, self._write_end = socket.socketpair()  # Windows waits for no pipe
        self._write_end.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._write_end.fileno())
        self._previous = {s: signal.signal(s, lambda *_: None) for s in STOPPING if not is_ignored(s)}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        arrived = 0.0
        while number := self._read_end.recv(1)[0]:
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
        _open.remove(self)
        if not self._listens:
            return
        for s, handler in self._previous.items():
            signal.signal(s, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_fd)
        self._write_end.send(b"\0")  # ends the listener; processes that were forked may still hold the sockets
        self._listener.join()
        self._write_end.close()
        self._read_end.close()


_open: list[StopRequest] = []


def stop(signum: int = signal.SIGTERM) -> None:
    """Ask the runs of this process to save and end after their step; may be called from any thread."""
    for request in list(_open):
        request.signum = request.signum or signum


def is_ignored(signum: int) -> bool:
    """Whether a signal is SIGHUP and the program was started to ignore it, as by nohup."""
    return signum == getattr(signal, "SIGHUP", None) and signal.getsignal(signum) == signal.SIG_IGN


def name(signum: int) -> str:
    """A signal's name, e.g. SIGTERM."""
    return signal.Signals(signum).name


@contextmanager
def blocked() -> Iterator[None]:
    """A context in which started processes never see the signals: data workers outlive a SIGTERM to the group."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
