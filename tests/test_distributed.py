import torch

from distributed import Process, seed_for, setup, sum_over_processes


def test_without_torchrun_there_is_one_process():
    process = setup()
    assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
    assert sum_over_processes(torch.ones(2)).tolist() == [1, 1]
    assert not Process(1, 1, 2, torch.device("cpu")).is_main


def test_seeds_are_distinct_and_stable():
    seeds = {seed_for(0, "step", step, rank) for step in range(200) for rank in range(8)}
    assert len(seeds) == 1600 and all(0 <= s < 2**63 for s in seeds)
    assert seed_for(0, "image", 3) == 2740973095138838757
