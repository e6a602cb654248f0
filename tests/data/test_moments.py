import json

import numpy as np
import pytest

from data.moments import ChannelMoments, joined_moments, moments_of

RNG = np.random.default_rng(0)


def test_of_latents_that_are_there():
    x = RNG.standard_normal((5, 2, 1, 3, 4, 4)).astype(np.float32) * 7 + 100
    found = moments_of(x)
    assert found.numbers == 5 * 2 * 16
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2, 4, 5), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, x.std((0, 1, 2, 4, 5), dtype=np.float64), rtol=1e-9)


def test_of_draws_from_posteriors():
    """The variance of a draw is that of the means and the mean of the variances."""
    x = np.stack([np.full((6, 2, 4, 4), 3.0), np.full((6, 2, 4, 4), 0.5)], axis=1)
    x[:3, 0] = 1.0
    found = moments_of(x)
    np.testing.assert_allclose(found.mean, [2.0, 2.0])
    np.testing.assert_allclose(found.std, [np.sqrt(1 + 0.25)] * 2)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [7, 1, 3], [2, 8]])
def test_parts_together_are_the_whole(sizes):
    """Also far from zero, and after a file."""
    x = RNG.standard_normal((sum(sizes), 2, 2, 3, 4, 4))
    x += np.array([1e6, 0.0, -3.0]).reshape(3, 1, 1)
    parts = [moments_of(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    found, whole = joined_moments(ChannelMoments(*json.loads(json.dumps(part))) for part in parts), moments_of(x)
    assert found.numbers == whole.numbers
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(found.std, whole.std, rtol=1e-9)
