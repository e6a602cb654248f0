import numpy as np
import pytest
import torch

import data.feed
import download
import extract_latents
import sample
import train
from data.feed import feed
from runtime.errors import DataError
from tests.data.test_listing import picture

CPU = torch.device("cpu")


def test_batches_come_in_order_as_latents():
    batches = [(torch.full((2, 1), float(k)), torch.tensor([k, k])) for k in range(4)]
    fed = list(feed(iter(batches), lambda data: data * 10, CPU))
    assert [x[0].item() for x, _ in fed] == [0, 10, 20, 30] and [y[0].item() for _, y in fed] == [0, 1, 2, 3]


def test_a_batch_is_encoded_when_it_is_asked_for():
    """Random numbers of the encoder belong to the step, whose seed is set before."""
    calls = []
    batches = feed(iter([(torch.zeros(1), torch.zeros(1))] * 3), lambda data: calls.append(1) or data, CPU)
    assert calls == []
    next(batches)
    assert calls == [1]


# ---- what is looked at first -----------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """Nothing may be fetched or loaded."""

    def fetch(*args, **settings):
        pytest.fail("fetched")

    for module in (data.feed, extract_latents):
        monkeypatch.setattr(module, "load_autoencoder", fetch)
    monkeypatch.setattr(download, "locate", fetch)
    monkeypatch.setattr(sample.kinds, "load_network", fetch)


@pytest.fixture
def wrong(tmp_path):
    """Data paths that are not trained on, and what is said of each."""
    for name in ("split/train/cat", "split/val/cat", "edm/00000"):
        picture(tmp_path / name / "0.png")
    (tmp_path / "edm" / "dataset.json").write_text('{"labels": [["00000/0.png", -1]]}')
    np.savez(tmp_path / "m.npz", x=np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "page.html").write_text("<html>")
    return {
        "absent": "absent does not exist",
        "split": "give --data-path .*split/train",
        "edm": "is -1; numbers from 0",
        "m.npz": "holds images",
        "page.html": "is a file, a web page",
    }


@pytest.mark.parametrize("name", ["absent", "split", "edm", "m.npz", "page.html"])
@pytest.mark.parametrize("program", ["train", "extract_latents", "sample"])
def test_the_data_are_looked_at_before_anything_is_fetched(tmp_path, wrong, offline, program, name):
    path = str(tmp_path / name)
    main, words = {
        "train": (train.main, ["--results-dir", str(tmp_path / "r")]),
        "extract_latents": (extract_latents.main, ["--out", str(tmp_path / "out")]),
        "sample": (sample.main, ["ODE", "--likelihood", "--out", str(tmp_path / "a.png")]),
    }[program]
    if program == "sample" and name in ("split", "edm"):
        pytest.skip("the folder is listed when the model is known, whose classes it has")
    with pytest.raises(DataError, match=wrong[name]):
        main([*words[: program == "sample"], "--data-path", path, *words[program == "sample" :]])
    assert not (tmp_path / "r").exists() and not (tmp_path / "out").exists()


def test_a_path_is_looked_at_before_a_checkpoint_is_fetched(tmp_path, offline):
    with pytest.raises(DataError, match="absent does not exist"):
        train.main(["--data-path", str(tmp_path / "absent"), "--ckpt", "SiT-XL-2-256x256.pt"])


@pytest.mark.parametrize("word", ["absent.png", "absent.npz:3"])
def test_a_reference_is_looked_at_before_anything_is_fetched(tmp_path, offline, word):
    words = ["ODE", "--reference", str(tmp_path / word), "--preserve", "0.5", "--out", str(tmp_path / "a.png")]
    with pytest.raises(DataError, match=f"--reference .*{word} does not exist"):
        sample.main(words)
