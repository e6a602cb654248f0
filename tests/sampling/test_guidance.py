import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import sample_ddp
from models import ComboStoc, ComboStoc_models, SiT, SiT_models, guided_channels
from runtime.errors import DataError, UsageError
from sampling.guidance import away_from, guided
from sampling.network import guided as in_precision
from sampling.network import guided_by
from shapes.network import Parts
from tests.conftest import GaussianModel
from tests.test_models import random_model
from training.preview import preview
from transport import Sampler, create_transport
from transport.path import ICPlan

FAST = ["--sampling-method", "heun2", "--num-sampling-steps", "4"]


# ---- channels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "guided_ones"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (16, 16), (32, 32)])
def test_three_of_four_channels_are_guided_and_all_of_any_other_number(channels, guided_ones):
    model = random_model(in_channels=channels).eval()
    x, t, y = torch.randn(1, channels, 8, 8), torch.rand(1), torch.tensor([2])
    cond = model(x, t, y)
    by_default = [
        guided(model, 3.0)(x, t, y),
        in_precision(model, 3.0)(x, t, y),
        model.forward_with_cfg(x.repeat(2, 1, 1, 1), t.repeat(2), torch.tensor([2, 10]), 3.0)[:1],
        guided_by(
            argparse.Namespace(cfg_scale=3.0, cfg_channels=None, guidance_interval=(0.0, 1.0), precision="fp32"),
            SimpleNamespace(model=model),
        )(x, t, y),
    ]
    for output in by_default:
        differs = [not torch.allclose(output[:, c], cond[:, c], atol=1e-5) for c in range(channels)]
        assert differs == [c < guided_ones for c in range(channels)]
    assert (guided_channels(3, channels), guided_channels(None, channels)) == (min(3, channels), channels)


def test_entries_with_times_of_their_own_are_guided_in_their_interval_in_all_channels():
    """Also parts of shapes, whose second dimension is no channel."""
    model = random_model(in_channels=6).eval()
    x, y, t = torch.randn(2, 6, 8, 8), torch.tensor([2, 3]), torch.rand(2, 6, 8, 8)
    inside = t <= 0.5
    cond, everywhere = model(x, t, y), guided(model, 3.0)(x, t, y)
    torch.testing.assert_close(guided(model, 3.0, interval=(0, 0.5))(x, t, y), torch.where(inside, everywhere, cond))
    parts = Parts(in_channels=4, hidden_size=48, depth=1, num_heads=3, num_classes=5).eval()
    for p in parts.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, t = torch.randn(2, 7, 4), torch.rand(2, 7, 4)
    expected = torch.where(t <= 0.5, guided(parts, 3.0)(x, t, y), parts(x, t, y))
    torch.testing.assert_close(guided(parts, 3.0, interval=(0, 0.5))(x, t, y), expected)


def checkpoint_of(path, name="ComboStoc-XS/4", channels=3, size=8, **about):
    torch.manual_seed(sum(map(ord, path.name)))
    model = (SiT_models | ComboStoc_models)[name](input_size=size, in_channels=channels, num_classes=10)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    torch.save({"ema": model.state_dict(), **about}, path)
    return str(path)


def test_previews_of_training_guide_as_samples_do(monkeypatch):
    asked = []
    model = random_model(in_channels=8).eval()
    cfg = SiT.forward_with_cfg

    def spied(self, *args, **kwargs):
        output = cfg(self, *args, **kwargs)
        asked.append(torch.equal(output, cfg(self, *args[:4], None)))
        return output

    monkeypatch.setattr(ComboStoc, "forward_with_cfg", spied)
    space = SimpleNamespace(decode=lambda x: x[:, :3].detach().clamp(-1, 1))
    kind = SimpleNamespace(pictures=lambda x, space: (x.permute(0, 2, 3, 1).numpy() * 127 + 127).astype("uint8"))
    data = SimpleNamespace(
        autoencoder=space, input_shape=(8, 8, 8), dataset=SimpleNamespace(class_names=["a", "b"]), num_classes=10
    )
    args = argparse.Namespace(cfg_scale=2.0, precision="fp32", global_seed=0)
    monkeypatch.setattr(Sampler, "sample_ode", lambda self: lambda z, model, y: [model(z, torch.full((16,), 0.5), y)])
    preview(args, kind, model, create_transport(), data, torch.device("cpu"))
    assert asked == [True]


