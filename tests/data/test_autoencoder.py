import json
import shutil

import pytest
import torch

from data.autoencoder import latent_size, load_autoencoder
from runtime.errors import DataError, UsageError

CPU = torch.device("cpu")


def test_none_is_the_identity_in_the_datas_channels():
    space = load_autoencoder("none", CPU, pixel_channels=1)
    x = torch.randn(2, 1, 8, 8)
    assert (space.factor, space.channels) == (1, 1)
    assert torch.equal(space.encode(x), x) and torch.equal(space.decode(x), x)


def test_a_local_folder(tiny_vae):
    space = load_autoencoder(str(tiny_vae), CPU)
    assert (space.factor, space.channels, space.scale, space.shift) == (2, 4, 0.18215, 0.0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean = space.encode(images, sample=False)
    assert mean.shape == (2, 4, 8, 8)
    posterior = space.vae.encode(images).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.18215)
    torch.testing.assert_close(space.decode(mean), space.vae.decode(posterior.mean).sample, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    draw = space.encode(images)
    torch.manual_seed(1)
    torch.testing.assert_close(draw, posterior.sample() * 0.18215)
    assert not torch.equal(draw, mean)
    assert not any(p.requires_grad for p in space.vae.parameters())


def test_scale_and_shift_come_from_the_configuration(tiny_vae, tmp_path):
    for file in tiny_vae.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"scaling_factor": 0.36, "shift_factor": 0.11}
    (tmp_path / "config.json").write_text(json.dumps(config))
    space, images = load_autoencoder(str(tmp_path), CPU), torch.rand(1, 3, 16, 16)
    z = space.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(space.encode(images, sample=False), (z - 0.11) * 0.36)
    torch.testing.assert_close(space.decode((z - 0.11) * 0.36), space.vae.decode(z).sample, rtol=1e-4, atol=1e-5)


@pytest.fixture
def configured(tiny_vae, tmp_path):
    """The tiny autoencoder with other values in its configuration."""

    def copy(**values):
        for file in tiny_vae.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text()) | values
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return copy


def test_each_channel_has_its_mean_and_standard_deviation(configured):
    """As SDXL's pipelines in diffusers: with the scaling factor, and decoding undoes it."""
    mean, std = [0.5, -1.0, 2.0, 0.25], [2.0, 0.5, 1.0, 4.0]
    space = load_autoencoder(configured(latents_mean=mean, latents_std=std, scaling_factor=0.5), CPU)
    images = torch.rand(3, 3, 16, 16)
    posterior = space.vae.encode(images).latent_dist
    m, s = torch.tensor(mean).view(1, 4, 1, 1), torch.tensor(std).view(1, 4, 1, 1)
    expected = (posterior.mean - m) * 0.5 / s
    torch.testing.assert_close(space.encode(images, sample=False), expected)
    torch.testing.assert_close(space.moments(images)[:, 1], posterior.std * 0.5 / s)
    decoded = space.vae.decode(posterior.mean).sample
    torch.testing.assert_close(space.decode(expected), decoded, rtol=1e-4, atol=1e-5)


def test_a_mean_without_a_standard_deviation_is_none(configured):
    space = load_autoencoder(configured(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=None), CPU)
    assert (space.scale, space.shift) == (0.18215, 0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"latents_mean": [0.0] * 4, "latents_std": 2.0},
        {"latents_mean": [[0.0]] * 4, "latents_std": [1.0] * 4},
    ],
)
def test_means_and_deviations_that_fit_no_channels_are_named(configured, values):
    with pytest.raises(DataError, match=r"could not be loaded: latents_(mean|std) is .*, not a number for each of 4"):
        load_autoencoder(configured(**values), CPU)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scaling_factor": None}, "scaling_factor is None, not a number"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0: all latents would be 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor is nan, not a number"),
        ({"scaling_factor": "0.18215"}, "scaling_factor is '0.18215', not a number"),
        ({"shift_factor": [0.1] * 4}, r"shift_factor is \[0.1, .*, not a number"),
        ({"shift_factor": float("inf")}, "shift_factor is inf, not a number"),
        ({"scaling_factor": 0, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "scaling_factor is 0: all"),
    ],
)
def test_a_scale_or_shift_that_is_no_number_is_named(configured, values, said):
    with pytest.raises(DataError, match=f"could not be loaded: {said}"):
        load_autoencoder(configured(**values), CPU)


def test_a_configuration_without_a_scale_has_diffusers_own(configured, tmp_path):
    folder = configured()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "scaling_factor"}))
    assert load_autoencoder(folder, CPU).scale == 0.18215


def test_weights_in_half_precision_alone_are_read(tiny_vae, tmp_path):
    """As `save_pretrained(variant="fp16")` leaves them; they compute in float32."""
    space = load_autoencoder(str(tiny_vae), CPU)
    type(space.vae).from_pretrained(tiny_vae).half().save_pretrained(tmp_path, variant="fp16")
    half, images = load_autoencoder(str(tmp_path), CPU), torch.rand(1, 3, 16, 16)
    assert half.vae.dtype == torch.float32
    torch.testing.assert_close(half.encode(images, False), space.encode(images, False), rtol=1e-2, atol=1e-2)


def test_a_pipelines_folder_and_a_file_are_told_which_folder_is_meant(tiny_vae, tmp_path):
    shutil.copytree(tiny_vae, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(DataError, match=r"is the folder of a whole pipeline; give .*/vae$"):
        load_autoencoder(str(tmp_path), CPU)
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    with pytest.raises(DataError, match=r"\.safetensors is a file; give its folder, .*/vae$"):
        load_autoencoder(str(weights), CPU)
    (tmp_path / "vae.ckpt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"vae\.ckpt is a file$"):
        load_autoencoder(str(tmp_path / "vae.ckpt"), CPU)


def test_what_is_no_autoencoder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"neither ema, mse, none nor a diffusers folder"):
        load_autoencoder(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="could not be loaded"):
        load_autoencoder(str(tmp_path), CPU)


@pytest.mark.parametrize("name", ["ema", "mse"])
def test_published_names_are_asked_of_the_hub(name, monkeypatch, tiny_vae):
    from diffusers.models import AutoencoderKL

    asked = []
    original = AutoencoderKL.from_pretrained

    def from_pretrained(source):
        asked.append(source)
        return original(tiny_vae)

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", from_pretrained)
    load_autoencoder(name, CPU)
    assert asked == [f"stabilityai/sd-vae-ft-{name}"]


def test_what_a_clone_without_git_lfs_has_is_said(tiny_vae, tmp_path):
    shutil.copytree(tiny_vae, tmp_path / "vae")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 334643276\n"
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_text(pointer)
    with pytest.raises(DataError, match=r"vae could not be loaded: diffusion_.*\.safetensors is a Git LFS pointer"):
        load_autoencoder(str(tmp_path / "vae"), CPU)


def test_without_the_hub_pixel_space_is_not_suggested(monkeypatch):
    """To a model of latents it is of no use."""
    from diffusers.models import AutoencoderKL

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", fail)
    with pytest.raises(DataError, match=r"no network \(without network, give --vae a diffusers folder of it\)$"):
        load_autoencoder("ema", CPU)


def test_image_sizes():
    assert latent_size(256, 8, "SiT-XL/2") == 32 and latent_size(8, 1, "ComboStoc-XS/4") == 8
    with pytest.raises(UsageError, match="--image-size 250 is not a multiple of 16"):
        latent_size(250, 8, "SiT-XL/2")
