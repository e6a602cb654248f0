"""Data workers: their start, and errors that say why they cannot start or why one has died."""

import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, dataloader

from runtime.errors import MORE_OPEN_FILES, MORE_SHARED_MEMORY, DataError


def start(loader: DataLoader[Any]) -> Any:
    """A loader's iterator, whose workers have begun to load.

    Raises:
        DataError: they cannot be started.
    """
    loader.worker_init_fn = begin_worker
    try:
        return iter(loader)
    except OSError as error:
        dataloader._MultiProcessingDataLoaderIter._shutdown = True  # else the half-made one complains
        advice = {errno.ENOSPC: MORE_SHARED_MEMORY, errno.EMFILE: MORE_OPEN_FILES}.get(error.errno or 0)
        text = f"{loader.num_workers} data workers cannot be started: {error.strerror or error}"
        raise DataError(f"{text} ({advice or 'lower --num-workers'})") from error


def begin_worker(worker: int) -> None:
    """Keep a worker silent where the process that it loads for has been killed; it calls this first."""
    sys.excepthook = tell


def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Report an error of the thread that hands on tensors, unless the process at the other end is gone."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, traceback)


def loaded_by(iterator: Any) -> Iterator[Any]:
    """The batches that the workers load.

    Raises:
        DataError: one has died.
    """
    workers: Sequence[BaseProcess] = getattr(iterator, "_workers", ())
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (OSError, EOFError, RuntimeError) as error:
            is_of_the_data = not workers or " in DataLoader worker process " in str(error)
            if is_of_the_data or not (death := cause_of_death(workers)):
                raise
            raise DataError(death) from error
        yield batch


def cause_of_death(workers: Sequence[BaseProcess], timeout: float = 5.0) -> str:
    """A sentence on how the first of the workers that have ended did; "" if none ends within the timeout, in seconds.

    A batch that a worker owes may be missed before the system says that the worker has ended.
    """
    wait([worker.sentinel for worker in workers], timeout)
    for worker in workers:
        code = worker.exitcode
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            advice = MORE_SHARED_MEMORY if code == -getattr(signal, "SIGBUS", 0) else "was there too little memory?"
            return f"DataLoader worker (pid {worker.pid}) {how} ({advice})"
    return ""
