import signal

import pytest

from .conftest import DIGITS_ARGS
from .faults import differences, faults, launch

STEPS = 40
RUN = [
    *(*DIGITS_ARGS, "--global-batch-size", "64", "--grad-accum", "2", "--max-steps", str(STEPS)),  # 28 steps an epoch
    *("--log-every", "3", "--reckpt-every", "4", "--ckpt-every", "10", "--sample-every", "20"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The experiment folder of a run that nothing happened to, by the number of processes."""
    folders = {}

    def run(world_size: int):
        if world_size not in folders:
            root = tmp_path_factory.mktemp("uninterrupted")
            argv = [*RUN, "--results-dir", str(root)]
            assert launch(argv, root / "output", world_size=world_size) == [0] * world_size, (
                root / "output"
            ).read_text()
            folders[world_size] = root / "ComboStoc-XS-4-exp_tmp"
        return folders[world_size]

    return run


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_is_killed_ten_times_is_the_same_run(uninterrupted, tmp_path, world_size, workers, signum):
    """In steps, in the middle of saving, between epochs: model, average, optimiser and log, bit for bit."""
    argv = [*RUN, "--num-workers", workers, "--results-dir", str(tmp_path)]
    for fault in faults(signum, 10, STEPS, world_size, seed=world_size + 2 * int(workers)):
        codes = launch(argv, tmp_path / "output", world_size=world_size, fault=fault)
        expected = {-signal.SIGKILL} if signum == signal.SIGKILL else {128 + signum}
        assert set(codes) == expected, (fault, (tmp_path / "output").read_text()[-3000:])
    assert launch(argv, tmp_path / "output", world_size=world_size) == [0] * world_size
    assert differences(uninterrupted(world_size), tmp_path / "ComboStoc-XS-4-exp_tmp") == []
    assert "Traceback" not in (tmp_path / "output").read_text()
