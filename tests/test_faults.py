import itertools
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from runtime import checkpoint
from tests.conftest import ROOT
from tests.faults import NAME, RUN, STEPS, Fault, differences, launch, metrics, random_faults
from tests.forked import free_port


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The experiment folder of a run that nothing happened to, by the number of processes."""
    folders = {}

    def run(world_size: int):
        if world_size not in folders:
            root = tmp_path_factory.mktemp("uninterrupted")
            argv = [*RUN, "--results-dir", str(root)]
            assert launch(argv, root / "output", world_size=world_size) == [0] * world_size, (
                root / "output"
            ).read_text()
            folders[world_size] = root / NAME
        return folders[world_size]

    return run


# ---- killed and continued ------------------------------------------------------------------------------------------


RUNS = [  # processes, data workers, signal, how often: in `make drill` twice at each of the five moments
    (1, "2", "SIGKILL", 3),
    (2, "0", "SIGTERM", 2),
    *(
        pytest.param(*run, 10, marks=pytest.mark.drill)
        for run in itertools.product((1, 2), ("0", "2"), ("SIGKILL", "SIGTERM"))
    ),
]


@pytest.mark.parametrize(("world_size", "workers", "what", "count"), RUNS)
def test_a_run_that_is_killed_many_times_is_the_same_run(uninterrupted, tmp_path, world_size, workers, what, count):
    """In steps, in the middle of saving, between epochs: model, average, optimiser and log, bit for bit."""
    argv = [*RUN, "--num-workers", workers, "--results-dir", str(tmp_path)]
    for fault in random_faults(what, count, STEPS, world_size, seed=world_size + 2 * int(workers)):
        codes = launch(argv, tmp_path / "output", world_size=world_size, fault=fault)
        if what == "SIGKILL":
            assert codes[fault.rank] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, 1}, fault
        else:
            assert codes == [128 + signal.SIGTERM] * world_size, (fault, (tmp_path / "output").read_text()[-3000:])
    assert launch(argv, tmp_path / "output", world_size=world_size) == [0] * world_size
    assert differences(uninterrupted(world_size), tmp_path / NAME) == []
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.drill
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_while_the_last_checkpoint_is_written_does_no_harm(tmp_path, world_size):
    """As where a scheduler and torchrun both pass on one request."""
    argv = [*RUN, "--results-dir", str(tmp_path)]
    fault = Fault("SIGTERM", "half a file", STEPS - 1)
    codes = launch(argv, tmp_path / "output", world_size=world_size, fault=fault)
    assert codes == [0] * world_size, (tmp_path / "output").read_text()[-3000:]
    assert checkpoint.load(tmp_path / NAME / "ckpt.pt")["step"] == STEPS
    assert "Done" in (tmp_path / NAME / "log.txt").read_text()


@pytest.mark.drill
def test_three_processes_too(tmp_path):
    """Whose gradients are summed in an order that a restart must not change."""
    argv = [*RUN, "--global-batch-size", "48", "--grad-accum", "1", "--max-steps", "10", "--results-dir"]
    for name, fault in (("whole", None), ("parts", Fault("SIGTERM", "begin", 5, rank=2)), ("parts", None)):
        (tmp_path / name).mkdir(exist_ok=True)
        codes = launch([*argv, str(tmp_path / name)], tmp_path / "output", world_size=3, fault=fault)
        assert codes == [143 if fault else 0] * 3, (tmp_path / "output").read_text()
    assert differences(tmp_path / "whole" / NAME, tmp_path / "parts" / NAME) == []


def test_another_number_of_processes_goes_on_with_the_same_images(tmp_path):
    argv = [*RUN, "--grad-accum", "1", "--max-steps", "7", "--results-dir", str(tmp_path)]
    assert launch(argv, tmp_path / "output", world_size=2, fault=Fault("SIGTERM", "begin", 4)) == [143, 143]
    assert launch(argv, tmp_path / "output") == [0]
    assert [row["step"] for row in metrics(tmp_path / NAME)] == ["3", "6"]
    assert all(0 < float(row["loss"]) < 5 for row in metrics(tmp_path / NAME))


FAULTS = [
    (Fault("SIGINT", "begin", 5), 1, 130, "Stopped by SIGINT at step 6; the same command continues"),
    (Fault("full disk", "begin", 5), 1, 1, r"train.py: error: .*/ckpt-next.pt: File too large"),
]
IN_DRILL = [
    (Fault("SIGINT", "begin", 5), 2, 130, "Stopped by SIGINT at step 6; the same command continues"),
    (Fault("dead worker", "begin", 5), 1, 1, "train.py: error: DataLoader worker .*illed.*was there too little memory"),
    (Fault("SIGUSR1", "begin", 5), 1, 138, "Stopped by SIGUSR1 at step 6; the same command continues"),
    (Fault("SIGHUP", "begin", 5), 1, 129, "Stopped by SIGHUP at step 6; the same command continues"),
    (Fault("SIGSTOP", "begin", 5, rank=1), 2, 1, "train.py: error: another process has failed, or does not answer"),
]
FAULTS += [pytest.param(*fault, marks=pytest.mark.drill) for fault in IN_DRILL]


@pytest.mark.parametrize(("fault", "world_size", "code", "line"), FAULTS, ids=lambda v: getattr(v, "what", None))
def test_other_faults_end_in_one_line_and_lose_nothing(uninterrupted, tmp_path, fault, world_size, code, line):
    argv = [*RUN, "--num-workers", "2", "--results-dir", str(tmp_path)]
    assert launch(argv, tmp_path / "output", world_size=world_size, fault=fault)[0] == code
    output = (tmp_path / "output").read_text()
    assert re.search(line, output) and "Traceback" not in output, output
    assert output.count("train.py: error:") == (code == 1)
    assert launch(argv, tmp_path / "output", world_size=world_size) == [0] * world_size
    assert differences(uninterrupted(world_size), tmp_path / NAME) == []


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(uninterrupted, tmp_path):
    argv = [*RUN, "--results-dir", str(tmp_path)]
    launch(argv, tmp_path / "output", fault=Fault("SIGKILL", "step", 14))
    newest = tmp_path / NAME / "ckpt.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert launch(argv, tmp_path / "output") == [0]
    log = (tmp_path / NAME / "log.txt").read_text()
    assert f"Warning: checkpoint {newest} cannot be read: it is truncated" in log and "from step 10 to 40" in log
    assert differences(uninterrupted(1), tmp_path / NAME) == []


# ---- torchrun ------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.drill
def test_torchrun_carries_on_after_the_death_of_a_rank(uninterrupted, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [*command, str(ROOT / "train.py"), *RUN, "--results-dir", str(tmp_path)]
    log = tmp_path / NAME / "log.txt"
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(argv, env=environment, stderr=output)
        deadline = time.monotonic() + 120
        while not (log.is_file() and "(step=0000009)" in log.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.005)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        assert process.wait(120) == 0, (tmp_path / "output").read_text()
    assert log.read_text().count("Experiment folder") == 2
    assert differences(uninterrupted(2), tmp_path / NAME) == []


@pytest.mark.drill
def test_two_nodes_are_two_processes(uninterrupted, tmp_path):
    """Two launchers of one process each, over the loopback; the local rank is 0 on both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=7"]
    argv = [*command, str(ROOT / "train.py"), *RUN, "--results-dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nodes = [subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert sorted("Experiment folder" in text for text in errors) == [False, True]
    assert differences(uninterrupted(2), tmp_path / NAME) == []
