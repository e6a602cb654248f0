import re

import pytest

import kinds
from experiments.variants import TABLES
from runtime.errors import UsageError
from train_utils import PRESETS, typed_arguments
from training.arguments import make_parser, resolve_arguments
from transport.timesteps import DRAWS, OLD_NAMES


def checked(words: str):
    args = make_parser().parse_args(["--data-path", "digits", *words.split()])
    return resolve_arguments(args, 1, kinds.of_data(args.data_path))


def test_what_is_resolved_is_a_copy():
    args = make_parser().parse_args(["--data-path", "digits"])
    before = dict(vars(args))
    resolved = resolve_arguments(args, 1, kinds.of_data(args.data_path))
    assert vars(args) == before and list(vars(resolved)) == list(before) and resolved.combostoc_type == "UNSYNC_ALL"


def test_half_of_a_batch_is_synchronous_in_the_published_draw_only():
    assert checked("").halfmixing == "on" and checked("--times patch-forcing").halfmixing == "off"
    assert checked("--times patch-forcing --halfmixing on").halfmixing == "on"
    assert checked("--model SiT-XL/2 --times logit-normal").combostoc_type == "UNSYNC_NONE"


def test_a_preset_is_what_it_stands_for_and_what_follows_it_wins():
    fast = vars(checked("--combostoc-type UNSYNC_NONE --times blend-logit-normal"))
    far = vars(checked("--combostoc-type UNSYNC_ALL --times blend-logit-normal-async --difficulty 0.01"))
    assert vars(checked("--preset fast")) == vars(checked("--times uniform --preset fast")) == fast
    assert vars(checked("--preset fast-async")) == vars(checked("--preset fast --preset fast-async")) == far
    assert vars(checked("--preset fast-async --combostoc-type UNSYNC_PATCH")) == far | {
        "combostoc_type": "UNSYNC_PATCH"
    }
    assert checked("--model SiT-XL/2 --preset fast").times == "blend-logit-normal"
    argv = ["--data-path", "digits", "--preset", "fast"]
    assert typed_arguments(make_parser(), argv) == {
        "data_path",
        *PRESETS["fast"]["training"],
    }  # a checkpoint's give way to them


def test_the_presets_are_in_the_study():
    for name, preset in (("blend-lognormal, NONE", "fast"), ("blend-lognormal-async, ALL, difficulty", "fast-async")):
        (flags,) = {flags for table in TABLES.values() for variant, (_, flags) in table.items() if variant == name}
        assert checked(flags) == checked(f"--preset {preset}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model SiT-XL/2 --combostoc-type UNSYNC_VEC", "--combostoc-type UNSYNC_VEC needs a ComboStoc model"),
        ("--combostoc-type UNSYNC_NONE --halfmixing off", "--halfmixing off is for asynchronous times"),
        ("--model SiT-XL/2 --times logit-normal --halfmixing on", "--halfmixing on is for asynchronous times"),
        ("--model SiT-XL/2 --compensation off", "--compensation off is for asynchronous times"),
        ("--model SiT-XL/2 --preset fast-async", "--combostoc-type UNSYNC_ALL needs a ComboStoc model"),
        ("--loss-clamp 0.05", "--loss-clamp 0.05 is for --prediction data and --loss-weight velocity, not for"),
        ("--times blend --blend sample", "--blend sample is for --times combostoc, not for blend"),
    ],
)
def test_combinations_that_cannot_work_are_named(words, says):
    with pytest.raises(UsageError, match=f"^{says}"):
        checked(words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--times early", "argument --times: unknown times 'early'; choose from combostoc, diffusion-forcing"),
        ("--times logit-normal:0", "argument --times: times 'logit-normal:0': after the colon come LOC,SCALE"),
        ("--time-shift 0", "argument --time-shift: 0 is not a positive number"),
        ("--time-shift none", "argument --time-shift: 'none' is not a number"),
        ("--betas 0.9 1", "argument --betas: 1 is not in [0, 1)"),
        ("--betas 0.9", "argument --betas: expected 2 arguments"),
        ("--weight-decay -1", "argument --weight-decay: -1 is not a weight"),
        ("--loss-clamp 2", "argument --loss-clamp: 2 is not in [0, 1]"),
    ],
)
def test_values_that_are_none_end_in_one_line(words, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(["--data-path", "digits", *words.split()])
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_help_lists_the_draws_by_their_names_of_today():
    text = " ".join(make_parser().format_help().split()).replace("- ", "-")  # where a line ends in a name
    _, _, text = text.rpartition("--times DRAW")
    names = re.split(r"[^a-z-]+", text.partition("--halfmixing")[0])
    assert set(DRAWS) <= set(names) and not set(OLD_NAMES) & set(names)
    assert checked("--times two").times == "self-flow"


@pytest.mark.parametrize("value", ["-0.01", "nan", "inf", "some"])
def test_difficulty_is_a_weight(value, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(["--data-path", "digits", f"--difficulty={value}"])
    assert "--difficulty" in capsys.readouterr().err
