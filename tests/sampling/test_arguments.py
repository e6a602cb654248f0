import pytest

from sampling.arguments import pictures_parser
from train_utils import PRESETS


@pytest.mark.parametrize("mode", ["ODE", "SDE"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_it_stands_for_and_what_follows_it_wins(preset, mode):
    def parsed(*words: str) -> dict:
        return vars(pictures_parser("").parse_args([mode, *words]))

    settings = parsed() | PRESETS[preset][mode]
    assert parsed("--preset", preset) == settings
    assert parsed("--preset", preset, "--num-sampling-steps", "7") == settings | {"num_sampling_steps": 7}
