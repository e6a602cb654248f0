"""The process group, the device of a process, and seeds that depend on what is drawn, not on what was drawn before."""

import ctypes
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from errors import DataError, UsageError

T = TypeVar("T")

# How long a process waits for another. In training: as long as a picture or a save may take. In other programs: as long
# as the largest part of the work that a process does alone.
TIMEOUT, LONG_TIMEOUT = timedelta(minutes=30), timedelta(hours=2)


@dataclass(frozen=True)
class Process:
    """One process of a program: `rank` among all of `world_size`, and the device it computes on."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


_hosts: Any = None  # the group over which hosts talk without waiting for GPUs; None: the only group


def setup(timeout: timedelta = LONG_TIMEOUT) -> Process:
    """Join the process group that torchrun describes (nccl on GPUs, gloo on CPUs); without torchrun be the only one."""
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return single()
    rank, local_rank, world_size = (int(os.environ[k]) for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UsageError(f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        keep_freed_memory()
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
    if on_gpu:
        global _hosts
        _hosts = dist.new_group(backend="gloo", timeout=timeout)
    return Process(rank, local_rank, world_size, device)


def fresh_part(store: dist.Store, rank: int, world_size: int, timeout: timedelta = TIMEOUT) -> dist.Store:
    """A part of a store that no earlier attempt has written to.

    torchrun keeps its store when it restarts processes, and with it the addresses of those that died, to which the new
    ones would try to connect. So the first process names a part, and tells each other process that asks, under the
    name that one has given itself in this attempt.

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


def single() -> Process:
    """The only process of a program, on the first GPU if there is one."""
    if torch.cuda.is_available():
        return Process(0, 0, 1, torch.device("cuda", 0))
    keep_freed_memory()
    return Process(0, 0, 1, torch.device("cpu"))


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


def is_main() -> bool:
    """Whether this is the first process, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier(group=_hosts)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def greatest(values: list[int]) -> list[int]:
    """The greatest of each number over all processes. Between hosts: a GPU's work is not waited for."""
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
    """What the first process makes and all get; what it raises, all raise."""
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
    """What every process makes for itself, the others after the first, so that they find what it has fetched."""
    made: list[T] = []
    from_main(lambda: made.append(make()))
    return made[0] if made else make()


def check_agreement(value: int, what: str) -> None:
    """Make sure that all processes have the same value.

    Raises:
        DataError: they do not, for instance because nodes do not share a file system.
    """
    highest, negative_lowest = greatest([value, -value])
    if highest != -negative_lowest:
        raise DataError(
            f"the processes disagree on {what}, from {-negative_lowest} to {highest}: do all nodes see one folder?"
        )


def seed_for(*parts: int | str) -> int:
    """A seed for each distinct tuple, e.g. (global seed, "step", 1200, rank); unrelated for neighbouring tuples."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
