import pytest
import torch

from data.scaling import PLAIN, Scaling, rescaling

SCALINGS = [PLAIN, Scaling(0.18215, 0.0), Scaling(0.3611, 0.1159), Scaling([1.0, 2.0, 3.0], [0.5, -1.0, 0.0])]


def scaled(z: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    scale, shift = (torch.tensor(f).view(-1, 1, 1) if isinstance(f, list) else f for f in scaling)
    return (z - shift) * scale


@pytest.mark.parametrize("stored", SCALINGS)
@pytest.mark.parametrize("wanted", SCALINGS)
def test_from_one_scaling_to_another(stored, wanted, seeded):
    z = torch.randn(2, 3, 4, 4) * 4
    found = rescaling(stored, wanted, 3)(scaled(z, stored))
    torch.testing.assert_close(found, scaled(z, wanted), rtol=1e-4, atol=1e-4)
    if stored == wanted:
        assert torch.equal(found, scaled(z, stored))


@pytest.mark.parametrize("stored", SCALINGS)
def test_standardising_brings_every_channel_to_0_and_1(stored, seeded):
    spread, place = torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1), torch.tensor([4.0, 0.0, -2.0]).view(3, 1, 1)
    z = torch.randn(50, 3, 8, 8) * spread + place
    x = scaled(z, stored)
    wanted = stored.standardising(x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist())
    found = rescaling(stored, wanted, 3)(x)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled(z, wanted), found, rtol=1e-3, atol=1e-3)


def test_a_channel_that_is_constant_stays_finite():
    wanted = PLAIN.standardising([1.0, 2.0], [0.0, 2.0])
    assert wanted == Scaling([1.0, 0.5], [1.0, 2.0])
