import math

import torch

from data.autoencoder import PixelSpace, load_autoencoder
from sampling.likelihood import bits_per_dim, to_latents
from sampling.network import ImageNoise
from tests.faults import launch


def test_uniform_noise_on_bytes_costs_eight_bits():
    """The density of the uniform distribution on [-1, 1], in units of a byte's bin, is 256 values."""
    dimensions = 48
    logp = torch.full((3,), dimensions * math.log(1 / (256 / 127.5)))
    _, offset = to_latents(torch.zeros(3, 3, 4, 4), PixelSpace(3), ImageNoise(0, range(3)))
    torch.testing.assert_close(bits_per_dim(logp, dimensions, offset), torch.full((3,), 8.0))


def test_dequantisation_stays_within_a_bin():
    images = torch.zeros(64, 1, 8, 8)
    x, _ = to_latents(images, PixelSpace(1), ImageNoise(0, range(64)))
    assert abs(x).max() <= 0.5 / 127.5 and abs(x.std() - 1 / 127.5 / math.sqrt(12)) < 1e-4


def test_latents_are_scored_at_the_posterior_mean(tiny_vae):
    space = load_autoencoder(str(tiny_vae), torch.device("cpu"))
    images = torch.rand(2, 3, 16, 16)
    x, offset = to_latents(images, space, ImageNoise(0, range(2)))
    assert offset == 0 and torch.equal(x, space.encode(images, sample=False))


def bits(output: str) -> float:
    (line,) = [line for line in output.splitlines() if "bits per dimension" in line]
    return float(line.split()[0])


def test_scoring_on_one_and_two_processes(trained, tmp_path):
    """`sample.py` and `sample_ddp.py` score a folder and agree; each image has its own dequantisation and probe."""
    from PIL import Image

    from data.pictures import to_uint8
    from data.sets import Digits

    data = Digits(8, 1)
    (tmp_path / "flat").mkdir()
    for i in range(6):
        Image.fromarray(to_uint8(data[i, False][0][None])[0]).save(tmp_path / "flat" / f"{i}.png")
    args = ["ODE", "--ckpt", str(trained / "ckpt.pt"), "--likelihood", "--data-path", str(tmp_path / "flat")]
    fixed = ["--sampling-method", "rk4", "--num-sampling-steps", "9"]
    assert launch([*args, *fixed], tmp_path / "one", program="sample") == [0]
    assert launch([*args, *fixed], tmp_path / "two", program="sample_ddp", world_size=2) == [0, 0]
    one, two = ((tmp_path / name).read_text() for name in ("one", "two"))
    assert "6 images" in one and "6 images" in two
    assert abs(bits(one) - bits(two)) < 2e-3
