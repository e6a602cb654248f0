import math
from dataclasses import fields, replace

import pytest
import torch

import kinds
from train_utils import PRESETS, build_transport, read_method
from training.arguments import make_parser, resolve_arguments
from training.resume import RESTORED
from transport import Method, Transport, create_transport
from transport.timesteps import DRAWS, draw_timesteps

ATTRIBUTES = (2, 1)


def settings_of(transport: Transport) -> dict:
    return {name: value for name, value in vars(transport).items() if name != "path_sampler"}


def typed(words: str) -> Method:
    """The method of train.py's command line."""
    args = make_parser().parse_args(words.split())
    args = resolve_arguments(args, 1, kinds.of_data(args.data_path))
    return read_method(vars(args))


@pytest.mark.parametrize("times", [None, *DRAWS])
@pytest.mark.parametrize(
    ("words", "plain", "attributes"),
    [
        ("--data-path digits --model SiT-XS/2", {}, None),
        ("--data-path digits --model ComboStoc-XS/2", {"combostoc_type": "UNSYNC_ALL"}, None),
        (
            "--data-path shapes --model Parts-XS",
            {"prediction": "data", "combostoc_type": "UNSYNC_ATT_PART"},
            ATTRIBUTES,
        ),
    ],
    ids=["SiT", "ComboStoc", "shapes"],
)
def test_command_line_and_create_transport_agree_on_what_is_not_said(words, plain, attributes, times):
    """Half-mixing, too: of shapes neither does."""
    drawn = {"times": times} if times else {}
    transport = create_transport(**plain, **drawn, attributes=attributes)
    asked = typed(words + (f" --times {times}" if times else ""))
    assert settings_of(transport) == settings_of(build_transport(asked, attributes))
    assert transport.use_halfmixing is (attributes is None and times in (None, "combostoc"))


def test_shapes_are_not_half_mixed_unless_it_is_said(seeded):
    x1 = torch.zeros(8, 5, 3)
    settings = {"combostoc_type": "UNSYNC_ATT_PART", "attributes": ATTRIBUTES, "use_blend": False}
    for halves in (None, False, True):
        transport = create_transport(**settings, use_halfmixing=halves)
        drawn = draw_timesteps(
            x1, transport.combostoc_type, attributes=ATTRIBUTES, use_halfmixing=halves, use_blend=False
        )
        for t in (transport.sample(x1)[0], drawn):
            synchronous = [len(sample.unique()) == 1 for sample in t]
            assert synchronous == [False] * 4 + [halves is True] * 4


METHODS = (
    Method(),
    Method("GVP", "data", "velocity", 0.01, 0.02, "UNSYNC_ATT", "logit-normal:0,2", True, loss_clamp=0.05),
    Method(use_halfmixing=False, use_blend="sample", use_compensation=False, difficulty=0.01, time_shift="auto"),
)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_read_back_from_its_words(method):
    words = method.words()
    assert Method.read(words) == method and Method.read(words | {"lr": 1e-4, "async_fraction": 0.1}) == method
    assert set(words) <= {action.dest for action in make_parser()._actions}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_method(preset):
    words = PRESETS[preset]["training"]
    method = Method.read(words)
    assert {name: value for name, value in method.words().items() if name in words} == words
    assert method == typed(f"--data-path digits --model ComboStoc-XS/2 --preset {preset}")


def test_a_continued_run_keeps_all_of_its_method():
    assert set(Method().words()) <= set(RESTORED)


def test_what_is_absent_or_none_is_the_default():
    assert Method.read({}) == Method.read(dict.fromkeys(Method().words())) == Method()


def test_draws_have_their_names_of_today():
    assert Method(times="uniform") == Method(times="diffusion-forcing")
    assert create_transport(times="blend-lognormal:0,2").times == "blend-logit-normal:0,2"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("times", 3, "times must be combostoc, .*, got 3"),
        ("times", "early", "unknown times 'early'; choose from"),
        ("sample_eps", "0.1", r"sample_eps must be a number in \[0, 0\.5\), got '0\.1'"),
        ("train_eps", math.nan, "train_eps must be a number"),
        ("time_shift", True, "time_shift must be a positive number or 'auto', got True"),
        ("loss_clamp", 2, "loss_clamp must be a number"),
        ("use_blend", "patch", "use_blend must be True, False or 'sample', got 'patch'"),
        ("path_type", None, "path_type must be Linear, GVP, VP, got None"),
        ("combostoc_type", ["UNSYNC_ALL"], "combostoc_type must be UNSYNC_NONE, .*got"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(name, value, says):
    with pytest.raises(ValueError, match=says):
        Method(**{name: value})
    with pytest.raises(ValueError, match=says):
        create_transport(**{name: value})


@pytest.mark.parametrize("word", ["maybe", True, 1])
def test_a_word_that_is_none_is_named(word):
    for name in ("halfmixing", "compensation"):
        with pytest.raises(ValueError, match=f"{name}.*{word!r}"):
            Method.read({name: word})


def test_a_method_stays_as_it_is_and_goes_through_a_transport():
    method = METHODS[2]
    with pytest.raises(AttributeError):
        method.times = "srm"
    transport = Transport.of(replace(method, times=torch.rand_like))
    assert transport.times is torch.rand_like
    assert {f.name for f in fields(Method)} <= {*vars(transport), "prediction", "loss_weight"}
