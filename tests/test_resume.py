import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import checkpoint
import train
from models import ComboStoc_models, SiT_models

from .conftest import DIGITS_ARGS, ROOT, run_cli
from .faults import Fault, differences, free_port, launch, random_faults

STEPS = 40
RUN = [
    *(*DIGITS_ARGS, "--global-batch-size", "64", "--grad-accum", "2", "--max-steps", str(STEPS)),  # 28 steps an epoch
    *("--log-every", "3", "--reckpt-every", "4", "--ckpt-every", "10", "--sample-every", "20"),
]
NAME = "ComboStoc-XS-4-exp_tmp"


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


@pytest.mark.parametrize("what", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_is_killed_ten_times_is_the_same_run(uninterrupted, tmp_path, world_size, workers, what):
    """In steps, in the middle of saving, between epochs: model, average, optimiser and log, bit for bit."""
    argv = [*RUN, "--num-workers", workers, "--results-dir", str(tmp_path)]
    for fault in random_faults(what, 10, STEPS, world_size, seed=world_size + 2 * int(workers)):
        codes = launch(argv, tmp_path / "output", world_size=world_size, fault=fault)
        if what == "SIGKILL":
            assert codes[fault.rank] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, 1}, fault
        else:
            assert codes == [128 + signal.SIGTERM] * world_size, (fault, (tmp_path / "output").read_text()[-3000:])
    assert launch(argv, tmp_path / "output", world_size=world_size) == [0] * world_size
    assert differences(uninterrupted(world_size), tmp_path / NAME) == []
    assert "Traceback" not in (tmp_path / "output").read_text()


FAULTS = [
    (Fault("SIGINT", "begin", 5), 2, 130, "Stopped by SIGINT at step 6; the same command continues"),
    (Fault("SIGUSR1", "begin", 5), 1, 138, "Stopped by SIGUSR1 at step 6; the same command continues"),
    (Fault("full disk", "begin", 5), 1, 1, r"train.py: error: .*/ckpt-next.pt: File too large"),
    (Fault("dead worker", "begin", 5), 1, 1, "train.py: error: DataLoader worker .*was there too little memory"),
    (Fault("SIGSTOP", "begin", 5, rank=1), 2, 1, "train.py: error: another process has failed, or does not answer"),
]


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


# ---- steps that are not finite -------------------------------------------------------------------------------------


def rows(folder) -> list[dict]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_an_infinite_loss_of_one_process_is_skipped_by_all(tmp_path):
    argv = [*RUN, "--max-steps", "12", "--results-dir", str(tmp_path)]
    fault = Fault("infinite loss", "begin", 7, rank=1)
    assert launch(argv, tmp_path / "output", world_size=2, fault=fault) == [0, 0], (tmp_path / "output").read_text()
    assert [row["bad_steps"] for row in rows(tmp_path / NAME)] == ["0", "0", "1", "1"]
    assert all(0 < float(row["loss"]) < 5 for row in rows(tmp_path / NAME))
    content = checkpoint.load(tmp_path / NAME / "ckpt.pt")
    assert content["opt"]["state"][1]["step"] == 11 and content["step"] == 12
    assert "1 bad steps skipped" in (tmp_path / NAME / "log.txt").read_text()


def test_too_many_bad_steps_end_the_run_and_leave_the_last_good_checkpoint(tmp_path):
    """A learning rate that blows the weights up in the first step."""
    flags = ["--lr", "1e30", "--max-bad-steps", "5", "--reckpt-every", "1", "--results-dir", tmp_path]
    result = run_cli("train.py", *RUN, *flags, cwd=tmp_path, check=False)
    line = "train.py: error: loss or gradients were not finite in 5 steps in a row (--max-bad-steps), up to step 6; "
    assert result.returncode == 1 and line in result.stderr and "Traceback" not in result.stderr
    assert checkpoint.load(tmp_path / NAME / "ckpt.pt")["step"] == 1
    assert "Not saved at step 3, which was a bad one" in result.stderr


# ---- weights alone -------------------------------------------------------------------------------------------------


def begin(tmp_path, *args: str, exp: str = "x"):
    train.main([*RUN, "--max-steps", "1", "--results-dir", str(tmp_path), "--exp", exp, *map(str, args)])
    (folder,) = tmp_path.glob(f"*-{exp}")
    return folder


def random_weights(path, model, **settings):
    torch.manual_seed(3)
    model = model(in_channels=1, **settings)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    torch.save(model.state_dict(), path)
    return model.state_dict()


