"""The process group, the device of a process, and seeds that depend on what is drawn, not on what was drawn before."""

import ctypes
import hashlib
import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime import device as devices
from runtime.errors import DataError, UsageError, leaving, reason
from runtime.launch import find_place

T = TypeVar("T")

# The time that a process waits for another. In training: as long as a picture or a save may take. In other programs: as
# long as the largest share of the work that a process does alone.
TIMEOUT, LONG_TIMEOUT = timedelta(minutes=30), timedelta(hours=2)
NAME_PATIENCE = 60.0  # seconds; the first process's machine may get its name while the others wait
ABORT_PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Process:
    """One process of a program: its `rank` among `world_size`, and the device it computes on."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.rank == 0


_hosts: Any = None  # the group over which hosts talk without waiting for GPUs; None: the only group


def setup(timeout: timedelta = LONG_TIMEOUT, device_name: str | None = None) -> Process:
    """Join the process group that torchrun describes (nccl on GPUs, gloo on CPUs); without torchrun, be alone.

    On every way out of the program the group is left, at the latest by `abandon`.

    Args:
        timeout: the time that a process waits for another.
        device_name: see `runtime.device.choose`.

    Raises:
        UsageError: the environment says that there are other processes, but not enough to join them; or there is no
            such device.
        DataError: they cannot be joined.
    """
    place = find_place(os.environ)
    if place is None:
        return single(device_name)
    rank, world_size, local_rank = place
    os.environ["LOCAL_RANK"] = str(local_rank)  # `runtime.errors.report` reads it
    device = devices.choose(device_name, local_rank, alone=False)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    check_master(os.environ["MASTER_ADDR"])
    leaving.callback(abandon)
    try:
        join(rank, world_size, device, timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        what = f"process {rank} of {world_size} cannot join the others at {address}: {reason(error)}"
        raise DataError(what + missing_interfaces()) from error
    return Process(rank, local_rank, world_size, device)


def check_master(host: str) -> None:
    """See that MASTER_ADDR is the address of a machine, waiting for it up to `NAME_PATIENCE`.

    Raises:
        UsageError: it is not.
    """
    deadline = time.monotonic() + NAME_PATIENCE
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise UsageError(f"MASTER_ADDR={host}: {getattr(error, 'strerror', error)}") from None
        time.sleep(min(1.0, NAME_PATIENCE))


def join(rank: int, world_size: int, device: torch.device, timeout: timedelta) -> None:
    """Meet the other processes, and make the groups."""
    on_gpu = device.type == "cuda"
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=fresh_part(store, rank, world_size, timeout),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    global _hosts
    _hosts = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else None


def missing_interfaces() -> str:
    """The network interfaces that the environment names and the machine lacks, for the end of a message; or ""."""
    present = [name for _, name in socket.if_nameindex()]
    wrong = []
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = os.environ.get(variable, "")
        names = [] if value.startswith("^") else value.lstrip("=").split(",")  # NCCL: all but these, these exactly
        if any(name and not any(p.startswith(name.partition(":")[0]) for p in present) for name in names):
            wrong.append(f"{variable}={value}")
    return f" ({' and '.join(wrong)}, but the interfaces here are {', '.join(present)})" if wrong else ""


def fresh_part(store: dist.Store, rank: int, world_size: int, timeout: timedelta = TIMEOUT) -> dist.Store:
    """A new prefix in a store, to which no earlier attempt has written.

    torchrun keeps its store when it restarts processes, and with it the addresses of those that died, to which the new
    ones would try to connect. So the first process chooses a prefix. Every other process asks for it under a name that
    it has given itself in this attempt, and the first one answers.

    Raises:
        DataError: a process did not turn up in time.
    """
    me = uuid.uuid4().hex
    if rank > 0:
        store.set(f"ask/{rank}", me)
        name = store.get(f"answer/{me}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", me)
            if store.check([f"heard/{me}/{other}"]):
                missing.discard(other)
        if time.monotonic() > deadline:
            raise DataError(f"{len(missing)} of {world_size} processes did not turn up within {timeout}")
        time.sleep(0.01)
    return dist.PrefixStore(me, store)


def single(device_name: str | None = None) -> Process:
    """The only process of a program, on the device of a name, or on the best there is."""
    device = devices.choose(device_name)
    if device.type == "cpu":
        keep_freed_memory()
    return Process(0, 0, 1, device)


def describe(process: Process, precision: str) -> str:
    """Processes and their devices, precision and versions, in one line; all processes call it."""
    mine = devices.describe(process.device)
    cuda = f", CUDA {torch.version.cuda}" if process.device.type == "cuda" else ""
    all_of_them = " and ".join(
        f"{count} process{'es' * (count > 1)} on {device}" for device, count in Counter(gather(mine)).items()
    )
    return f"{all_of_them}, {precision}; Python {platform.python_version()}, torch {torch.__version__}{cuda}"


def keep_freed_memory() -> None:
    """Let the C library keep what tensors on the CPU free, for the next ones.

    By default glibc gives every block over 32 MiB back and has the next one mapped and cleared anew, which takes a
    fifth of a training step of S/2 at batch 64.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def abandon() -> None:
    """Leave the process group, if there still is one, on the way out of a program that has failed.

    Nobody is waited for: `cleanup` on GPUs first waits for what is being communicated, and another process may hang.
    """
    if dist.is_initialized():
        thread = threading.Thread(target=_abort, daemon=True)
        thread.start()
        thread.join(ABORT_PATIENCE)


def _abort() -> None:
    with suppress(Exception):  # the program is ending by an error of its own, which has been told
        if dist.get_backend() == "nccl":
            default: Any = dist.distributed_c10d._get_default_group()
            default._get_backend(torch.device("cuda")).abort()
        else:
            dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is the first process, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier(group=_hosts)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def greatest(values: list[int]) -> list[int]:
    """The greatest of each number over all processes. Hosts talk about it, so that no GPU's work is waited for."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_hosts)
    return tensor.tolist()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_hosts)
    return values


def gather_to_main(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, for the first process; [] for the others."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(value, values if is_main() else None, group=_hosts)
    return values if is_main() else []


def from_main(make: Callable[[], T]) -> T:
    """The value that the first process makes, for all processes.

    Raises:
        Exception: the error that the first process has raised, in all.
    """
    if not dist.is_initialized():
        return make()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, group=_hosts)
    value, raised = outcome
    if raised is not None:
        raise raised
    return value


def on_main_first(make: Callable[[], T]) -> T:
    """The value that each process makes for itself, the first process before the others, who find what it fetched."""
    made: list[T] = []
    from_main(lambda: made.append(make()))
    return made[0] if made else make()


def check_agreement(value: int, what: str) -> None:
    """See that all processes have the same value.

    Raises:
        DataError: they have not, for instance because nodes do not share a file system.
    """
    highest, negative_lowest = greatest([value, -value])
    if highest != -negative_lowest:
        raise DataError(
            f"the processes disagree on {what}, from {-negative_lowest} to {highest}: do all nodes see one folder?"
        )


def seed_for(*parts: int | str) -> int:
    """A seed for each distinct tuple, e.g. (global seed, "step", 1200, rank); unrelated for neighbouring tuples."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
