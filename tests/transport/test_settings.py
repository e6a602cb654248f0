"""A sampler's settings: what the command line, `Sampler` and the studies take from one place."""

from dataclasses import FrozenInstanceError, asdict
from functools import partial

import pytest
import torch

from sampling.arguments import sampling_parser
from tests.conftest import GaussianModel
from train_utils import sampler_settings
from transport import PUBLISHED_SDE, OdeSettings, Sampler, SdeSettings, create_transport


@pytest.mark.parametrize(
    ("mode", "usual"), [("ODE", OdeSettings(num_steps=PUBLISHED_SDE.num_steps)), ("SDE", PUBLISHED_SDE)]
)
def test_the_command_line_has_their_defaults(mode, usual):
    parser = sampling_parser(None, lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False)
    assert sampler_settings(parser.parse_args([mode])) == asdict(usual)


def test_they_are_values():
    assert SdeSettings(last_step=None) == SdeSettings(last_step_size=0)
    assert OdeSettings(num_steps=9) != OdeSettings()
    with pytest.raises(FrozenInstanceError):
        OdeSettings().num_steps = 9


@pytest.mark.parametrize("method", ["heun2", "euler", "midpoint"])
@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("job", ["plain", "reverse", "graded", "likelihood"])
def test_a_sampler_knows_how_often_it_will_evaluate_the_model(method, prediction, job, seeded):
    """Towards data that the model predicts the last step may be Euler's; from data it is the solver's own."""
    transport = create_transport(prediction=prediction)
    sampler, z = Sampler(transport), torch.randn(2, 3, 4)
    make = {
        "plain": sampler.sample_ode,
        "reverse": partial(sampler.sample_ode, reverse=True),
        "graded": partial(sampler.sample_graded, torch.zeros_like(z), 0.5),
        "likelihood": sampler.sample_ode_likelihood,
    }[job]
    sample = make(sampling_method=method, num_steps=5)
    sample(z, GaussianModel(transport.path_sampler, prediction, 0.0, 1.0))
    assert sample.nfe == sample.evaluations
    assert make(sampling_method="dopri5").evaluations is None