def test_init_from_takes_what_fits_and_names_what_does_not(tmp_path):
    """Another number of classes, and a fresh run: step 0, a fresh optimiser, the command line's settings."""
    state = random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=7)
    folder = begin(tmp_path, "--init-from", tmp_path / "a.pt", "--lr", "1e-12", "--ema-decay", "0.5")
    content = checkpoint.load(folder / "ckpt.pt")
    assert content["step"] == 1 and content["args"]["lr"] == 1e-12
    for part in ("model", "ema"):
        same = {
            k: torch.allclose(v, state[k], atol=1e-9) for k, v in content[part].items() if v.shape == state[k].shape
        }
        assert all(same.values()) and len(same) == len(state) - 1
    log = (folder / "log.txt").read_text()
    table = "y_embedder.embedding_table.weight"
    assert f"{len(state) - 1} of the model's {len(state)} tensors taken" in log
    assert f"Warning: {table} is (8, 96) in the file, (11, 96) in the model: initialised" in log
    assert log.count("Warning") == 1


def test_init_from_another_resolution_and_family(tmp_path):
    random_weights(tmp_path / "sit.pt", SiT_models["SiT-XS/4"], input_size=16, num_classes=10)
    log = (begin(tmp_path, "--init-from", tmp_path / "sit.pt") / "log.txt").read_text()
    assert "Warning: pos_embed is (1, 16, 96) in the file, (1, 4, 96) in the model: initialised" in log
    assert "Warning: t_embedder.patchEmb.proj.weight is not in the file: initialised" in log
    sit = begin(tmp_path, "--init-from", tmp_path / "sit.pt", "--model", "SiT-XS/4", exp="sit")
    assert (sit / "log.txt").read_text().count("Warning") == 1


def test_init_from_is_for_the_beginning(tmp_path):
    """The same command again continues the run that it has begun."""
    random_weights(tmp_path / "a.pt", ComboStoc_models["ComboStoc-XS/4"], input_size=8, num_classes=10)
    begin(tmp_path, "--init-from", tmp_path / "a.pt")
    folder = begin(tmp_path, "--init-from", tmp_path / "a.pt", "--max-steps", "2")
    log = (folder / "log.txt").read_text()
    assert "continuing" in log and f"not --init-from {tmp_path / 'a.pt'}" in log and "from step 1 to 2" in log


# ---- pictures that cannot be read ----------------------------------------------------------------------------------


@pytest.fixture
def pictures(image_folder, tmp_path):
    """Twelve pictures in a class, of which two are broken."""
    (tmp_path / "data" / "class").mkdir(parents=True)
    for k, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "data" / "class" / f"{k:02d}.png").write_bytes(path.read_bytes() if k not in (3, 4) else b"broken")
    return tmp_path / "data"


def test_pictures_that_cannot_be_read_are_named_counted_and_replaced(pictures, tmp_path):
    argv = [*RUN, "--data-path", str(pictures), "--global-batch-size", "6", "--num-classes", "1", "--max-steps", "8"]
    argv += ["--max-bad-images", "0.2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert launch([*argv, "--results-dir", str(whole)], whole / "output") == [0], (whole / "output").read_text()
    log = (whole / NAME / "log.txt").read_text()
    assert all(log.count(f"{name} cannot be read") == 1 for name in ("03.png", "04.png")), log
    for workers, fault in (("2", Fault("SIGKILL", "step", 6)), ("0", None)):
        argv_parts = [*argv, "--num-workers", workers, "--results-dir", str(parts)]
        launch(argv_parts, parts / "output", fault=fault)
    assert differences(whole / NAME, parts / NAME) == []
    assert checkpoint.load(parts / NAME / "ckpt.pt")["progress"]["unreadable"] == [3, 4]


def test_too_many_unreadable_pictures_stop_both_processes_with_everything_saved(pictures, tmp_path):
    argv = [*RUN, "--data-path", str(pictures), "--global-batch-size", "12", "--num-classes", "1", "--results-dir"]
    codes = launch([*argv, str(tmp_path), "--max-bad-images", "0.1"], tmp_path / "output", world_size=2)
    assert codes == [1, 1]
    output = (tmp_path / "output").read_text()
    assert "2 of 12 images cannot be read, more than --max-bad-images 0.1 allows; the last: image" in output
    assert checkpoint.load(tmp_path / NAME / "ckpt.pt")["step"] == 1
