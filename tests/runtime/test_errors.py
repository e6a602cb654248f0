"""What libraries say when the machine fails them becomes one line that names the cause."""

import sys

import pytest
import torch

from runtime.errors import run_program

IN_A_WORKER = """Caught {kind} in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 375, in _worker_loop
    data = fetcher.fetch(index)
{name}: {said}
"""
FULL = "unable to allocate shared memory(shm) for file </torch_5626_0>: No space left on device (28)"
MAP = "unable to mmap 4096 bytes from file </torch_7_1_0>: Cannot allocate memory (12)"
TRITON = "out of resource: shared memory, Required: 131072, Hardware limit: 101376"  # of a GPU's, in --compile
OPEN = "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)"
CUDA = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 139.81 GiB of which 13.06 MiB is "
    "free. Including non-PyTorch memory, this process has 139.79 GiB memory in use. Of the allocated memory 1 GiB is "
    "allocated by PyTorch. See documentation for Memory Management"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes."
)
KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ..."
NCCL = (
    "NCCL error in: NCCLUtils.cpp:77, unhandled system error, NCCL version 2.27.3\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
    "Last error:\nCall to connect to 10.0.0.7<29511> failed : Connection refused"
)
GLOO = "[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24511. This is typically caused"


def in_a_worker(kind: type[Exception], said: str, name: str = "") -> Exception:
    """As torch raises in the main process what was raised in a data worker."""
    return kind(IN_A_WORKER.format(kind=kind.__name__, name=name or kind.__name__, said=said))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            in_a_worker(RuntimeError, FULL),
            f"the data workers' shared memory is full: {FULL} "
            "(enlarge /dev/shm (docker run --shm-size=8g), or lower --num-workers)",
        ),
        (
            in_a_worker(RuntimeError, MAP),
            f"the data workers' shared memory is full: {MAP} "
            "(enlarge /dev/shm (docker run --shm-size=8g), or lower --num-workers)",
        ),
        (in_a_worker(RuntimeError, OPEN), "too many open files, raise `ulimit -n`, or lower --num-workers"),
        (
            RuntimeError("Too many open files. Communication with the workers is no longer possible. Please ..."),
            "too many open files, raise `ulimit -n`, or lower --num-workers",
        ),
        (
            RuntimeError("received 0 items of ancdata"),
            "too many open files, raise `ulimit -n`, or lower --num-workers",
        ),
        (in_a_worker(OSError, "[Errno 5] Input/output error"), "[Errno 5] Input/output error"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "DataLoader worker (pid 7) is killed by signal: Killed. (was there too little memory?)",
        ),
        (
            torch.OutOfMemoryError(CUDA),
            "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 139.81 GiB of which 13.06 "
            "MiB is free. (less is needed by a larger --grad-accum, --grad-checkpointing 1, --precision bf16 or a "
            "smaller --global-batch-size)",
        ),
        (
            RuntimeError(CPU),
            "err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes. (less is "
            "needed by a larger --grad-accum, --grad-checkpointing 1, --precision bf16 or a smaller "
            "--global-batch-size)",
        ),
        (
            in_a_worker(MemoryError, "Unable to allocate 9 GiB", "numpy._core._exceptions._ArrayMemoryError"),
            "Unable to allocate 9 GiB (less is needed by a larger --grad-accum, --grad-checkpointing 1, --precision "
            "bf16 or a smaller --global-batch-size)",
        ),
        (RuntimeError(KERNEL), "CUDA error: no kernel image is available for execution on the device"),
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update"),
            "The NVIDIA driver on your system is too old (found version 11040).",
        ),
        (
            RuntimeError(NCCL),
            "another process has failed, or does not answer: Call to connect to 10.0.0.7<29511> failed : Connection "
            "refused",
        ),
        (
            RuntimeError(GLOO),
            "another process has failed, or does not answer: Connection closed by peer [127.0.0.1]:24511",
        ),
    ],
    ids=lambda v: str(v)[-30:].strip(),
)
def test_one_line_with_the_cause(error, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def program() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_program(program)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"train.py: error: {line}\n"


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "shape mismatch", TRITON])
def test_a_fault_of_the_program_keeps_its_traceback(text):
    def program() -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        run_program(program)


@pytest.mark.parametrize(
    ("program", "flag"), [("sample_ddp.py", "--per-proc-batch-size"), ("sample.py", "--batch-size")]
)
def test_what_lowers_memory_is_an_argument_of_the_program(program, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}"])

    def main() -> None:
        raise torch.OutOfMemoryError(CUDA)

    with pytest.raises(SystemExit):
        run_program(main)
    assert f"(less is needed by a smaller {flag})" in capsys.readouterr().err
