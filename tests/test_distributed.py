from threading import Thread

import torch
from torch.distributed import HashStore

from distributed import Process, fresh_part, seed_for, setup, sum_over_processes


def test_without_torchrun_there_is_one_process():
    process = setup()
    assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
    assert sum_over_processes(torch.ones(2)).tolist() == [1, 1]
    assert not Process(1, 1, 2, torch.device("cpu")).is_main


def test_seeds_are_distinct_and_stable():
    seeds = {seed_for(0, "step", step, rank) for step in range(200) for rank in range(8)}
    assert len(seeds) == 1600 and all(0 <= s < 2**63 for s in seeds)
    assert seed_for(0, "image", 3) == 2740973095138838757


def test_a_restart_does_not_read_what_the_attempt_before_has_written():
    """As torchrun restarts processes: with the store of the attempt before."""
    store, seen = HashStore(), []
    for attempt in range(3):
        parts = {}

        def join(rank, parts=parts):
            parts[rank] = fresh_part(store, rank, 3)

        threads = [Thread(target=join, args=(rank,), daemon=True) for rank in (2, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(part.check(["address"]) for part in parts.values())
        parts[1].set("address", str(attempt))
        seen.append([parts[rank].get("address") for rank in range(3)])
    assert seen == [[b"0"] * 3, [b"1"] * 3, [b"2"] * 3]
