"""train.py --eval-every, with few features in the place of EfficientNet-Lite0's 1,280, whose moments take seconds."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch

import evaluate
import sample_ddp
import train
from evaluation.image_sets import open_images
from models import ComboStoc_models
from runtime import checkpoint
from sampling import monitor
from sampling.network import ImageNoise
from tests.conftest import DIGITS_ARGS, see_little
from tests.faults import Fault, launch
from tests.forked import run_forked
from tests.test_train import assert_equal_bit_for_bit
from transport import Transport

EVALUATED = [
    *("--eval-samples", "24", "--eval-sampling-steps", "4"),
    *("--eval-features", "efficientnet-lite0", "--sample-every", "0"),
]


def rows(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "evaluations.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Some digits."""
    path = tmp_path_factory.mktemp("reference") / "some.npz"
    ((_, digits),) = open_images("digits").batches(1797)
    np.savez(path, digits[:40].permute(0, 2, 3, 1).numpy())
    return path


def test_numbers_are_those_of_sample_ddp_and_evaluate(tmp_path, reference, few_features):
    """By two processes while training, and by one afterwards."""
    args = [*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", "6", *EVALUATED, "--ema-decay", "0.5"]
    args += ["--eval-every", "3", "--eval-reference", str(reference), "--lr", "1e-2"]
    run_forked("train.py", *args, processes=2, cwd=tmp_path, before=see_little)
    folder = tmp_path / "ComboStoc-XS-4-exp_tmp"
    found = rows(folder)
    assert [row["step"] for row in found] == ["3", "6"] and found[0]["FD"] != found[1]["FD"]
    log = (folder / "log.txt").read_text()
    assert f"FD-efficientnet-lite0 {float(found[1]['FD']):.5g}" in log and "24 samples" in log
    assert "Warning: 24 images (samples) are not more than the 48 features" in log

    drawn = ["--num-fid-samples", "24", "--num-sampling-steps", "4", "--balanced-labels"]
    sample_ddp.main(["SDE", "--ckpt", str(folder / "ckpt.pt"), "--sample-dir", str(tmp_path / "samples"), *drawn])
    (npz,) = (tmp_path / "samples").glob("*.npz")
    numbers = ["--features", "efficientnet-lite0", "--out", str(tmp_path / "numbers.json")]
    evaluate.main([str(npz), str(reference), *numbers])
    expected = json.loads((tmp_path / "numbers.json").read_text())
    for name in ("FD", "IS", "KD", "precision", "recall"):
        assert float(found[1][name]) == pytest.approx(expected[f"{name}-efficientnet-lite0"], rel=1e-3)


def test_evaluating_changes_nothing_and_a_run_continues(tmp_path, image_folder, few_features):
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
    log = (parts / "log.txt").read_text()
    assert [log.count(f"(step={k:07d}) FD-") for k in (2, 4, 6)] == [1, 1, 1]  # not again where it continues
    assert_equal_bit_for_bit(plain / "ckpt.pt", whole / "ckpt.pt")
    assert not (plain / "evaluations.csv").exists()
    assert [row["step"] for row in rows(whole)] == ["2", "4", "6"] and rows(parts) == rows(whole)
    assert "against the training data" in (whole / "log.txt").read_text()
    assert all(float(row["FD"]) > 0 and row["sFD"] == "" for row in rows(whole))


@pytest.mark.drill
def test_a_signal_ends_an_evaluation_which_the_run_that_continues_makes_up_for(tmp_path, reference):
    """Two processes, of which one is told to stop in the middle of sampling."""
    args = [*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", "4", *EVALUATED, "--eval-every", "2"]
    args += ["--eval-reference", str(reference), "--log-every", "0"]
    fault = Fault("SIGTERM", "evaluation", 1, rank=1)
    assert launch(args, tmp_path / "log", world_size=2, fault=fault) == [143, 143], (tmp_path / "log").read_text()
    folder = tmp_path / "ComboStoc-XS-4-exp_tmp"
    assert not (folder / "evaluations.csv").exists()
    assert checkpoint.load(folder / "ckpt.pt")["step"] == 2  # saved before the evaluation; no step after it
    assert launch(args, tmp_path / "log", world_size=2) == [0, 0], (tmp_path / "log").read_text()
    assert [row["step"] for row in rows(folder)] == ["2", "4"]


def test_a_signal_in_an_evaluation_after_a_bad_step_loses_nothing(tmp_path, reference, few_features, monkeypatch):
    """A bad step is not saved, and so what came before it is not, either, if the run ends there."""
    losses, labels, steps = Transport.training_losses, ImageNoise.labels, []

    def second_is_bad(self, *args, **settings):
        steps.append(terms := losses(self, *args, **settings))
        return terms | {"loss": terms["loss"] + torch.inf} if len(steps) == 2 else terms

    def interrupted(self, classes):
        os.kill(os.getpid(), signal.SIGTERM)
        return labels(self, classes)

    monkeypatch.setattr(Transport, "training_losses", second_is_bad)
    monkeypatch.setattr(ImageNoise, "labels", interrupted)
    args = [*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", "4", *EVALUATED, "--eval-every", "2"]
    with pytest.raises(SystemExit, match="143"):
        train.main([*args, "--eval-reference", str(reference)])
    folder = tmp_path / "ComboStoc-XS-4-exp_tmp"
    saved = checkpoint.load(folder / "ckpt.pt")
    assert saved["step"] == 2 and saved["progress"]["bad_steps"] == [1, 1]
    monkeypatch.setattr(Transport, "training_losses", losses)
    monkeypatch.setattr(ImageNoise, "labels", labels)
    train.main([*args, "--eval-reference", str(reference)])
    assert [row["step"] for row in rows(folder)] == ["2", "4"]


def test_samples_that_are_not_finite_are_warnings_and_training_goes_on(tmp_path, reference):
    """In both processes, where those of one are not; the preview of the first, too."""
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    model.y_embedder.embedding_table.weight.data[1] = torch.nan  # the class of the second process's first sample
    torch.save(model.state_dict(), tmp_path / "nan.pt")
    args = [*DIGITS_ARGS, "--results-dir", str(tmp_path), "--max-steps", "2", *EVALUATED, "--sample-every", "1"]
    args += ["--eval-every", "1", "--eval-reference", str(reference), "--init-from", str(tmp_path / "nan.pt")]
    run_forked("train.py", *args, processes=2, cwd=tmp_path, before=see_little)
    folder = tmp_path / "ComboStoc-XS-4-exp_tmp"
    log = (folder / "log.txt").read_text()
    for step in (1, 2):
        assert f"Warning: no evaluation at step {step}: " in log
        assert f"Warning: no sample picture at step {step}: dopri5 cannot take its step" in log
    assert log.count("pictures are not finite") == 2 and "Done" in log
    assert not (folder / "evaluations.csv").exists() and not list((folder / "samples").iterdir())


def test_training_images_are_looked_at_once_each_and_not_more_than_so_many(image_folder, monkeypatch):
    from data.feed import Data
    from data.sets import ImageFolder
    from runtime.distributed import Process

    dataset = ImageFolder(image_folder, 8)
    data = Data(dataset, lambda x: x, (3, 8, 8), None)
    for most, expected in ((50, 12), (5, 5)):
        monkeypatch.setattr(monitor, "MAX_REFERENCE", most)
        seen = []
        for rank in range(2):
            watcher = object.__new__(monitor.Monitor)
            watcher.data, watcher.process = data, Process(rank, rank, 2, torch.device("cpu"))
            seen += [image for _, batch in watcher.training_images() for image in batch]
        assert len(torch.stack(seen).unique(dim=0)) == len(seen) == expected


def test_a_reference_of_another_resolution_is_warned_of():
    from argparse import Namespace
    from types import SimpleNamespace

    watcher = object.__new__(monitor.Monitor)
    watcher.args = Namespace(image_size=8, eval_samples=5000, eval_reference="large.npz")
    watcher.extractor, watcher.process = SimpleNamespace(name="inception"), None
    statistics = SimpleNamespace(count=5000)
    for size, expected in (((16, 16), ["8 x 8 pixels, the reference's are of 16 x 16"]), ((8, 8), [])):
        images = SimpleNamespace(size=size)
        watcher.source = SimpleNamespace(images=images, statistics=lambda *_: statistics)
        warnings = [line for line in watcher.prepare() if line.startswith("Warning")]
        assert len(warnings) == len(expected) and all(e in w for e, w in zip(expected, warnings, strict=True))


def test_all_processes_ask_alike_often_and_end_when_told_to(image_folder):
    """Also where their shares differ in size, or there is nothing for one of them in the last round."""
    from argparse import Namespace
    from functools import partial

    from data.autoencoder import load_autoencoder
    from data.feed import Data
    from data.sets import ImageFolder
    from models import SiT_models
    from runtime.distributed import Process
    from transport import create_transport

    cpu = torch.device("cpu")
    autoencoder = load_autoencoder("none", cpu, 3)
    model = SiT_models["SiT-XS/4"](input_size=8, in_channels=3, num_classes=3).eval()
    drawn, asked = [], []
    for rank in range(2):
        watcher = object.__new__(monitor.Monitor)
        watcher.data = Data(ImageFolder(image_folder, 8), lambda x: x, (3, 8, 8), autoencoder)
        watcher.process = Process(rank, rank, 2, cpu)
        settings = {"eval_sampling_steps": 3, "global_batch_size": 8, "global_seed": 0, "precision": "fp32"}
        watcher.args = Namespace(eval_samples=17, **settings)
        answers = []
        for indices, images in watcher.samples(model, create_transport(), autoencoder, partial(answers.append, 0)):
            assert len(images) == len(indices) and images.dtype == torch.uint8
            drawn += indices
        asked.append(len(answers))
        told = iter([False, True])
        only = list(watcher.samples(model, create_transport(), autoencoder, partial(next, told)))
        assert [list(indices) for indices, _ in only] == [list(range(rank, 8, 2))]
    assert sorted(drawn) == list(range(17)) and asked == [3, 3]
