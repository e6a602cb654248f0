import argparse
import sys

import pytest
import torch

import export
from kinds import load_network
from models import SiT_models
from runtime import checkpoint
from runtime.errors import DataError, UsageError, run_program
from sampling.arguments import sampling_parser
from shapes.network import Parts_models


def network(path):
    parser = sampling_parser("", lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False)
    return load_network(parser.parse_args(["ODE", "--ckpt", str(path)]), torch.device("cpu"), "ema")


def test_what_is_exported_samples_as_the_checkpoint_does(trained, tmp_path, capsys):
    whole = network(trained / "ckpt.pt")
    export.main([str(trained / "ckpt.pt"), "--out", str(tmp_path / "w.safetensors")])
    printed = capsys.readouterr().out
    assert "ComboStoc-XS/4 for inputs of 1 x 8 x 8 and 10 classes" in printed
    found = network(tmp_path / "w.safetensors")
    assert (found.step, found.class_names, found.config) == (whole.step, whole.class_names, whole.config)
    assert found.transport.combostoc_type is whole.transport.combostoc_type
    for a, b in zip(found.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "w.safetensors").stat().st_size < 0.4 * (trained / "ckpt.pt").stat().st_size


def test_a_plain_state_dict_is_what_the_official_programs_read(trained, tmp_path):
    export.main([str(trained / "ckpt.pt"), "--out", str(tmp_path / "w.pt")])
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    ema = checkpoint.load(trained / "ckpt.pt")["ema"]
    assert state.keys() == ema.keys() and all(torch.equal(state[k], ema[k]) for k in ema)


def test_of_shapes_a_plain_state_dict_would_lack_the_layout(tmp_path):
    weights = Parts_models["Parts-XS"](in_channels=15, num_classes=6).state_dict()
    checkpoint.save(tmp_path / "a.pt", {"ema": weights, "layout": {"num_parts": 8}})
    with pytest.raises(UsageError, match=r"w\.pt: of a model of shapes it must end in \.safetensors"):
        export.main([str(tmp_path / "a.pt"), "--out", str(tmp_path / "w.pt")])
    assert not (tmp_path / "w.pt").exists()


def test_an_official_checkpoint_is_converted(tmp_path):
    """Arguments as a Namespace, the step in the optimiser's state alone, no class names."""
    model = SiT_models["SiT-XS/4"](input_size=8, in_channels=1, num_classes=10)
    opt = {"state": {0: {"step": torch.tensor(700.0)}}, "param_groups": []}
    content = {"model": model.state_dict(), "ema": model.state_dict(), "opt": opt}
    torch.save(content | {"args": argparse.Namespace(path_type="GVP", prediction="velocity")}, tmp_path / "sit.pt")
    export.main([str(tmp_path / "sit.pt"), "--out", str(tmp_path / "sit.safetensors")])
    found = network(tmp_path / "sit.safetensors")
    assert found.step == 700 and found.class_names is None and found.transport.path_type.name == "GVP"


def test_a_lightning_checkpoint_is_converted_and_what_is_left_over_is_named(tmp_path):
    state = SiT_models["SiT-XS/4"](input_size=8, in_channels=1, num_classes=10).state_dict()
    wrapped = {f"model._orig_mod.{k}": v for k, v in state.items()}
    torch.save({"epoch": 1, "state_dict": wrapped | {"vae.w": torch.ones(1)}}, tmp_path / "l.ckpt")
    export.main([str(tmp_path / "l.ckpt"), "--out", str(tmp_path / "w.pt")])
    found = torch.load(tmp_path / "w.pt", weights_only=True)
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    assert network(tmp_path / "l.ckpt").config == network(tmp_path / "w.pt").config
    torch.save({"state_dict": wrapped | {"model.head.w": torch.ones(1)}}, tmp_path / "l.ckpt")
    with pytest.raises(DataError, match=r"has head\.w, which the model does not have"):
        export.main([str(tmp_path / "l.ckpt"), "--out", str(tmp_path / "again.pt")])
    assert not (tmp_path / "again.pt").exists()


@pytest.mark.parametrize(
    ("ckpt", "out", "code", "line"),
    [
        ("{f}/absent.pt", "w.pt", 1, "absent.pt"),
        ("{f}/alien.pt", "w.pt", 1, "alien.pt holds no SiT, ComboStoc or Parts model"),
        ("{f}/alien.pt", "w.ckpt", 2, "--out w.ckpt must end in .safetensors or .pt"),
        ("{f}/alien.pt", "absent/w.pt", 1, "folder absent does not exist"),
    ],
)
def test_mistakes_end_in_one_line(ckpt, out, code, line, tmp_path, monkeypatch, capsys):
    torch.save({"w": torch.ones(3)}, tmp_path / "alien.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export.py"])
    with pytest.raises(SystemExit) as exit_:
        run_program(lambda: export.main([ckpt.format(f=tmp_path), "--out", out]))
    message = capsys.readouterr().err
    assert exit_.value.code == code and message.count("\n") == 1 and line in message
    assert [p.name for p in tmp_path.iterdir()] == ["alien.pt"]