@pytest.mark.parametrize(
    ("channels", "flags", "recorded"),
    [
        (3, [], "3"),
        (4, [], "3"),
        (4, ["--cfg-channels", "all"], "all"),
        (8, [], "all"),
        (8, ["--cfg-channels", "3"], "3"),
    ],
)
@pytest.mark.parametrize("scale", ["1", "2"])
def test_what_records_say_of_channels(tmp_path, monkeypatch, channels, flags, recorded, scale):
    """Of four channels what they said before there was another default; without guidance always the same."""
    monkeypatch.setattr("sampling.images.load_autoencoder", lambda *_: SimpleNamespace(factor=1, channels=channels))
    monkeypatch.setattr("sampling.images.check_channels", lambda *_: None)
    written = {}
    monkeypatch.setattr(
        sample_ddp, "sample_to_npz", lambda args, network, *_: written.update(sample_ddp.settings_of(args, network))
    )
    ckpt = checkpoint_of(tmp_path / "c.pt", channels=channels)
    sample_ddp.main(["ODE", "--ckpt", ckpt, "--cfg-scale", scale, *flags])
    assert written["cfg_channels"] == (recorded if scale == "2" else "3")
    assert not any("guide" in name for name in written)


# ---- autoguidance --------------------------------------------------------------------------------------------------


def test_autoguidance_is_exact_without_guidance_and_of_one_model():
    good, poor = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(away_from(poor, good, 1.0), good)
    assert torch.equal(away_from(good, good, 2.7), good)
    assert torch.equal(away_from(poor, good, torch.ones(2, 1, 4, 4)), good)
    torch.testing.assert_close(away_from(poor, good, 2.5), poor + 2.5 * (good - poor))
    with_variance = torch.cat([good, poor], 1)
    assert torch.equal(away_from(poor, with_variance, 2.0)[:, 3:], poor)
    model, x, t, y = random_model().eval(), torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2])
    for w in (1, 2.5):
        assert torch.equal(guided(model, w, guide=model)(x, t, y), model(x, t, y))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.6)])
def test_autoguidance_of_gaussians_has_the_moments_of_the_closed_form(interval):
    """Two Gaussians of one deviation: the guided velocity is that of the mean poor + w (good - poor) while guided."""
    path, w = ICPlan(), 2.5
    good, poor = GaussianModel(path, "velocity", 1.0, 0.5), GaussianModel(path, "velocity", 0.6, 0.5)
    low, high = interval
    z = torch.randn(64, 1, dtype=torch.float64)
    field = guided(lambda x, t, y: good(x, t), w, interval=interval, guide=lambda x, t, y: poor(x, t))
    ode = Sampler(create_transport()).sample_ode(sampling_method="rk4", num_steps=301)
    x = ode(z, field, y=torch.zeros(64, dtype=torch.long))[-1]
    assert ode.nfe == 1200  # both models in one
    # dx/dt = a x + b: of mean mu b is mu (1 - t a'), and x(1) = mu + sd z; guidance shifts mu by (w - 1) 0.4 in between
    s = torch.linspace(low, high, 100_001, dtype=torch.float64)
    std = (s**2 * 0.25 + (1 - s) ** 2).sqrt()
    rate = 1 - s * (0.25 * s - (1 - s)) / std**2  # d(mean)/dt of mu = 1, less what the state brings
    gained = 0.5 * torch.trapezoid((w - 1) * 0.4 * rate / std, s)
    torch.testing.assert_close(x, 1.0 + 0.5 * z + gained, atol=2e-3, rtol=0)


def test_both_models_get_the_label_and_the_guide_is_asked_in_the_interval_alone():
    asked = []
    model = random_model().eval()
    poor = random_model(SiT, depth=1).eval()
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 10])

    def guide(x, t, y):
        asked.append(y.tolist())
        return poor(x, t, y)

    field = guided(model, 2.0, interval=(0.25, 0.5), guide=guide)
    for t, inside in ((0.2, False), (0.25, True), (0.5, True), (0.6, False)):
        t = torch.full((3,), t)
        expected = 2 * model(x, t, y) - poor(x, t, y) if inside else model(x, t, y)
        torch.testing.assert_close(field(x, t, y), expected)
    assert asked == [[1, 2, 10]] * 2


def grid_of(tmp_path, *flags):
    sample.main(["ODE", *flags, *FAST, "--class-labels", "1", "2", "--out", str(tmp_path / "s.png")])
    return np.asarray(Image.open(tmp_path / "s.png"))


