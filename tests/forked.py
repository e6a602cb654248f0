"""Programs forked from a server that has everything imported, where a start takes a fraction of a second, not six.

From there on they are processes like any other, with a process group, an environment and outputs of their own. What
`conftest.run_cli` shows beside, and this does not: the interpreter's start, the program's imports, torchrun.
"""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import sklearn.datasets  # noqa: F401 -- for the server, as are the programs
import torch

import evaluate  # noqa: F401
import extract_latents  # noqa: F401
import sample  # noqa: F401
import sample_ddp  # noqa: F401
import train  # noqa: F401
from runtime.errors import run_program

ROOT = Path(__file__).parent.parent


def become(
    program: str,
    argv: list[str],
    rank: int,
    stdout: str,
    stderr: str,
    cwd: str,
    environment: dict[str, str],
    before: Callable[[int], None] | None,
) -> None:
    """What the fork does."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # data workers start as they do elsewhere, not by a server, too
    for path, standard in ((stdout, 1), (stderr, 2)):
        with open(path, "a") as file:
            os.dup2(file.fileno(), standard)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    argv = [word.replace("{rank}", str(rank)) for word in argv]
    sys.argv = [f"{program}.py", *argv]
    if before is not None:
        before(rank)
    run_program(lambda: importlib.import_module(program).main(argv))


def start(
    program: str,
    argv: Sequence[str],
    *,
    stdout: Path,
    stderr: Path,
    world_size: int = 1,
    cwd: Path | str = ".",
    env: dict[str, str] | None = None,
    before: Callable[[int], None] | None = None,
) -> list[BaseProcess]:
    """Start the processes of a program, which append to files what they say.

    Args:
        program: train, for train.py.
        argv: in which {rank} is the process's own.
        world_size: number of processes, which torchrun's variables tell of each other where there are several.
        env: variables beside this process's.
        before: what each does first; it is given the process's rank, and pickled.
    """
    os.environ["PYTHONPATH"] = str(ROOT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked", "tests.faults"])
    port = free_port()
    processes: list[BaseProcess] = []
    for rank in range(world_size):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        if world_size > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
            environment |= {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in numbers.items()}}
        settings = (program, list(argv), rank, str(stdout), str(stderr), str(Path(cwd).resolve()), environment, before)
        processes.append(context.Process(target=become, args=settings))
    for process in processes:
        process.start()
    return processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_forked(
    program: str,
    *args: str | Path,
    processes: int = 1,
    cwd: Path,
    check: bool = True,
    before: Callable[[int], None] | None = None,
    **env: str,
) -> subprocess.CompletedProcess:
    """`conftest.run_cli` without what is slow in it. As under torchrun, a process that fails ends all of them."""
    with TemporaryDirectory() as folder:
        outputs = {name: Path(folder, name) for name in ("stdout", "stderr")}
        words = list(map(str, args))
        running = start(
            program.removesuffix(".py"), words, **outputs, world_size=processes, cwd=cwd, env=env, before=before
        )
        left = running
        while left:
            ended = connection.wait([p.sentinel for p in left], timeout=300)
            left = [p for p in left if p.sentinel not in ended]
            if not ended or any(p.exitcode for p in running):
                for process in left:
                    process.terminate() if ended else process.kill()
                break
        for process in running:
            process.join()
        code = int(any(p.exitcode for p in running)) if processes > 1 else running[0].exitcode
        said = {name: path.read_text() for name, path in outputs.items()}
    if check:
        assert code == 0, said["stderr"][-3000:]
    return subprocess.CompletedProcess([program, *words], code, **said)
