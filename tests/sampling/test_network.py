import argparse
import re

import pytest
import torch

from kinds import load_network
from runtime.command_line import with_values
from runtime.errors import DataError
from sampling.arguments import sampling_parser
from sampling.loading import check_trained
from sampling.network import ImageNoise, guided, guided_by
from tests.conftest import GaussianModel
from tests.test_models import random_model
from train_utils import ModelConfig, build_sampler
from transport import Sampler, create_transport


def test_noise_of_an_image_does_not_depend_on_its_batch():
    whole = ImageNoise(3, range(8))
    labels, z = whole.labels(10), whole.randn((2, 4, 4), torch.device("cpu"))
    steps = [whole.randn_like(z) for _ in range(3)]
    for indices in ([0, 1, 2], [5], [7, 3]):
        part = ImageNoise(3, indices)
        assert torch.equal(part.labels(10), labels[indices])
        assert torch.equal(part.randn((2, 4, 4), torch.device("cpu")), z[indices])
        for step in steps:
            assert torch.equal(part.randn_like(z[indices]), step[indices])
    assert not torch.equal(ImageNoise(4, range(8)).randn((2, 4, 4), torch.device("cpu")), z)


def test_noise_and_labels_have_their_distributions():
    noise = ImageNoise(0, range(2000))
    labels, z = noise.labels(10), noise.randn((3, 4, 4), torch.device("cpu"))
    assert labels.bincount().min() > 140 and labels.bincount().numel() == 10
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert abs((z[:-1] * z[1:]).mean()) < 0.02  # neighbouring images are unrelated


def test_guidance_is_that_of_the_model_on_a_plain_batch():
    model = random_model().eval()
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([1, 2, 3])
    null = torch.full_like(y, model.num_classes)
    expected = model.forward_with_cfg(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]), 2.5)[:3]
    torch.testing.assert_close(guided(model, 2.5)(x, t, y=y), expected)
    torch.testing.assert_close(guided(model, 1)(x, t, y=y), model(x, t, y))


def test_a_model_is_sampled_by_the_method_it_was_trained_with(tmp_path, random_checkpoint):
    """Graded control asks whether velocities are compensated; older checkpoints do not say, and are."""
    state = torch.load(random_checkpoint, weights_only=True)
    for trained, compensates in (({}, True), ({"compensation": "on"}, True), ({"compensation": "off"}, False)):
        torch.save({"ema": state, "args": {"combostoc_type": "UNSYNC_ALL", **trained}}, tmp_path / "c.pt")
        parser = sampling_parser("", lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False)
        args = parser.parse_args(["ODE", "--ckpt", str(tmp_path / "c.pt")])
        assert load_network(args, torch.device("cpu"), "none").transport.compensates is compensates


def test_guidance_in_an_interval_of_time():
    """Inside it guidance, outside the conditional model alone, on half as many samples."""
    model = random_model().eval()
    batches = []
    forward = model.forward
    model.forward = lambda x, t, y: batches.append(len(x)) or forward(x, t, y)
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3])
    everywhere, limited = guided(model, 2.5), guided(model, 2.5, interval=(0.25, 0.5))
    for t, inside in [(0.2, False), (0.25, True), (0.4, True), (0.5, True), (0.6, False)]:
        t = torch.full((3,), t)
        expected = everywhere(x, t, y) if inside else model(x, t, y)
        batches.clear()
        assert torch.equal(limited(x, t, y), expected)
        assert max(batches) == (6 if inside else 3)
    z, y = torch.randn(1, 4, 8, 8), torch.tensor([1])
    ode = Sampler(create_transport()).sample_ode(sampling_method="euler", num_steps=5)
    samples = [
        ode(z, guided(model, 4.0, interval=i), y=y)[-1] for i in ((0.0, 1.0), (0.0, 0.0), (0.4, 0.6), (0.9, 1.0))
    ]
    assert torch.equal(samples[3], ode(z, model, y=y)[-1])  # euler's last evaluation is at 0.75
    assert len({round(s.sum().item(), 4) for s in samples}) == 4


def test_bf16_sampling_is_close_and_keeps_the_state_in_float32(random_checkpoint):
    """Blocks hold bfloat16 weights, which is what autocast would make of them."""
    fields = {}
    for name in ("fp32", "bf16"):
        flags = ["ODE", "--ckpt", str(random_checkpoint), "--precision", name, "--cfg-scale", "1.5"]
        args = sampling_parser("", lambda sub: None, vae="none", cfg_scale=1.0, reverse=False).parse_args(flags)
        network = load_network(args, torch.device("cpu"), "none")
        fields[name] = guided_by(with_values(args, network.settings), network)
    assert network.model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert network.model.t_embedder.mlp[0].weight.dtype == torch.float32
    z, y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    ode = Sampler(network.transport).sample_ode(sampling_method="heun2", num_steps=9)
    exact, rounded = (ode(z, fields[name], y=y)[-1] for name in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "SDE", "sampling_method": "Euler", "last_step": "Mean"},
        {"mode": "SDE", "sampling_method": "Heun", "last_step": None},
        {"mode": "ODE", "sampling_method": "euler"},
        {"mode": "ODE", "sampling_method": "midpoint"},
        {"mode": "ODE", "sampling_method": "heun2"},
        {"mode": "ODE", "sampling_method": "heun3"},
        {"mode": "ODE", "sampling_method": "rk4"},
    ],
)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_progress_bars_total_is_what_the_sampler_does(settings, prediction):
    rest = {"diffusion_form": "sigma", "diffusion_norm": 1.0, "last_step_size": 0.04, "likelihood": False}
    rest |= {"max_evaluations": 10_000}
    args = argparse.Namespace(**(rest | settings), prediction=prediction, num_sampling_steps=9, atol=1e-6, rtol=1e-3)
    transport = create_transport(prediction=prediction)
    sampler = build_sampler(args, transport)
    sampler(torch.randn(2, 3), GaussianModel(transport.path_sampler, prediction, 0.0, 1.0))
    assert sampler.nfe == sampler.evaluations
    assert Sampler(transport).sample_ode().evaluations is None  # dopri5


@pytest.mark.parametrize(
    "trained",
    [
        {"time_shift": "much"},
        {"time_shift": 0},
        {"time_shift": True},
        {"times": "early"},
        {"times": "blend:0,1"},
        {"times": 3},
    ],
    ids=str,
)
def test_what_a_checkpoint_cannot_have_been_trained_with_is_named(trained):
    config = ModelConfig("SiT-XS/2", 8, 1, 10, True)
    ((name, value),) = trained.items()
    with pytest.raises(DataError, match=re.escape(f"c.pt was trained with {name} {value!r}; what is known is")):
        check_trained(trained, None, config, "c.pt")
    for fine in ({"time_shift": "auto"}, {"time_shift": 2}, {"times": "logit-normal:-0.8,0.8"}):
        check_trained(fine, None, config, "c.pt")