def test_a_checkpoint_guides_another(tmp_path, capsys):
    good, poor = checkpoint_of(tmp_path / "good.pt"), checkpoint_of(tmp_path / "poor.pt", "SiT-XS/2")
    plain = grid_of(tmp_path, "--ckpt", good, "--cfg-scale", "1")
    by_itself = grid_of(tmp_path, "--ckpt", good, "--guide-ckpt", good, "--cfg-scale", "3")
    assert np.array_equal(plain, by_itself)
    assert not np.array_equal(grid_of(tmp_path, "--ckpt", good, "--guide-ckpt", poor, "--cfg-scale", "3"), plain)
    assert "6 model evaluations a batch" in capsys.readouterr().out
    flags = ["--ckpt", good, "--guide-ckpt", poor, "--cfg-scale", "1"]
    assert np.array_equal(grid_of(tmp_path, *flags), plain)
    assert "--guide-ckpt has no effect without guidance" in capsys.readouterr().err
    grid_of(tmp_path, "--ckpt", good, "--guide-ckpt", poor, "--cfg-scale", "2", "--cfg-channels", "3")
    assert "--cfg-channels has no effect on --guide-ckpt, which guides all channels" in capsys.readouterr().err
    sample.main(["SDE", "--ckpt", good, "--guide-ckpt", poor, "--class-labels", "null", "--cfg-scale", "2",
                 "--num-sampling-steps", "3", "--out", str(tmp_path / "s.png")])  # fmt: skip


@pytest.mark.parametrize("damaged", ["good", "poor"])
@pytest.mark.parametrize(("name", "value"), [("times", "early"), ("sample_eps", 0.7)])
def test_what_either_was_trained_with_is_checked(tmp_path, damaged, name, value):
    args = {which: {"args": {name: value}} if which == damaged else {} for which in ("good", "poor")}
    good, poor = (checkpoint_of(tmp_path / f"{which}.pt", **args[which]) for which in ("good", "poor"))
    with pytest.raises(DataError, match=rf"{damaged}\.pt was trained with {name} {value!r}; what is known is"):
        grid_of(tmp_path, "--ckpt", good, "--guide-ckpt", poor, "--cfg-scale", "2")


def test_the_record_of_samples_names_both_checkpoints(tmp_path):
    good, poor = checkpoint_of(tmp_path / "good.pt"), checkpoint_of(tmp_path / "poor.pt", "SiT-XS/2")
    for guide in ([], ["--guide-ckpt", poor], ["--guide-ckpt", good]):
        args = ["ODE", "--ckpt", good, *guide, "--cfg-scale", "2", "--num-fid-samples", "2", *FAST]
        sample_ddp.main([*args, "--sample-dir", str(tmp_path / "out")])
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/settings.json")]
    assert len(records) == len({record.get("guide_sha256") for record in records}) == 3
    assert len({record["checkpoint_sha256"] for record in records}) == 1
    assert not any("guide_ckpt" in record for record in records)


@pytest.mark.parametrize(
    ("guide", "line"),
    [
        ({"channels": 1}, "inputs of 1 x 8 x 8 and 10 classes.*both must have the same inputs and classes"),
        ({"size": 16}, "inputs of 3 x 16 x 16 and 10 classes.*both must have the same inputs and classes"),
        ({"args": {"path_type": "GVP"}}, "was trained with path_type GVP, .* with Linear: both must have the same"),
        ({"args": {"prediction": "data"}}, "was trained with prediction data, .* with velocity: both must have"),
        ({"latent_scale": {"scale": 2.0, "shift": 0.0}}, "has another latent_scale than checkpoint"),
        ({"class_names": ["x", "y"]}, "has another class_names than checkpoint"),
    ],
    ids=str,
)
def test_a_guide_of_another_kind_ends_in_one_line(tmp_path, guide, line):
    good = checkpoint_of(tmp_path / "good.pt", class_names=["a", "b"])
    poor = checkpoint_of(tmp_path / "poor.pt", **guide)
    with pytest.raises(UsageError, match=rf"--guide-ckpt .*poor\.pt .*{line}") as raised:
        grid_of(tmp_path, "--ckpt", good, "--guide-ckpt", poor, "--cfg-scale", "2")
    assert "\n" not in str(raised.value) and not (tmp_path / "s.png").exists()


def test_a_guide_with_one_time_for_all_cannot_follow_a_map(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "r.png")
    good, poor = checkpoint_of(tmp_path / "good.pt"), checkpoint_of(tmp_path / "poor.pt", "SiT-XS/2")
    flags = ["ODE", "--ckpt", good, "--reference", str(tmp_path / "r.png"), "--cfg-scale", "2", *FAST]
    flags += ["--class-labels", "1", "--out", str(tmp_path / "s.png"), "--variations", "1", "--guide-ckpt"]
    sample.main([*flags, poor, "--preserve", "0.5"])
    sample.main([*flags, good, "--preserve", "left:0.9"])
    with pytest.raises(UsageError, match="is a SiT model, which has one time for all of a picture"):
        sample.main([*flags, poor, "--preserve", "left:0.9"])
