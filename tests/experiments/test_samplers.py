"""Samplers at equal evaluations: each takes as many as it is given, where it can, and nothing is measured twice."""

import re
import sys

import pytest
import torch
from PIL import Image

from experiments import judge, samplers
from experiments.tables import read_rows
from models import ComboStoc_models
from runtime.errors import run_program

FLAGS = ["--evaluations", "8", "16", "--samples", "20"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two models of the digits with random weights: one trained with difficulty, as it says, and one without."""
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    paths = []
    for name, difficulty in (("hard", 0.01), ("plain", 0.0)):
        folder = tmp_path_factory.mktemp("results") / name / "checkpoints"
        folder.mkdir(parents=True)
        args = {"combostoc_type": "UNSYNC_ALL", "difficulty": difficulty, "vae": "none"}
        torch.save({"ema": model.state_dict(), "args": args, "step": 1}, folder / "0000001.pt")
        paths.append(str(folder / "0000001.pt"))
    return paths


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A classifier of one pass."""
    monkeypatch.setattr(samplers, "Judge", lambda data, mirror: judge.Judge(data, mirror=mirror, epochs=1))


def test_samplers_take_what_they_are_given_and_nothing_is_measured_twice(checkpoints, tmp_path, monkeypatch, capsys):
    flags = ["--ckpt", *checkpoints, "--out", str(tmp_path / "x"), *FLAGS]
    samplers.main(flags)
    printed, rows = capsys.readouterr().out, read_rows(tmp_path / "x.csv", samplers.Row)
    taken = {(row.ckpt, row.sampler, row.evaluations): row.taken for row in rows}
    hard, plain = checkpoints
    for n in (8, 16):
        for name in ("Euler", "Heun", "SDE, Euler"):
            assert taken[hard, name, n] == taken[plain, name, n] == n
        assert n - 2 <= taken[hard, "look-ahead", n] <= n  # one a step while t is small
    assert taken[hard, "dopri5", 0] == taken[plain, "dopri5", 0] > 16
    assert not {name for ckpt, name, _ in taken if ckpt == plain} & {"look-ahead"}
    assert len({row.fd for row in rows if row.ckpt == hard}) == 9  # no two samplers do the same
    assert printed.count("| hard |") == 5 and printed.count("| plain |") == 4
    with Image.open(tmp_path / "x.png") as figure:
        assert figure.width > 800 and len(figure.convert("RGB").getcolors(10**6)) > 50

    monkeypatch.setattr(samplers, "measure", None)  # is not called again
    samplers.main(flags)
    again = capsys.readouterr().out
    assert re.sub(r"\d", "", again) == re.sub(r"\d", "", printed)  # the table keeps five digits


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("--ckpt {ckpt} --out {f}/absent/x", 1, "absent does not exist"),
        ("--ckpt {ckpt} --out {f}/x --evaluations 8 12", 2, "--evaluations 12 is not a multiple of 8"),
        ("--ckpt {f}/none.pt --out {f}/x", 1, "none.pt does not exist"),
        ("--ckpt {ckpt} --out {f}/other", 1, "other.csv is not a table of this program"),
        ("--ckpt {ckpt} --out {f}/x --data-path {f}/none", 1, "none does not exist"),
    ],
)
def test_mistakes_end_in_one_line(arguments, code, line, checkpoints, tmp_path, monkeypatch, capsys):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(sys, "argv", ["samplers.py"])
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: samplers.main(arguments.format(f=tmp_path, ckpt=checkpoints[0]).split()))
    message = capsys.readouterr().err
    assert ended.value.code == code and message.count("\n") == 1 and line in message
    assert [p.name for p in tmp_path.iterdir()] == ["other.csv"]
