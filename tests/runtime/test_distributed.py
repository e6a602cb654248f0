import os
import socket
import sys
from threading import Event, Thread

import pytest
import torch
from torch.distributed import HashStore

from runtime import distributed
from runtime.distributed import Process, fresh_part, seed_for, setup, sum_over_processes
from runtime.errors import DataError, UsageError, run_program
from tests.forked import free_port


def test_without_torchrun_there_is_one_process():
    process = setup()
    assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
    assert sum_over_processes(torch.ones(2)).tolist() == [1, 1]
    assert not Process(1, 1, 2, torch.device("cpu")).is_main


def test_seeds_are_distinct_and_stable():
    seeds = {seed_for(0, "step", step, rank) for step in range(200) for rank in range(8)}
    assert len(seeds) == 1600 and all(0 <= s < 2**63 for s in seeds)
    assert seed_for(0, "image", 3) == 2740973095138838757


def test_a_restart_does_not_read_what_the_attempt_before_has_written():
    """As torchrun restarts processes: with the store of the attempt before."""
    store, seen = HashStore(), []
    for attempt in range(3):
        parts = {}

        def join(rank, parts=parts):
            parts[rank] = fresh_part(store, rank, 3)

        threads = [Thread(target=join, args=(rank,), daemon=True) for rank in (2, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(part.check(["address"]) for part in parts.values())
        parts[1].set("address", str(attempt))
        seen.append([parts[rank].get("address") for rank in range(3)])
    assert seen == [[b"0"] * 3, [b"1"] * 3, [b"2"] * 3]


def alone(monkeypatch, **settings: object) -> None:
    """The environment of a process that is the only one of its group."""
    numbers = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    monkeypatch.setenv("LOCAL_RANK", "")  # as good as not set
    for name, value in (numbers | settings).items():
        monkeypatch.setenv(name, str(value))


def test_what_was_derived_is_what_others_read(monkeypatch):
    """The local rank, by which errors.report tells who speaks first."""
    alone(monkeypatch)
    process = setup()
    assert torch.distributed.is_initialized() and os.environ["LOCAL_RANK"] == "0"
    assert process == Process(0, 0, 1, torch.device("cpu"))
    distributed.abandon()
    assert not torch.distributed.is_initialized()


ENDS = [(None, None), (UsageError("a"), 2), (DataError("b"), 1), (OSError(28, "full"), 1), (KeyboardInterrupt(), 130)]
ENDS += [(SystemExit(143), 143), (RuntimeError("Connection closed by peer"), 1), (ZeroDivisionError(), "traceback")]


@pytest.mark.parametrize(("error", "code"), ENDS, ids=lambda v: type(v).__name__)
def test_the_group_is_left_on_every_way_out(error, code, monkeypatch, capsys):
    alone(monkeypatch)

    def program() -> None:
        setup()
        if error is not None:
            raise error

    if code is None:
        run_program(program)
    else:
        with pytest.raises(ZeroDivisionError if code == "traceback" else SystemExit) as exit_:
            run_program(program)
        assert code == "traceback" or exit_.value.code == code
    assert not torch.distributed.is_initialized()
    assert capsys.readouterr().err.count("\n") == (code in (1, 2, 130))


def test_nccl_is_aborted_and_nobody_waited_for(monkeypatch):
    """Its destroy_process_group waits for what is being communicated, maybe with a process that hangs."""
    calls = []

    class Group:
        def _get_backend(self, device):
            assert device.type == "cuda"
            return self

        def abort(self):
            calls.append("abort")
            hang.wait()

    hang = Event()
    monkeypatch.setattr(distributed, "ABORT_PATIENCE", 0.1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_group", Group)
    distributed.abandon()
    hang.set()
    assert calls == ["abort"]


def test_a_group_that_cannot_be_joined_says_why(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(distributed, "NAME_PATIENCE", 0.0)
    for settings, code, words in (
        ({"GLOO_SOCKET_IFNAME": "no-such0"}, 1, ("no-such0 (GLOO_SOCKET_IFNAME=no-such0, but the interfaces", "lo")),
        ({"MASTER_ADDR": "no host"}, 2, ("MASTER_ADDR=no host: ",)),
    ):
        with monkeypatch.context() as patch:
            alone(patch, **settings)
            with pytest.raises(SystemExit) as exit_:
                run_program(setup)
        line = capsys.readouterr().err
        assert exit_.value.code == code and line.count("\n") == 1 and all(word in line for word in words), line
        assert not torch.distributed.is_initialized()


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        alone(monkeypatch, MASTER_PORT=port)
        with pytest.raises(DataError, match=f"process 0 of 1 cannot join the others at 127.0.0.1:{port}: .*in use"):
            setup()
    assert not torch.distributed.is_initialized()


def test_the_log_says_what_computes(monkeypatch):
    process = setup()
    line = distributed.describe(process, "tf32")
    threads = torch.get_num_threads()
    assert line.startswith(f"1 process on CPU ({threads} thread") and ", tf32; Python 3." in line
    assert line.endswith(f"torch {torch.__version__}")
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine] * 8)
    assert distributed.describe(process, "bf16").startswith("8 processes on CPU (")


def test_the_log_says_which_gpu(monkeypatch):
    properties = type("Properties", (), {"name": "NVIDIA H200", "total_memory": 140 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    line = distributed.describe(Process(0, 0, 1, torch.device("cuda", 0)), "bf16")
    assert line.startswith("1 process on NVIDIA H200 (140 GiB), bf16; ") and line.endswith(", CUDA 13.2")
