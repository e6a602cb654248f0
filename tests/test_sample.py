import argparse
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sample
import sample_ddp
from data.pictures import to_uint8
from kinds import model_config
from models import SiT_models
from runtime import checkpoint
from runtime.errors import DataError
from sampling.network import ImageNoise, guided_by
from tests.forked import run_forked
from tests.runtime.test_checkpoint import predecessor_checkpoint
from transport import Sampler, create_transport

FAST = ["--num-sampling-steps", "4"]


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("mode", ["ODE", "SDE"])
def test_from_the_command_line(trained, tmp_path, mode):
    """Nothing about the model is retyped; ten classes, four rows, a caption for each."""
    result = run_forked("sample.py", mode, "--ckpt", trained / "ckpt.pt", *FAST, cwd=tmp_path)
    assert "40 pictures in sample.png" in result.stdout and "model evaluations" in result.stdout
    assert picture(tmp_path / "sample.png").shape == (4 * 82 + 4, 10 * 68 + 4, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["sample.png"]


def run(trained, tmp_path, *args: str, mode: str = "SDE", name: str = "a.png") -> np.ndarray:
    """sample.py in this process."""
    sample.main([mode, "--ckpt", str(trained / "ckpt.pt"), *FAST, "--out", str(tmp_path / name), *args])
    return picture(tmp_path / name)


def test_the_seed_decides(trained, tmp_path):
    first = run(trained, tmp_path, "--class-labels", "1", "2")
    assert np.array_equal(first, run(trained, tmp_path, "--class-labels", "1", "2"))
    assert not np.array_equal(first, run(trained, tmp_path, "--class-labels", "1", "2", "--seed", "1"))


@pytest.mark.parametrize("mode", ["ODE", "SDE"])
def test_the_batch_size_does_not(trained, tmp_path, mode):
    labels = ["--class-labels", "1", "2", "3", "4", "5"]
    flags = labels + (["--sampling-method", "midpoint"] if mode == "ODE" else [])
    whole = run(trained, tmp_path, *flags, mode=mode)
    parts = run(trained, tmp_path, *flags, "--batch-size", "2", mode=mode)
    assert abs(whole.astype(int) - parts).max() <= 1


def test_labels_and_guidance_reach_the_model(random_checkpoint, tmp_path):
    folder = random_checkpoint.parent
    base = run(folder, tmp_path, "--class-labels", "1", "--cfg-scale", "1")
    assert not np.array_equal(base, run(folder, tmp_path, "--class-labels", "1", "--cfg-scale", "4"))
    assert not np.array_equal(base, run(folder, tmp_path, "--class-labels", "2", "--cfg-scale", "1"))


def test_samples_without_a_class(random_checkpoint, tmp_path, capsys):
    """By the null class's word, or --cfg-scale 0: the model with its last label, all channels, no guidance."""
    state = torch.load(random_checkpoint, weights_only=True)
    model = model_config(state, "").build()
    model.load_state_dict(state)
    noise = ImageNoise(0, range(2))
    z = noise.randn((3, 8, 8), torch.device("cpu"))
    draw = Sampler(create_transport()).sample_sde(diffusion_form="sigma", num_steps=4, randn=noise.randn_like)
    expected = to_uint8(draw(z, model.eval(), y=torch.tensor([10, 10]))[-1])
    folder = random_checkpoint.parent
    for flags in (["--class-labels", "null", "null"], ["--class-labels", "null", "null", "--cfg-scale", "0"]):
        shown = run(folder, tmp_path, *flags)
        for k in range(2):
            tile = shown[4 : 4 + 64 : 8, 4 + 68 * k : 4 + 68 * k + 64 : 8]
            assert abs(tile.astype(int) - expected[k]).max() <= 1
    assert not np.array_equal(run(folder, tmp_path, "--class-labels", "3", "null"), shown)
    capsys.readouterr()
    assert run(folder, tmp_path, "--cfg-scale", "0").shape[1] == 4 * 68 + 4
    assert "8 pictures in" in capsys.readouterr().out


def test_what_has_no_effect_is_said_and_changes_nothing(random_checkpoint, tmp_path, capsys):
    folder = random_checkpoint.parent
    ode, sde = ["--class-labels", "1", "--cfg-scale", "2"], ["--class-labels", "1", "--cfg-scale", "1", *FAST]
    for mode, flags, typed, says in (
        (
            "ODE",
            ode,
            "--num-sampling-steps 9",
            "--num-sampling-steps has no effect on dopri5, which chooses its own st",
        ),
        (
            "ODE",
            [*ode, *FAST],
            "--sampling-method euler --atol 1 --rtol=1",
            "--atol and --rtol have no effect on euler, whose s",
        ),
        ("SDE", sde, "--last-step None --last-step-size 0.1", "--last-step-size has no effect with --last-step None"),
        ("SDE", sde, "--last-step-size 0 --last-step Tweedie", "--last-step has no effect with --last-step-size 0"),
        (
            "SDE",
            sde,
            "--cfg-channels all --guidance-interval 0 0.5",
            "--cfg-channels and --guidance-interval have no e",
        ),
        ("SDE", sde, "--train-eps 0.1", "--train-eps has no effect in sampling, only in training"),
    ):
        plain = typed.split()[: 2 if typed.startswith(("--sampling", "--last-step")) else 0]
        sample.main([mode, "--ckpt", str(random_checkpoint), *flags, *plain, "--out", str(tmp_path / "plain.png")])
        capsys.readouterr()
        args = [mode, "--ckpt", str(random_checkpoint), *flags, *typed.split()]
        sample.main([*args, "--out", str(tmp_path / "typed.png")])
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and says in said[0], said
        assert np.array_equal(picture(tmp_path / "typed.png"), picture(tmp_path / "plain.png"))
    run(folder, tmp_path, "--cfg-scale", "2", "--guidance-interval", "0", "0.5")
    implicit = ["ODE", "--ckpt", str(random_checkpoint), "--sampling-method", "fixed_adams", "--atol", "1", *FAST]
    sample.main([*implicit, "--class-labels", "1", "--out", str(tmp_path / "a.png")])
    assert capsys.readouterr().err == ""


def test_guidance_on_all_channels(tmp_path):
    """On four channels the choice matters, and the fourth is the one it matters to."""
    torch.manual_seed(0)
    model = SiT_models["SiT-XS/4"](input_size=8, in_channels=4, num_classes=10)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, t, y = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2])
    for flag, guides_fourth in (("3", False), ("all", True)):
        args = argparse.Namespace(cfg_scale=3.0, cfg_channels=flag, guidance_interval=[0.0, 1.0], precision="fp32")
        output, plain = guided_by(args, SimpleNamespace(model=model.eval(), layout=None))(x, t, y), model(x, t, y)
        assert not torch.allclose(output[:, :3], plain[:, :3])
        assert torch.allclose(output[:, 3], plain[:, 3]) is not guides_fourth


