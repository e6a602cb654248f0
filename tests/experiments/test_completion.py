"""Ways to complete a picture: what is given comes back, and repeated steps find what goes with it."""

import sys

import pytest
import torch

from experiments import completion, graded, judge
from experiments.tables import read_rows
from models import ComboStoc_models, SiT_models
from runtime.errors import run_program
from sampling.network import ImageNoise
from transport import create_transport


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A SiT and a ComboStoc model of the digits with random weights, by names as ablation.py gives them."""
    torch.manual_seed(0)
    paths = []
    for models, name, kind in ((SiT_models, "SiT", "NONE"), (ComboStoc_models, "ComboStoc", "ALL")):
        model = models[f"{name}-XS/4"](input_size=8, in_channels=1, num_classes=10)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.05)
        folder = tmp_path_factory.mktemp("results") / f"{name}-XS-4-study-{name}-way-1-0.008-1d1f3ad3"
        folder.mkdir()
        args = {"combostoc_type": f"UNSYNC_{kind}", "vae": "none"}
        torch.save({"ema": model.state_dict(), "args": args, "step": 1}, folder / "1.pt")
        paths.append(str(folder / "1.pt"))
    return paths


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A classifier of one pass."""
    monkeypatch.setattr(graded, "Judge", lambda data, mirror: judge.Judge(data, mirror=mirror, epochs=1))


def test_every_way_is_measured_once_and_keeps_what_is_given(checkpoints, tmp_path, monkeypatch, capsys):
    made = []
    original = completion.complete

    def remembered(args, network, images, row):
        x = original(args, network, images, row)
        known = completion.known_part(row.given, 1, 8).bool().expand_as(x)
        made.append((row.method, (x - images)[known].abs().max().item(), (x - images)[~known].abs().max().item()))
        return x

    monkeypatch.setattr(completion, "complete", remembered)
    flags = ["--ckpt", *checkpoints, "--out", str(tmp_path / "x"), "--references", "12", "--evaluations", "20"]
    completion.main(flags)
    printed, rows = capsys.readouterr().out, read_rows(tmp_path / "x.csv", completion.Row)
    assert len(rows) == 2 * (2 + 4)  # a SiT model takes no map
    assert len({row.fd for row in rows}) == len(rows)  # no two do the same
    assert "| SiT-way |" in printed and "| ComboStoc-way |" in printed
    assert all(kept < 1e-6 < 0.1 < new for _, kept, new in made)
    assert (tmp_path / "x-half.png").is_file() and (tmp_path / "x-rest.png").is_file()

    made.clear()
    completion.main(flags)
    assert len(made) == 4  # pictures only: a model and a part each


@pytest.mark.parametrize(("repeats", "tolerance"), [(1, None), (20, 0.06)])
def test_repeated_steps_find_the_rest_of_a_gaussian(repeats, tolerance):
    """Data (a, b) with correlation 0.9 and a = 1: b is normal with mean 0.9 and variance 0.19.

    The velocity is exact, v = E[x1 - x0 | x_t] = (t S - (1 - t) I) (t^2 S + (1 - t)^2 I)^-1 x_t.
    """
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    eye, number = torch.eye(2), 4000

    def field(x, t):
        t = t[0]
        gain = (t * cov - (1 - t) * eye) @ torch.linalg.inv(t**2 * cov + (1 - t) ** 2 * eye)
        return (x.flatten(1) @ gain.T).reshape(x.shape)

    class Noise(ImageNoise):
        def randn(self, shape, device):
            return torch.randn(number, *shape, generator=self.generators[0])

        def randn_like(self, x):
            return torch.randn(x.shape, generator=self.generators[0])

    reference = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(number, -1, -1, -1)
    known = torch.tensor([1.0, 0.0]).reshape(2, 1, 1)
    noise, transport = Noise(0, [0]), create_transport()
    x = completion.replacement(field, transport, reference, known, noise, steps=100, repeats=repeats)
    assert torch.equal(x[:, 0], reference[:, 0])
    mean, variance = x[:, 1].mean().item(), x[:, 1].var().item()
    if tolerance is None:  # what is known comes too late for what is already decided
        assert mean < 0.8
    else:
        assert mean == pytest.approx(0.9, abs=tolerance) and variance == pytest.approx(0.19, abs=tolerance)


@pytest.mark.parametrize(("size", "hole"), [(8, 4), (28, 10), (32, 12)])
def test_hole_is_in_the_middle(size, hole):
    known = completion.known_part("rest", 3, size)
    assert (known == 0).sum() == hole**2
    assert torch.equal(known, known.flip(-1)) and torch.equal(known, known.transpose(-1, -2))


def test_folder_of_latents_and_missing_folder_are_refused(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["completion.py", "--ckpt", checkpoints[0], "--out", str(tmp_path / "no" / "x")])
    with pytest.raises(SystemExit) as ended:
        run_program(completion.main)
    assert ended.value.code == 1 and "does not exist" in capsys.readouterr().err
