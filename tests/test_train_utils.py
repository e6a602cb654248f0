import argparse
import re

import pytest
import torch

from kinds import MODELS, model_config
from models import SiT
from runtime.command_line import Parser
from runtime.errors import DataError
from sampling.arguments import sampling_parser
from tests.conftest import GaussianModel
from train_utils import (
    ModelConfig,
    build_sampler,
    build_transport,
    load_weights,
    parse_ode_args,
    parse_sde_args,
    parse_transport_args,
    read_method,
    typed_arguments,
)
from transport import DIFFUSION_FORMS, LAST_STEPS, SDE_METHODS
from transport.solvers import SOLVERS


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
        **{"max_evaluations": 10_000, "time_shift": 1.0, "loss_clamp": 0.0},  # ours
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
    transport = build_transport(read_method(vars(args)))
    model = GaussianModel(transport.path_sampler, "velocity", 0.2, 0.5)
    for state in build_sampler(args, transport)(torch.randn(3, 2), model):
        assert state.isfinite().all()


def test_a_state_dict_tells_its_model(monkeypatch):
    monkeypatch.setattr(SiT, "initialize_weights", lambda self: None)
    for k, name in enumerate(name for name in MODELS if not name.startswith("Parts")):
        config = ModelConfig(name, 32, 3, 17, learn_sigma=k % 2 == 0)
        with torch.device("meta"):
            state = config.build().state_dict()
        assert model_config(state, "x.pt") == config


def test_other_models_are_named():
    with pytest.raises(
        DataError, match=r"x\.pt holds no SiT, ComboStoc or Parts model: x_embedder\.proj\.weight is missing"
    ):
        model_config({"w": torch.ones(1)}, "x.pt")
    state = SiT(input_size=8, hidden_size=48, depth=3, num_heads=3).state_dict()
    with pytest.raises(DataError, match=r"SiT of depth 3, width 48 and patch 2, which is none of .ComboStoc,SiT.-"):
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


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("x_embedder.proj.weight", torch.ones(96, 16), r"its x_embedder\.proj\.weight is of shape \(96, 16\)"),
        ("x_embedder.proj.weight", torch.ones(96, 4, 0, 0), r"its x_embedder\.proj\.weight is of shape"),
        ("pos_embed", torch.ones(16, 96), r"its pos_embed is of shape \(16, 96\)"),
        ("pos_embed", torch.ones(1, 16, 96, dtype=torch.int8), r"its pos_embed is int8, which is no float weight"),
    ],
)
def test_a_tensor_that_tells_no_model_is_not_called_missing(name, tensor, says):
    with pytest.raises(DataError, match=rf"x\.pt holds no SiT, ComboStoc or Parts model: {says}"):
        model_config(ModelConfig("SiT-XS/2", 8, 4, 10, True).build().state_dict() | {name: tensor}, "x.pt")


def test_what_is_no_float_weight_is_left_aside_by_name():
    config = ModelConfig("SiT-XS/2", 8, 4, 10, True)
    model, state = config.build(), config.build().state_dict()
    others = {"rope.index": torch.arange(3), "freqs": torch.ones(2, dtype=torch.complex64), "n": torch.tensor(True)}
    assert load_weights(model, state | others, "x.pt") == [
        "x.pt has rope.index, freqs, n, which the model does not have: no weights, left aside"
    ]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(DataError, match=r"x\.pt has x_embedder\.proj\.bias as int64, which is no float weight"):
        load_weights(model, state | {"x_embedder.proj.bias": torch.zeros(96, dtype=torch.int64)}, "x.pt")


NUMBERS = {
    "--cfg-scale": {"inf": "inf is not a finite number", "nan": "nan is not a finite number", "0.5": "is less than 1"},
    "--atol": {
        "inf": "not a finite number",
        "1e400": "1e400 is not a finite number",
        "-1": "not a positive",
        "x": "'x'",
    },
    "--guidance-interval": {"nan": "not a finite number", "2": r"2 is not in \[0, 1\]"},
    "--num-sampling-steps": {
        "2.5": "'2.5' is not a whole number",
        "inf": "'inf' is not a whole",
        "0": "not a positive",
    },
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in NUMBERS.items() for value in values])
def test_a_number_is_refused_for_what_it_is(flag, value, capsys):
    parser = sampling_parser("", lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False)
    with pytest.raises(SystemExit):
        parser.parse_args(["ODE", flag, value, *["1"] * (flag == "--guidance-interval")])
    assert re.search(NUMBERS[flag][value], capsys.readouterr().err)


def test_typed_arguments_are_told_from_defaults():
    parser = parser_for(parse_transport_args, parse_sde_args)
    assert typed_arguments(parser, []) == set()
    assert typed_arguments(parser, ["--path-type", "Linear", "--last-step=None"]) == {"path_type", "last_step"}


@pytest.mark.parametrize("flag", ["--path", "--unknown", "--sample_eps"])
def test_an_unknown_or_shortened_flag_is_an_error(flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser_for(parse_transport_args).parse_args([flag, "1"])
    assert exit_.value.code == 2 and flag in capsys.readouterr().err
