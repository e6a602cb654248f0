import pytest

from sampling.arguments import pictures_parser
from train_utils import PRESETS


@pytest.mark.parametrize("mode", ["ODE", "SDE"])
def test_a_preset_is_what_it_stands_for_and_what_follows_it_wins(mode):
    def parsed(*words: str) -> dict:
        return vars(pictures_parser("").parse_args([mode, *words]))

    fast = PRESETS["fast"][mode]
    assert parsed("--preset", "fast") == parsed() | fast
    assert parsed("--preset", "fast", "--num-sampling-steps", "7") == parsed() | fast | {"num_sampling_steps": 7}
