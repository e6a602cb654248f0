"""The rank of this process among a program's, by the environment variables of the launcher that started it."""

from collections.abc import Mapping
from typing import NamedTuple

from runtime.errors import UsageError


class Place(NamedTuple):
    """The rank of a process among `world_size`, and its rank on its machine."""

    rank: int
    world_size: int
    local_rank: int


class Launcher(NamedTuple):
    """A launcher that numbers its processes in variables of its own."""

    name: str
    rank: str
    world_sizes: tuple[str, ...]  # the first that is set counts
    local_rank: str


# SLURM comes last: where it has started mpirun, its numbers are those of mpirun's own helpers.
LAUNCHERS = (
    Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_LOCAL_RANK"),
    Launcher("MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_LOCAL_RANK"),
    Launcher("MPI", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID"),  # MPICH and Intel MPI
    Launcher("SLURM", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_LOCALID"),
)


def find_place(env: Mapping[str, str]) -> Place | None:
    """This process's place by torchrun's variables; another launcher may tell `LOCAL_RANK`.

    Returns:
        None for the only process of a program, which has no others to talk to.

    Raises:
        UsageError: there are other processes, and it cannot be told which one this is or how to find them.
    """
    ours = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if env.get(name)]
    if [f"{name}={env[name]}" for name in ours] in (["WORLD_SIZE=1"], ["LOCAL_RANK=0"]):
        ours = []  # left set by a scheduler or an editor; says nothing
    if not ours:
        refuse_many(env)
        return None
    for name in ("RANK", "WORLD_SIZE"):
        if name not in ours:
            found = " and ".join(f"{known}={env[known]}" for known in ours)
            raise UsageError(f"{found} without {name}: start by torchrun, or set RANK, WORLD_SIZE and LOCAL_RANK")
    rank, world_size = number(env, "RANK", 0), number(env, "WORLD_SIZE", 1)
    if rank >= world_size:
        raise UsageError(f"RANK={rank} must be less than WORLD_SIZE={world_size}")
    local_rank = number(env, "LOCAL_RANK", 0) if "LOCAL_RANK" in ours else find_local_rank(env, rank, world_size)
    if world_size == 1 and local_rank == 0 and not (env.get("MASTER_ADDR") or env.get("MASTER_PORT")):
        return None
    for name, what in (("MASTER_ADDR", "the node of process 0"), ("MASTER_PORT", "a free port of its node")):
        if not env.get(name):
            raise UsageError(
                f"RANK={rank} and WORLD_SIZE={world_size} without {name}: set it to {what} in each process"
            )
    number(env, "MASTER_PORT", 1, 65535)
    return Place(rank, world_size, local_rank)


def find_local_rank(env: Mapping[str, str], rank: int, world_size: int) -> int:
    """The rank on this machine, by a launcher whose other numbers agree with torchrun's.

    A script that SLURM has started may start processes itself; all of them inherit the script's numbers.

    Raises:
        UsageError: no launcher tells it.
    """
    for launcher in LAUNCHERS:
        same = env.get(launcher.rank, str(rank)) == str(rank)
        same &= size_of(env, launcher)[1] in ("", str(world_size))
        if same and env.get(launcher.local_rank):
            return number(env, launcher.local_rank, 0)
    if world_size == 1:
        return 0
    raise UsageError(
        f"RANK={rank} and WORLD_SIZE={world_size} without LOCAL_RANK: set it to this process's number on its node, "
        "from 0, or start by torchrun"
    )


def refuse_many(env: Mapping[str, str]) -> None:
    """See that this process is the only one that a launcher has started.

    Raises:
        UsageError: there are several, of which each would take itself for the only one.
    """
    for launcher in LAUNCHERS:
        name, size = size_of(env, launcher)
        if env.get(launcher.rank) and size.isdecimal() and int(size) > 1:
            raise UsageError(
                f"{launcher.name} has {size} processes here ({name}), and this one would work alone: start one "
                "torchrun a node, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each process; for a single "
                "process set RANK=0 WORLD_SIZE=1"
            )


def size_of(env: Mapping[str, str], launcher: Launcher) -> tuple[str, str]:
    """The variable that holds a launcher's number of processes, and that number; empty where there is none."""
    return next(((name, env[name]) for name in launcher.world_sizes if env.get(name)), ("", ""))


def number(env: Mapping[str, str], name: str, low: int, high: int = 2**31 - 1) -> int:
    """The value of a variable that is a whole number.

    Raises:
        UsageError: it is no whole number in that range.
    """
    value = env[name].strip()
    if not (value.isascii() and value.isdecimal() and low <= int(value) <= high):
        bounds = f"from {low} to {high}" if high < 2**31 - 1 else f"from {low} on"
        raise UsageError(f"{name}={value} must be a whole number {bounds}")
    return int(value)
