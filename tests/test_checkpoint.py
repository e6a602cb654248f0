import argparse
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import defaultdict

import pytest
import torch
from safetensors.torch import save_file

import checkpoint
from errors import DataError

from .conftest import ROOT


def test_round_trip(tmp_path):
    content = {"model": {"w": torch.randn(3)}, "step": 7, "args": {"lr": 1e-4, "vae": None}, "class_names": ["a"]}
    checkpoint.save(tmp_path / "a.pt", content)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert torch.equal(loaded["model"]["w"], content["model"]["w"])
    assert {k: loaded[k] for k in ("step", "args", "class_names")} == {
        k: content[k] for k in ("step", "args", "class_names")
    }
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path / "a.pt", {"step": 1})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save(tmp_path / "a.pt", {"step": lambda: 2})
    assert checkpoint.load(tmp_path / "a.pt") == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def predecessor_checkpoint(model_state: dict, **args) -> dict:
    """The layout that SiT's and ComboStoc's train.py write."""
    parameters = [torch.nn.Parameter(v.clone()) for v in model_state.values()]
    opt = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0)
    return {"model": model_state, "ema": model_state, "opt": opt.state_dict(), "args": argparse.Namespace(**args)}


def test_the_predecessors_layout_loads_with_its_namespace(tmp_path):
    torch.save(predecessor_checkpoint({"w": torch.ones(2)}, model="SiT-XL/2", num_classes=1000), tmp_path / "a.pt")
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert checkpoint.training_args(loaded) == {"model": "SiT-XL/2", "num_classes": 1000}
    assert torch.equal(checkpoint.weights(loaded, "x.pt")["w"], torch.ones(2))
    assert checkpoint.step(loaded) == 0


def test_step_of_a_file_that_does_not_say_is_the_optimisers():
    w = torch.nn.Parameter(torch.ones(2))
    opt = torch.optim.AdamW([w])
    for _ in range(3):
        w.grad = torch.ones(2)
        opt.step()
    assert checkpoint.step({"opt": opt.state_dict()}) == 3
    assert checkpoint.step({"opt": opt.state_dict(), "step": 11}) == 11


def test_weights_prefers_the_average():
    both = {"model": {"w": torch.zeros(1)}, "ema": {"w": torch.ones(1)}}
    assert checkpoint.weights(both, "x.pt")["w"] == 1 and checkpoint.weights(both, "x.pt", prefer="model")["w"] == 0
    assert checkpoint.weights({"w": torch.ones(1)}, "x.pt") == {"w": torch.ones(1)}  # EMA-only files
    assert checkpoint.weights({"ema": {"w": torch.ones(1)}}, "x.pt", prefer="model")["w"] == 1
    with pytest.raises(DataError, match=r"x\.pt holds no model weights"):
        checkpoint.weights({"step": 3}, "x.pt")


