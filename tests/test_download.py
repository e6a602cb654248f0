import huggingface_hub
import pytest
import torch

import download
from models import SiT_models
from runtime.errors import DataError


def test_a_local_file_is_itself(tmp_path):
    torch.save({"ema": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}, tmp_path / "a.pt")
    assert download.locate(str(tmp_path / "a.pt")) == tmp_path / "a.pt"
    assert download.find_model(str(tmp_path / "a.pt"))["w"] == 1


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [
        ("hf://someone/things/deep/er/file.safetensors", "someone/things", "deep/er/file.safetensors"),
        ("SiT-XL-2-256.pt", "nyu-visionx/SiT-collections", "SiT-XL-2-256.pt"),
        ("SiT-XL-2-256x256.pt", "nyu-visionx/SiT-collections", "SiT-XL-2-256.pt"),
        ("SiT-S-2-256.pt", "nyu-visionx/SiT-collections", "SiT-S-2-256.pt"),
    ],
)
def test_what_is_asked_of_the_hub(name, repository, file, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda r, f: asked.append((r, f)) or str(tmp_path / "fetched")
    )
    assert download.locate(name) == tmp_path / "fetched"
    assert asked == [(repository, file)]


def test_models_with_published_weights():
    for model in ("SiT-S/2", "SiT-B/2", "SiT-XL/2"):
        assert model in SiT_models and download.pretrained_name(model) in download.PRETRAINED
    assert download.pretrained_name("ComboStoc-XL/2") is None


def test_failures_are_one_line(monkeypatch):
    def fail(repository, file):
        raise OSError("no route\nto host\n")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        DataError,
        match=r"^file.pt could not be fetched from the Hub repository a/b: no route \(or give --ckpt a local file\)$",
    ):
        download.locate("hf://a/b/file.pt")
    for name in ("hf://a/b", "hf://a", "hf://"):
        with pytest.raises(DataError, match="hf://owner/repo/file"):
            download.locate(name)
    with pytest.raises(DataError, match=r"nothing\.pt does not exist.*SiT-XL-2-256\.pt"):
        download.locate("nothing.pt")
