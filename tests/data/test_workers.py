import errno
import os
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from data import workers
from runtime.errors import DataError


class Killed:
    """A loader whose worker is killed in the moment in which it is listened to."""

    def __init__(self, error: Exception, code: int | None) -> None:
        self.error, self.code = error, code
        read_end, write_end = os.pipe()
        os.close(write_end)
        self.pid, self.exitcode, self.sentinel = 7, None, read_end
        self._workers = [self]

    def __next__(self):
        self.exitcode = self.code  # seen when it is asked for again
        raise self.error


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "no such file")]
)
def test_a_dead_worker_is_named_by_whatever_it_is_missed(error):
    """Which it is depends on the moment and on the Python."""
    with pytest.raises(
        DataError, match=r"^DataLoader worker \(pid 7\) was killed by SIGKILL \(was there too little mem"
    ):
        next(workers.loaded_by(Killed(error, -signal.SIGKILL)))


@pytest.mark.parametrize(
    ("code", "line"), [(-signal.SIGBUS, "was killed by SIGBUS .enlarge /dev/shm"), (3, "ended with exit code 3")]
)
def test_how_it_died_is_told(code, line):
    with pytest.raises(DataError, match=line):
        next(workers.loaded_by(Killed(EOFError(), code)))


def test_errors_of_the_data_are_left_as_they_are():
    error = OSError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback ...")
    with pytest.raises(OSError, match="in DataLoader worker process 0"):
        next(workers.loaded_by(Killed(error, -signal.SIGKILL)))
    alive = Killed(ConnectionResetError("a server of pictures"), None)
    with pytest.raises(ConnectionResetError, match="a server of pictures"):
        next(workers.loaded_by(alive))


class Hook(Dataset):
    """What a worker's hook for errors is called."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return sys.excepthook.__name__


def test_a_worker_whose_process_was_killed_has_nothing_to_say(capsys):
    """By a connection that breaks while a tensor is handed on; all else that goes wrong there is told."""
    assert list(workers.loaded_by(workers.start(DataLoader(Hook(), num_workers=1)))) == [["tell"]]
    assert sys.excepthook is not workers.tell  # in this process
    for error, told in ((EOFError(), False), (ConnectionResetError(104, "reset"), False), (ValueError("no"), True)):
        workers.tell(type(error), error, None)
        assert ("ValueError: no" in capsys.readouterr().err) == told


def test_all_is_loaded_when_nothing_happens():
    data = TensorDataset(torch.arange(6))
    for count in (0, 2):
        started = workers.start(DataLoader(data, batch_size=2, num_workers=count))
        assert [batch.tolist() for (batch,) in workers.loaded_by(started)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "enlarge /dev/shm"), (errno.EMFILE, "ulimit -n"), (errno.EAGAIN, "lower --num")],
)
def test_workers_that_cannot_start(number, advice, monkeypatch):
    def full(*args):
        raise OSError(number, os.strerror(number))

    loader = DataLoader(TensorDataset(torch.arange(6)), num_workers=2)
    monkeypatch.setattr(DataLoader, "__iter__", full)
    monkeypatch.setattr(workers.dataloader._MultiProcessingDataLoaderIter, "_shutdown", True, raising=False)
    with pytest.raises(DataError, match=f"^2 data workers cannot be started: {os.strerror(number)} .*{advice}"):
        workers.start(loader)
