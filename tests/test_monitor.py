"""train.py --eval-every, with EfficientNet-Lite0, which is there without a network."""

import csv
import json

import numpy as np
import pytest
import torch

import evaluate
import sample_ddp
import train
from image_sets import open_images

from .conftest import DIGITS_ARGS
from .faults import launch
from .test_train import assert_equal_bit_for_bit

EVALUATED = [
    *("--eval-samples", "24", "--eval-sampling-steps", "4"),
    *("--eval-features", "efficientnet-lite0", "--sample-every", "0"),
]


def rows(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "evaluations.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Statistics of some digits."""
    root = tmp_path_factory.mktemp("reference")
    (digits,) = open_images("digits").batches(1797)
    np.savez(root / "some.npz", digits[:40].permute(0, 2, 3, 1).numpy())
    evaluate.main([str(root / "some.npz"), "--features", "efficientnet-lite0", "--save-stats", str(root / "stats.npz")])
    return root / "stats.npz"


def test_numbers_are_those_of_sample_ddp_and_evaluate(tmp_path, reference):
    """By two processes while training, and by one afterwards."""
    args = [*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", "6", *EVALUATED, "--ema-decay", "0.5"]
    args += ["--eval-every", "3", "--eval-reference", str(reference), "--lr", "1e-2"]
    assert launch(args, tmp_path / "log", world_size=2) == [0, 0], (tmp_path / "log").read_text()
    folder = tmp_path / "ComboStoc-XS-4-exp_tmp"
    found = rows(folder)
    assert [row["step"] for row in found] == ["3", "6"] and found[0]["FD"] != found[1]["FD"]
    log = (folder / "log.txt").read_text()
    assert f"FD-efficientnet-lite0 {float(found[1]['FD']):.5g}" in log and "24 samples" in log
    assert "Warning: 24 images (samples) are not more than the 1,280 features" in log

    drawn = ["--num-fid-samples", "24", "--num-sampling-steps", "4", "--balanced-labels"]
    sample_ddp.main(["SDE", "--ckpt", str(folder / "ckpt.pt"), "--sample-dir", str(tmp_path / "samples"), *drawn])
    (npz,) = (tmp_path / "samples").glob("*.npz")
    numbers = ["--features", "efficientnet-lite0", "--out", str(tmp_path / "numbers.json")]
    evaluate.main([str(npz), str(reference), *numbers])
    expected = json.loads((tmp_path / "numbers.json").read_text())
    for name in ("FD", "IS", "KD", "precision", "recall"):
        assert float(found[1][name]) == pytest.approx(expected[f"{name}-efficientnet-lite0"], rel=1e-3)


def test_evaluating_changes_nothing_and_a_run_continues(tmp_path, image_folder):
    """Against the training images; the same checkpoint as without, and after an interruption the same table."""
    data = ["--data-path", str(image_folder), "--num-classes", "3", "--global-batch-size", "4"]

    def run(exp: str, steps: int, *args: str):
        argv = [*DIGITS_ARGS, *data, "--results-dir", str(tmp_path), "--exp", exp, *EVALUATED, *args]
        train.main([*argv, "--max-steps", str(steps)])
        return tmp_path / f"ComboStoc-XS-4-{exp}"

    plain = run("plain", 6)
    whole = run("whole", 6, "--eval-every", "2")
    run("parts", 4, "--eval-every", "2", "--reckpt-every", "3")
    with open(tmp_path / "ComboStoc-XS-4-parts" / "evaluations.csv", "a") as file:
        file.write("5,efficientnet-lite0,")  # a row that was cut off
    parts = run("parts", 6, "--eval-every", "2")
    assert_equal_bit_for_bit(plain / "ckpt.pt", whole / "ckpt.pt")
    assert not (plain / "evaluations.csv").exists()
    assert [row["step"] for row in rows(whole)] == ["2", "4", "6"] and rows(parts) == rows(whole)
    assert "against the training data" in (whole / "log.txt").read_text()
    assert all(float(row["FD"]) > 0 and row["sFD"] == "" for row in rows(whole))


def test_training_images_are_looked_at_once_each_and_not_more_than_so_many(image_folder, monkeypatch):
    import monitor
    from data import ImageFolder
    from distributed import Process
    from feed import Data

    dataset = ImageFolder(image_folder, 8)
    data = Data(dataset, lambda x: x, 3, 8, None)
    for most, expected in ((50, 12), (5, 5)):
        monkeypatch.setattr(monitor, "MAX_REFERENCE", most)
        seen = []
        for rank in range(2):
            watcher = object.__new__(monitor.Monitor)
            watcher.data, watcher.process = data, Process(rank, rank, 2, torch.device("cpu"))
            seen += [image for batch in watcher.training_images() for image in batch]
        assert len(torch.stack(seen).unique(dim=0)) == len(seen) == expected