def test_a_model_with_room_for_more_classes_shows_those_it_knows(trained, tmp_path):
    content = checkpoint.load(trained / "ckpt.pt")
    content["class_names"] = ["ant", "bee"]
    checkpoint.save(tmp_path / "ckpt.pt", content)
    assert run(tmp_path, tmp_path).shape == (4 * 82 + 4, 2 * 68 + 4, 3)
    assert run(tmp_path, tmp_path, "--class-labels", "7").shape == (86, 72, 3)


def test_a_name_draws_what_its_number_draws(trained, tmp_path):
    content = checkpoint.load(trained / "ckpt.pt")
    content["class_names"] = [*"abcdefghi", "犬"]
    checkpoint.save(tmp_path / "ckpt.pt", content)
    by_number = run(tmp_path, tmp_path, "--class-labels", "9", "1")
    assert np.array_equal(run(tmp_path, tmp_path, "--class-labels", "犬", "b"), by_number)
    assert not np.array_equal(run(tmp_path, tmp_path, "--class-labels", "b", "犬"), by_number)


def test_learn_sigma_is_read_from_the_checkpoint(tmp_path):
    """Also from EMA-only files, .safetensors and the predecessors' layout."""
    for learn_sigma in (False, True):
        torch.manual_seed(0)
        model = SiT_models["SiT-XS/4"](input_size=8, in_channels=3, num_classes=5, learn_sigma=learn_sigma)
        state = model.state_dict()
        torch.save(predecessor_checkpoint(state, model="SiT-XS/4", vae="none"), tmp_path / "ckpt.pt")
        old = run(tmp_path, tmp_path, mode="ODE")
        torch.save(state, tmp_path / "ckpt.pt")
        assert np.array_equal(run(tmp_path, tmp_path, mode="ODE"), old)
        save_file(state, tmp_path / "ema.safetensors")
        sample.main(["ODE", "--ckpt", str(tmp_path / "ema.safetensors"), *FAST, "--out", str(tmp_path / "b.png")])
        assert np.array_equal(picture(tmp_path / "b.png"), old)


def test_the_path_of_the_training_is_the_path_of_the_sampling(trained, tmp_path):
    content = checkpoint.load(trained / "ckpt.pt")
    content["args"]["path_type"] = "GVP"
    checkpoint.save(tmp_path / "ckpt.pt", content)
    assert not np.array_equal(run(tmp_path, tmp_path), run(trained, tmp_path))


def test_reverse_goes_to_noise_and_back(trained, tmp_path):
    result = run_forked(
        *("sample.py", "ODE", "--ckpt", trained / "ckpt.pt", "--reverse", "--data-path", "digits"),
        *("--sampling-method", "rk4", "--num-sampling-steps", "41"),
        cwd=tmp_path,
    )
    error = float(result.stdout.split("relative error ")[1])
    assert error < 1e-3
    assert np.load(tmp_path / "sample.noise.npy").shape == (8, 1, 8, 8)
    assert picture(tmp_path / "sample.png").shape[0] == 2 * 68 + 4


def fails_to_fetch(asked: list[str]):
    def fetch(repository, file):
        asked.append(file)
        raise OSError("no route to host")

    return fetch


@pytest.mark.parametrize(("program", "mode"), [(sample, "ODE"), (sample, "SDE"), (sample_ddp, "ODE")])
def test_without_a_checkpoint_it_is_sits_default_model(program, mode, monkeypatch, tmp_path):
    """`sample.py ODE --image-size 256 --seed 1` is SiT's own command."""
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails_to_fetch(asked))
    monkeypatch.chdir(tmp_path)
    seed = ["--seed", "1"] if program is sample else ["--global-seed", "1"]
    with pytest.raises(DataError, match=r"SiT-XL-2-256\.pt could not be fetched .*no route to host"):
        program.main([mode, "--image-size", "256", *seed])
    assert asked == ["SiT-XL-2-256.pt"] and not list(tmp_path.iterdir())


def test_sampling_in_latent_space(tmp_path, tiny_vae):
    torch.manual_seed(0)
    state = SiT_models["SiT-XS/4"](input_size=8, in_channels=4, num_classes=5).state_dict()
    torch.save(predecessor_checkpoint(state, vae=str(tiny_vae)), tmp_path / "ckpt.pt")
    assert run(tmp_path, tmp_path, "--class-labels", "1").shape == (64 + 14 + 8, 72, 3)  # 16 pixels, enlarged 4 times