def test_safetensors(tmp_path):
    save_file({"w": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(checkpoint.weights(checkpoint.load(tmp_path / "a.safetensors"), "x")["w"], torch.arange(3.0))


class Payload:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, legacy):
    content = {"model": {"w": torch.ones(1)}, "args": Payload(tmp_path / "owned")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r"evil\.pt cannot be read: it holds Python objects"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        checkpoint.save(path, {"model": {"w": torch.randn(100, 100)}})
    else:
        save_file({"w": torch.randn(100, 100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(DataError, match=rf"a{suffix} cannot be read"):
        checkpoint.load(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.pt does not exist"):
        checkpoint.load(tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"list\.pt holds a list"):
        checkpoint.load(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(DataError, match=r"text\.pt cannot be read: it is truncated or no PyTorch checkpoint"):
        checkpoint.load(tmp_path / "text.pt")


# ---- damage --------------------------------------------------------------------------------------------------------


def training_checkpoint() -> dict:
    w = torch.nn.Parameter(torch.randn(64, 64))
    opt = torch.optim.AdamW([w])
    w.grad = torch.ones_like(w)
    opt.step()
    state = {"w": w.detach()}
    about = {"step": 1, "args": {"lr": 1e-4}, "class_names": ["a", "b"], "progress": {"window": [[0.5, 1.0]]}}
    return {"model": state, "ema": state, "opt": opt.state_dict(), **about}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_one_wrong_bit_anywhere_in_a_tensor_is_noticed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    (checkpoint.save if suffix == ".pt" else checkpoint.export)(path, training_checkpoint())
    whole = path.read_bytes()
    needle = checkpoint.load(path)["ema"]["w"].numpy().tobytes()
    start = whole.index(needle)
    for offset in (0, 1, 5000, len(needle) - 1):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a{suffix} (cannot be read: Bad CRC-32|is damaged: .*SHA-256)"):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert checkpoint.load(path)["step"] == 1


def test_no_archive_is_read_by_two_threads(tmp_path, monkeypatch):
    """zipfile does not promise that: from Python 3.12 on intact records then seem to be damaged."""
    checkpoint.save(tmp_path / "a.pt", {"model": {str(i): torch.randn(10) for i in range(20)}})
    readers, archives, read = defaultdict(set), [], []

    class Watched(zipfile.ZipFile):
        def open(self, name, *args, **kwargs):
            archives.append(self)  # keeps it, so that no other gets its id
            readers[id(self)].add(threading.get_ident())
            read.append(getattr(name, "filename", name))
            return super().open(name, *args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", Watched)
    checkpoint.load(tmp_path / "a.pt")
    assert len(archives) >= 20 and all(len(threads) == 1 for threads in readers.values())
    assert sorted(read) == sorted(zipfile.ZipFile(tmp_path / "a.pt").namelist())  # each of them, once


LAYOUT = [
    ("step", -1),
    ("step", "7"),
    ("step", True),
    ("args", [1]),
    ("class_names", []),
    ("class_names", [1]),
    ("opt", {}),
    ("opt", {"state": [1]}),
    ("model", [1]),
    ("progress", 3),
]


@pytest.mark.parametrize(("name", "value"), LAYOUT)
def test_values_of_another_kind_are_named(tmp_path, name, value):
    checkpoint.save(tmp_path / "a.pt", training_checkpoint() | {name: value})
    with pytest.raises(DataError, match=rf"a\.pt is damaged: its '{name}' is not what it should be"):
        checkpoint.load(tmp_path / "a.pt")


def test_weights_that_are_no_weights(tmp_path):
    for tensor in (torch.ones(2, dtype=torch.int64), torch.ones(2).to_sparse(), torch.ones(2, device="meta")):
        with pytest.raises(DataError, match="holds no model weights"):
            checkpoint.weights({"w": tensor}, "x.pt")


# ---- export --------------------------------------------------------------------------------------------------------


def test_an_export_holds_the_average_and_its_configuration(tmp_path):
    content = training_checkpoint() | {"ema": {"w": torch.full((2, 2), 3.0), "b": torch.zeros(1)}}
    checkpoint.export(tmp_path / "a.safetensors", content)
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    assert {k: v.tolist() for k, v in loaded.pop("ema").items()} == {"w": [[3, 3], [3, 3]], "b": [0]}
    assert loaded == {"step": 1, "args": {"lr": 1e-4}, "class_names": ["a", "b"]}


# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    """The limit on a file's size stands in for the disk's end: the system refuses to write on."""
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(ROOT)!r})
import checkpoint
from errors import run_program
from pathlib import Path
sys.argv = ["train.py"]
path, write = Path("a.{{suffix}}"), checkpoint.{{write}}
content = {{{{"ema": {{{{"w": torch.zeros(100)}}}}, "step": 1, "args": {{{{}}}}, "class_names": ["a"]}}}}
write(path, content)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
content |= {{{{"step": 2, "ema": {{{{"w": torch.zeros(10**6)}}}}}}}}
run_program(lambda: write(path, content))
"""
    for suffix, write in (("pt", "save"), ("safetensors", "export")):
        command = [sys.executable, "-c", code.format(suffix=suffix, write=write)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (1, f"train.py: error: a.{suffix}: File too large\n")
        assert checkpoint.load(tmp_path / f"a.{suffix}")["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


def test_saving_goes_on_beside_training():
    """What is written is the state when it was saved; errors come out later."""
    saver, written, may_write = checkpoint.Saver(), [], threading.Event()

    def write(content):
        may_write.wait(10)
        written.append(content)

    w = torch.zeros(3)
    content = {"model": {"w": w}, "opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1}]}}
    saver.submit(write, content)
    w += 1
    content["opt"]["state"][0]["step"] += 1
    saver.check()
    assert written == []
    may_write.set()
    saver.wait()
    assert torch.equal(written[0]["model"]["w"], torch.zeros(3))
    assert written[0]["opt"] == {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1}]}

    def fail(content):
        raise OSError(28, "No space left on device", "a.pt")

    saver.submit(fail, content)
    with pytest.raises(OSError, match=r"No space left on device: 'a\.pt'"):
        saver.wait()
    saver.wait()
    saver.close()
