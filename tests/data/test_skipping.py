import pytest

from data.skipping import check_readable
from runtime.errors import DataError


def test_one_bad_image_is_allowed_in_a_small_set():
    """0.001 of 500 is none, and would end every run at the first; 0 is meant."""
    for total, share, allowed in ((500, 0.001, 1), (5, 0.001, 1), (5000, 0.001, 5), (40, 0.1, 4), (500, 0, 0)):
        bad = ["a.png cannot be read"] * (allowed + 1)
        check_readable(bad[1:], total, share)
        with pytest.raises(DataError, match=rf"^{allowed + 1} of {total:,} images cannot be read, more than --max-bad"):
            check_readable(bad, total, share)
