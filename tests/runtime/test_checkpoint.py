import argparse
import gzip
import json
import os
import pickle
import resource
import sys
import tarfile
import threading
import zipfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import download
from kinds import model_config
from models import SiT_models
from runtime import checkpoint
from runtime.errors import DataError, run_program
from runtime.state_dicts import under
from train_utils import load_weights


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
    with pytest.raises(DataError, match=r"text\.pt cannot be read: it is text that begins with 'hello'"):
        checkpoint.load(tmp_path / "text.pt")


# ---- others' files --------------------------------------------------------------------------------------------------


def small_model() -> dict[str, torch.Tensor]:
    return SiT_models["SiT-XS/4"](input_size=8, in_channels=1, num_classes=10).state_dict()


AVERAGED = small_model()
TRAINED = {k: v + 1 for k, v in AVERAGED.items()}


def inside_blocks(state: dict) -> dict:
    """As where each block is compiled."""
    return {k.replace(".attn.", "._orig_mod.attn."): v for k, v in state.items()}


LIGHTNING = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 1e-4}}
WRAPPED = {
    "compiled": under("_orig_mod.", AVERAGED),
    "compiled blocks": inside_blocks(AVERAGED),
    "DDP": under("module.", AVERAGED),
    "DDP, compiled": under("module._orig_mod.", AVERAGED),
    "DDP in our layout": {"model": under("module.", TRAINED), "ema": under("module.", AVERAGED), "step": 3},
    "FSDP": under("_fsdp_wrapped_module.", AVERAGED),
    "Lightning": LIGHTNING | {"state_dict": under("model.", AVERAGED) | {"vae.conv.weight": torch.ones(1)}},
    "Lightning, compiled": LIGHTNING | {"state_dict": under("model._orig_mod.", AVERAGED)},
    "Lightning, averaged": LIGHTNING | {"state_dict": under("net.", TRAINED) | under("ema_model.module.", AVERAGED)},
    "Lightning, averaged by a callback": LIGHTNING
    | {"state_dict": under("model.", TRAINED), "callbacks": {"EMA": {"ema_state_dict": under("model.", AVERAGED)}}},
    "ema_pytorch": {"initted": torch.tensor(True), **under("online_model.", TRAINED), **under("ema_model.", AVERAGED)},
    "torch's AveragedModel": {"n_averaged": torch.tensor(3), **under("module.", AVERAGED)},
    "shadow": {"model": TRAINED, "ema": {"decay": 0.999, "shadow": under("module.", AVERAGED)}},
    **{
        f"LDM's average {inner}": LIGHTNING
        | {
            "state_dict": under(f"model.{inner}", TRAINED)
            | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
            | {f"model_ema.{(inner + k).replace('.', '')}": v for k, v in AVERAGED.items()}
        }
        for inner in ("", "diffusion_model.")
    },
    "an average that was switched off": {"model": AVERAGED, "ema": None},
    "an average that is empty": {"model": AVERAGED, "ema": {}},
    "the model's name": {"model": "SiT-XS/4", "state_dict": AVERAGED},
    **{key: {key: AVERAGED, "epoch": 3} for key in ("state_dict", "model_state_dict", "params", "net", "generator")},
    **{
        " and ".join(keys): dict(zip(keys, (TRAINED, AVERAGED), strict=True))
        for keys in (
            ("model", "model_ema"),
            ("state_dict", "state_dict_ema"),
            ("model_state_dict", "ema_state_dict"),
            ("params", "params_ema"),
            ("model", "ema_model"),
        )
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_others_files_load_and_the_average_is_preferred(name, tmp_path):
    torch.save(WRAPPED[name], tmp_path / "a.pt")
    content = checkpoint.load(tmp_path / "a.pt")
    for prefer, expected in (("ema", AVERAGED), ("model", TRAINED)):
        state = checkpoint.weights(content, "a.pt", prefer)
        assert state.keys() == AVERAGED.keys()
        holds_both = any(torch.equal(v, TRAINED["pos_embed"]) for v in tensors_in(content))
        expected = expected if holds_both else AVERAGED
        assert all(torch.equal(state[k], expected[k]) for k in state)


def test_what_is_not_trained_is_not_in_ldms_average():
    average = {f"model_ema.{k.replace('.', '')}": v for k, v in AVERAGED.items() if k != "pos_embed"}
    state = checkpoint.weights({"state_dict": under("model.", TRAINED) | average}, "a.pt")
    assert state.keys() == AVERAGED.keys()
    assert all(torch.equal(state[k], (TRAINED if k == "pos_embed" else AVERAGED)[k]) for k in state)


def tensors_in(content) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    return [t for v in content.values() for t in tensors_in(v)] if isinstance(content, dict) else []


def test_others_safetensors_load(tmp_path):
    save_file(under("module.", AVERAGED), tmp_path / "a.safetensors")
    assert checkpoint.weights(checkpoint.load(tmp_path / "a.safetensors"), "a").keys() == AVERAGED.keys()


def test_what_does_not_fit_in_others_files_is_named():
    model = model_config(AVERAGED, "x").build()

    def message(content) -> str:
        with pytest.raises(DataError) as raised:
            load_weights(model, checkpoint.weights(content, "x.pt"), "x.pt")
        return str(raised.value)

    prefixed = under("model.", AVERAGED)
    assert "has head.weight, which the model does not" in message(prefixed | {"model.head.weight": torch.ones(1)})
    assert "lacks pos_embed" in message({k: v for k, v in prefixed.items() if k != "model.pos_embed"})
    twice = AVERAGED | {"_orig_mod.pos_embed": AVERAGED["pos_embed"]}
    assert "has _orig_mod.pos_embed, which the model does not" in message(twice)
    both = under("student.", AVERAGED) | under("teacher.", TRAINED)
    assert "holds several models (student, teacher)" in message(both)
    damaged = {k.replace("x_embedder", "y_embedder"): v for k, v in AVERAGED.items()}
    assert "lacks x_embedder" in message({"model": AVERAGED, "ema": damaged})  # and not the other one in its place
    assert "holds no model weights" in message({"epoch": 3, "optimizer": {"state": {}}})
    assert "it holds epoch (3), optimizer (a dict)" in message({"epoch": 3, "optimizer": {"state": {}}})
    shadow = {"decay": 0.9, "shadow_params": [torch.ones(1)]}
    assert "its 'ema' holds decay (0.9), shadow_params (a list)" in message({"model": AVERAGED, "ema": shadow})
    repeated = AVERAGED | {"pos_embed": torch.zeros(1).expand(1, 4, 96)}
    assert "has pos_embed as float32 of shape (1, 4, 96) on cpu, which is no plain tensor" in message(repeated)


def test_a_suffix_does_not_decide(tmp_path):
    save_file(AVERAGED, tmp_path / "a.pt")
    torch.save(AVERAGED, tmp_path / "b.safetensors")
    for name in ("a.pt", "b.safetensors"):
        assert checkpoint.load(tmp_path / name).keys() == AVERAGED.keys()


def test_what_is_there_in_place_of_a_checkpoint_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/1.png", b"")
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.add(tmp_path / "zip.pt", "a.pt")
    (tmp_path / "gz.pt").write_bytes(gzip.compress(b"x"))
    np.savez(tmp_path / "npz.npz", a=np.ones(1))
    for name, content, says in (
        ("page.pt", b"\n<!DOCTYPE html><html><title>Google Drive</title>", "it is a web page"),
        ("page.safetensors", b"<html>", "it is a web page"),
        (
            "lfs.pt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("none.pt", b"", "it is empty"),
        ("answer.pt", b"Invalid username or password.", "text that begins with 'Invalid username"),
        ("zip.pt", None, r"a zip archive of a/1\.png: unpack it"),
        ("tar.pt", None, "a tar archive: unpack it"),
        ("gz.pt", None, "a gzip archive: unpack it"),
        ("npz.npz", None, r"a NumPy \.npz file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read: .*{says}"):
            checkpoint.load(tmp_path / name)
    torch.save({"model": AVERAGED, "args": SimpleNamespace(lr=1)}, tmp_path / "objects.pt")
    with pytest.raises(DataError, match=r"holds Python objects \(types\.SimpleNamespace\), which are not loaded"):
        checkpoint.load(tmp_path / "objects.pt")


def test_a_folder_is_told_from_nothing(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for read in (checkpoint.load, download.locate):
        with pytest.raises(DataError, match=r"run is a folder; it holds no \.pt or"):
            read(str(tmp_path / "run"))
    for name in ("checkpoints/0000010.pt", "checkpoints/0000020.pt", "ckpt.pt"):
        (tmp_path / "run" / name).touch()
        suggested = "0000010.pt" if "10" in name else "0000020.pt" if "20" in name else "run/ckpt.pt"
        with pytest.raises(DataError, match=rf"is a folder; give a file in it, such as .*{suggested}$"):
            download.locate(str(tmp_path / "run"))


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
    ("step", 0.5),
    ("step", float("nan")),
    ("step", torch.tensor([1, 2])),
    ("args", [1]),
    ("class_names", [1]),
    ("opt", {"state": [1]}),
    ("model", [1]),
    ("progress", 3),
]


@pytest.mark.parametrize(("name", "value"), LAYOUT)
def test_values_of_another_kind_are_named(tmp_path, name, value):
    checkpoint.save(tmp_path / "a.pt", training_checkpoint() | {name: value})
    with pytest.raises(DataError, match=rf"a\.pt: its '{name}' is .*, not an? "):
        checkpoint.load(tmp_path / "a.pt")


STRIPPED = ["opt", "step", "args", "class_names", "progress", "layout", "scaler", "scheduler"]


@pytest.mark.parametrize("name", STRIPPED)
def test_what_is_none_or_empty_is_absent(tmp_path, name):
    whole = training_checkpoint()
    for nothing in (None, {}) if name != "step" else (None,):
        checkpoint.save(tmp_path / "a.pt", whole | {name: nothing})
        assert checkpoint.load(tmp_path / "a.pt").keys() == whole.keys() - {name}


@pytest.mark.parametrize("name", ["model", "ema"])
def test_of_two_models_one_may_be_stripped(tmp_path, name):
    checkpoint.save(tmp_path / "a.pt", training_checkpoint() | {name: None})
    content = checkpoint.load(tmp_path / "a.pt")
    assert name not in content
    for prefer in ("model", "ema"):
        assert checkpoint.weights(content, "a.pt", prefer).keys() == {"w"}


@pytest.mark.parametrize(
    "step",
    [
        *(1000, 1000.0, torch.tensor(1000), torch.tensor([1000.0]), torch.tensor(1000, dtype=torch.int16)),
        *(np.int64(1000), np.float32(1000), np.uint16(1000)),
    ],
    ids=repr,
)
def test_a_whole_number_of_steps_is_an_int(tmp_path, step):
    torch.save(training_checkpoint() | {"step": step}, tmp_path / "a.pt")
    found = checkpoint.load(tmp_path / "a.pt")["step"]
    assert found == 1000 and type(found) is int


def test_others_say_something_else_by_our_keys(tmp_path):
    """A decay, a name, a number of classes."""
    about = {"ema": 0.9999, "opt": "adamw", "step": 3}
    torch.save({"model": AVERAGED, **about}, tmp_path / "a.pt")
    content = checkpoint.load(tmp_path / "a.pt")
    assert "opt" not in content and checkpoint.weights(content, "a").keys() == AVERAGED.keys()
    torch.save({"state_dict": AVERAGED, "class_names": 10, "step": "last", "args": [1]}, tmp_path / "a.pt")
    assert checkpoint.load(tmp_path / "a.pt").keys() == {"state_dict"}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_any_precision_load(tmp_path, dtype, suffix):
    state = {k: v.to(dtype) for k, v in AVERAGED.items()}
    (torch.save if suffix == ".pt" else save_file)(state, tmp_path / f"a{suffix}")
    model = model_config(AVERAGED, "x").build()
    found = checkpoint.weights(checkpoint.load(tmp_path / f"a{suffix}"), "a")
    assert load_weights(model, found, "a") == []
    assert all(torch.equal(v, state[k].float()) for k, v in model.state_dict().items())


def test_where_weights_are_from_is_said():
    for content, line in (
        ({"model": TRAINED, "ema": AVERAGED}, None),
        (AVERAGED, None),
        (under("module.", AVERAGED), None),
        ({"model": TRAINED}, "a holds no average: model is taken"),
        ({"state_dict": under("model.", TRAINED)}, "a holds no average: state_dict.model is taken"),
        ({"model": TRAINED, "model_ema": AVERAGED}, "a holds its average as model_ema"),
        ({"ema_model": AVERAGED}, "a holds its average as ema_model"),
    ):
        assert checkpoint.origin(content, "a") == ([line] if line else [])


def test_numbers_beside_weights_are_no_weights_and_no_reason_to_refuse_them(tmp_path):
    counters = {"rope.index": torch.arange(4), "norm.num_batches_tracked": torch.tensor(3), "on": torch.tensor(True)}
    for name, content in {
        "both": {"model": TRAINED | counters, "ema": AVERAGED | counters},
        "alone": AVERAGED | counters,
        "wrapped": {"state_dict": under("module.", AVERAGED | counters)},
    }.items():
        torch.save(content, tmp_path / f"{name}.pt")
        state = checkpoint.weights(checkpoint.load(tmp_path / f"{name}.pt"), name)
        assert all(torch.equal(state[k], v) for k, v in AVERAGED.items()) and state.keys() - AVERAGED == counters.keys()


def test_a_pickle_of_another_protocol_is_not_called_damaged(tmp_path):
    torch.save(AVERAGED, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(DataError, match=r"the operation 149, and only those of torch\.save's own pickle_protocol"):
        checkpoint.load(tmp_path / "a.pt")


def test_a_header_without_our_checksum_is_not_compared(tmp_path):
    save_file(AVERAGED, tmp_path / "a.safetensors", {"format": "pt", "step": "1000", "args": "--lr 1"})
    assert checkpoint.load(tmp_path / "a.safetensors").keys() == AVERAGED.keys()


def test_what_is_no_file_is_told_from_nothing(tmp_path):
    (tmp_path / "link.pt").symlink_to("gone.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for read in (checkpoint.load, download.locate):
        with pytest.raises(DataError, match=r"link\.pt is a link to gone\.pt, which does not exist"):
            read(str(tmp_path / "link.pt"))
        with pytest.raises(DataError, match=r"pipe\.pt is neither a file nor a folder"):
            read(str(tmp_path / "pipe.pt"))


def test_a_path_that_is_not_utf8_is_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xe9")
    folder.mkdir()
    checkpoint.save(folder / "a.pt", training_checkpoint())
    checkpoint.export(folder / "a.safetensors", training_checkpoint())
    assert checkpoint.load(folder / "a.pt")["step"] == checkpoint.load(folder / "a.safetensors")["step"] == 1
    assert checkpoint.load(sharded(folder / "s")).keys() == AVERAGED.keys()
    save_file(AVERAGED, tmp_path / "plain.safetensors", {"format": "pt"})
    (tmp_path / "plain.safetensors").rename(folder / "b.safetensors")
    assert checkpoint.load(folder / "b.safetensors").keys() == AVERAGED.keys()


# ---- several files -------------------------------------------------------------------------------------------------


def sharded(folder, name: str = "model", suffix: str = "safetensors", count: int = 3):
    """AVERAGED in several files, and their index."""
    folder.mkdir()
    where = {}
    for i in range(count):
        file = f"{name}-{i + 1:05d}-of-{count:05d}.{suffix}"
        part = dict(list(AVERAGED.items())[i::count])
        (tmp := folder.parent / "shard").unlink(missing_ok=True)
        (save_file if suffix == "safetensors" else torch.save)(part, tmp)
        tmp.rename(folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{name}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("model", "safetensors"), ("diffusion_pytorch_model", "safetensors"), ("pytorch_model", "bin"), ("mine", "bin")],
)
def test_a_sharded_model_is_read_whole(tmp_path, name, suffix):
    index = sharded(tmp_path / "s", name, suffix)
    for path in (index, tmp_path / "s"):
        assert download.locate(str(path)) == index
        content = checkpoint.load(path)
        assert content.keys() == AVERAGED.keys() and all(torch.equal(v, AVERAGED[k]) for k, v in content.items())
    assert checkpoint.files(index)[0] == index and len(checkpoint.files(index)) == 4


def test_one_shard_is_no_model(tmp_path):
    index = sharded(tmp_path / "s")
    (index.parent / "renamed.safetensors").write_bytes(b"")
    shard = index.parent / "model-00002-of-00003.safetensors"
    with pytest.raises(
        DataError, match=r"00002-of-00003\.safetensors is one of 3 files.*: give its index .*index\.json"
    ):
        checkpoint.load(shard)
    index.write_text(index.read_text().replace(shard.name, "second.safetensors"))
    shard.rename(index.parent / "second.safetensors")
    with pytest.raises(DataError, match=r"second\.safetensors is one of 3 files"):
        checkpoint.load(index.parent / "second.safetensors")
    index.unlink()
    with pytest.raises(DataError, match=r"00001-of-00003\.safetensors is one of 3 files.*which is not here"):
        checkpoint.load(index.parent / "model-00001-of-00003.safetensors")
    for name in ("model-00001-of-00001.safetensors", "run-1-of-3.safetensors"):  # one of one; a seed of three
        save_file(AVERAGED, tmp_path / name)
        assert checkpoint.load(tmp_path / name).keys() == AVERAGED.keys()


def test_what_an_index_lacks_is_named(tmp_path):
    index = sharded(tmp_path / "s")
    whole = json.loads(index.read_text())
    for content, says in (
        ("{", "cannot be read: it is no JSON"),
        ("[1]", "is no index of shards: it has no 'weight_map'"),
        (json.dumps({"weight_map": {}}), "is no index of shards"),
        (json.dumps({"weight_map": {"w": "../../a.pt"}}), r"names \.\./\.\./a\.pt, which is not a file beside it"),
        (json.dumps({"weight_map": whole["weight_map"] | {"w": "b.bin"}}), r"lacks b\.bin, one of its 4 files"),
        (
            json.dumps({"weight_map": whole["weight_map"] | {"w": "model-00001-of-00003.safetensors"}}),
            "names w, which is in none of its files",
        ),
    ):
        index.write_text(content)
        with pytest.raises(DataError, match=rf"index\.json {says}"):
            checkpoint.load(index)
    (index.parent / "model-00001-of-00003.safetensors").write_bytes(b"<html>")
    index.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"00001-of-00003\.safetensors cannot be read: it is a web page"):
        checkpoint.load(index)


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


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch, capsys):
    """The limit on a file's size stands in for the disk's end: the system refuses to write on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = {"ema": {"w": torch.zeros(100)}, "step": 1, "args": {}, "class_names": ["a"]}
    large = content | {"step": 2, "ema": {"w": torch.zeros(10**6)}}
    for name, write in (("a.pt", checkpoint.save), ("a.safetensors", checkpoint.export)):
        write(Path(name), content)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(SystemExit, match="1"):
                run_program(lambda name=name, write=write: write(Path(name), large))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert capsys.readouterr().err == f"train.py: error: {name}: File too large\n"
        assert checkpoint.load(tmp_path / name)["step"] == 1
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
