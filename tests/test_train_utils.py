import argparse

import pytest
import torch

import models
import train_utils
import transport
from evaluation import features
from models import SiT
from runtime.command_line import Parser
from runtime.errors import DataError
from tests.conftest import GaussianModel
from train_utils import (
    MODELS,
    ModelConfig,
    build_sampler,
    build_transport,
    load_weights,
    model_config,
    parse_ode_args,
    parse_sde_args,
    parse_transport_args,
    typed_arguments,
)
from transport import DIFFUSION_FORMS, LAST_STEPS, SDE_METHODS, ComboStocType
from transport.sampler import SOLVERS


def parser_for(*add):
    parser = Parser(prog="test")
    for group in add:
        group(parser)
    return parser


def test_defaults_are_the_predecessors():
    args = parser_for(parse_transport_args, parse_ode_args).parse_args([])
    assert vars(args) == {
        **{"path_type": "Linear", "prediction": "velocity", "loss_weight": None, "sample_eps": None, "train_eps": None},
        **{"sampling_method": "dopri5", "atol": 1e-6, "rtol": 1e-3, "reverse": False, "likelihood": False},
    }
    args = parser_for(parse_sde_args).parse_args([])
    assert vars(args) == {
        **{"sampling_method": "Euler", "diffusion_form": "sigma", "diffusion_norm": 1.0},
        **{"last_step": "Mean", "last_step_size": 0.04},
    }


def sampler_cases():
    for method in SOLVERS:
        yield "ODE", ["--sampling-method", method]
    for flag in ("--likelihood",):
        yield "ODE", [flag]
    for method in SDE_METHODS:
        yield "SDE", ["--sampling-method", method]
    for form in DIFFUSION_FORMS:
        yield "SDE", ["--diffusion-form", form]
    for step in LAST_STEPS:
        yield "SDE", ["--last-step", str(step)]


@pytest.mark.parametrize(("mode", "flags"), list(sampler_cases()))
def test_every_choice_of_every_sampler_flag_runs(mode, flags):
    """From the words on the command line to finite samples."""
    parser = parser_for(parse_transport_args, parse_ode_args if mode == "ODE" else parse_sde_args)
    args = parser.parse_args(flags, argparse.Namespace(mode=mode, num_sampling_steps=7))
    transport = build_transport(args)
    model = GaussianModel(transport.path_sampler, "velocity", 0.2, 0.5)
    for state in build_sampler(args, transport)(torch.randn(3, 2), model):
        assert state.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_a_state_dict_tells_its_model(name, learn_sigma, monkeypatch):
    monkeypatch.setattr(SiT, "initialize_weights", lambda self: None)
    config = ModelConfig(name, 16, 3, 17, learn_sigma)
    with torch.device("meta"):
        state = config.build().state_dict()
    assert model_config(state, "x.pt") == config


def test_other_models_are_named():
    with pytest.raises(DataError, match=r"x\.pt holds no SiT, ComboStoc or Parts model: .x_embedder\.proj\.weight"):
        model_config({"w": torch.ones(1)}, "x.pt")
    state = SiT(input_size=8, hidden_size=48, depth=3, num_heads=3).state_dict()
    with pytest.raises(DataError, match=r"SiT of depth 3, width 48 and patch 2, which is none of ComboStoc-XL/2"):
        model_config(state, "x.pt")


def test_weights_that_do_not_fit_are_named():
    config = ModelConfig("SiT-XS/2", 8, 4, 10, True)
    model, state = config.build(), config.build().state_dict()
    load_weights(model, state, "x.pt")
    lacking = {k: v for k, v in state.items() if k != "x_embedder.proj.bias"}
    with pytest.raises(DataError, match=r"x\.pt lacks x_embedder\.proj\.bias"):
        load_weights(model, lacking, "x.pt")
    with pytest.raises(DataError, match=r"x\.pt has extra, which"):
        load_weights(model, state | {"extra": torch.ones(1)}, "x.pt")
    with pytest.raises(DataError, match=r"pos_embed of shape \(1, 4, 96\), the model \(1, 16, 96\)"):
        load_weights(model, state | {"pos_embed": torch.zeros(1, 4, 96)}, "x.pt")


def test_typed_arguments_are_told_from_defaults():
    parser = parser_for(parse_transport_args, parse_sde_args)
    assert typed_arguments(parser, []) == set()
    assert typed_arguments(parser, ["--path-type", "Linear", "--last-step=None"]) == {"path_type", "last_step"}


@pytest.mark.parametrize("flag", ["--path", "--unknown", "--sample_eps"])
def test_an_unknown_or_shortened_flag_is_an_error(flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser_for(parse_transport_args).parse_args([flag, "1"])
    assert exit_.value.code == 2 and flag in capsys.readouterr().err


def test_every_name_stands_for_something():
    assert (*models.ComboStoc_models, *models.SiT_models) == train_utils.MODELS
    assert tuple(ComboStocType.__members__) == train_utils.COMBOSTOC_TYPES
    for name in "PATHS PREDICTIONS WEIGHTS BLENDS".split():
        assert getattr(train_utils, name) == tuple(getattr(transport, name))
    for name in "ADAPTIVE_METHODS ODE_METHODS SDE_METHODS DIFFUSION_FORMS LAST_STEPS SCHEDULES".split():
        assert getattr(train_utils, name) == tuple(getattr(transport, name))
    assert train_utils.EXTRACTORS == features.EXTRACTORS
