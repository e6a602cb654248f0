import errno
import json
import os
import shutil
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import extract_latents
import train
from data import feed, latents
from runtime import checkpoint
from runtime.errors import DataError, UsageError
from tests.conftest import ROOT
from tests.faults import metrics
from tests.forked import run_forked, start


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures in two classes, one of them broken and one empty."""
    root = tmp_path_factory.mktemp("pictures")
    for k in range(40):
        path = root / f"class {k % 2}" / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").rotate(9 * k).resize((20 + k, 24)).convert("RGB").save(path)
    (root / "class 0" / "10.png").write_bytes(b"not a picture")
    (root / "class 1" / "33.png").write_bytes(b"")
    return root


def arguments(pictures, vae, out, *more):
    flags = ["--data-path", pictures, "--out", out, "--vae", vae, "--image-size", "16", "--batch-size", "3"]
    flags += ["--max-bad-images", "0.05", *more]  # two of forty
    return list(map(str, flags))


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def small_shards_on_one_thread():
    """As in the processes that are started here: the number of threads is in the rounding."""
    size, threads = extract_latents.SHARD_SIZE, torch.get_num_threads()
    extract_latents.SHARD_SIZE = 4
    torch.set_num_threads(1)
    try:
        yield
    finally:
        extract_latents.SHARD_SIZE = size
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(pictures, tiny_vae, tmp_path_factory):
    """One uninterrupted extraction."""
    out = tmp_path_factory.mktemp("whole") / "latents"
    with small_shards_on_one_thread():
        extract_latents.main(arguments(pictures, tiny_vae, out, "--num-workers", "0"))
    return out


def write_small_shards(rank: int, seconds: float = 0.0) -> None:
    """In the process of an extraction, which may wait before each."""
    extract_latents.SHARD_SIZE = 4
    write = extract_latents.write_shard
    extract_latents.write_shard = lambda *args: (time.sleep(seconds), write(*args))


def test_an_extraction_that_is_killed_twice_ends_with_the_same_bytes(pictures, tiny_vae, whole, tmp_path, capsys):
    out = tmp_path / "latents"
    argv = arguments(pictures, tiny_vae, out, "--num-workers", "1")
    said, slowly = tmp_path / "said", partial(write_small_shards, seconds=0.1)
    for shards in (2, 5):
        (process,) = start("extract_latents", argv, stdout=said, stderr=said, before=slowly)
        deadline = time.time() + 120
        while len(list(out.glob("*.npy"))) < shards and time.time() < deadline:
            time.sleep(0.02)
        process.kill()
        process.join()
        assert not (out / "manifest.json").exists() and len(list(out.glob("*.npy"))) >= shards, said.read_text()
    (out / "00001.npy").write_bytes(b"cut")  # as a file system may leave it
    (out / "00009.npy.123.tmp").write_bytes(b"half")
    (out / "records" / "00009.json.123.tmp").write_bytes(b"half")
    with small_shards_on_one_thread():
        extract_latents.main(argv)
    assert "continuing: " in capsys.readouterr().out
    assert files_of(out) == files_of(whole)


def test_two_processes_write_the_same_bytes(pictures, tiny_vae, whole, tmp_path):
    argv = arguments(pictures, tiny_vae, tmp_path / "latents")
    result = run_forked("extract_latents.py", *argv, processes=2, cwd=tmp_path, before=write_small_shards)
    assert "latents of 38 images in 2 classes" in result.stdout and "images/s" in result.stdout
    assert files_of(tmp_path / "latents") == files_of(whole)


def test_unreadable_images_are_named_counted_and_left_out(pictures, tiny_vae, tmp_path, capsys):
    extract_latents.main(arguments(pictures, tiny_vae, tmp_path / "latents", "--num-workers", "0"))
    captured = capsys.readouterr()
    assert "2 images could not be read and are left out" in captured.out
    assert captured.err.count("left out: image ") == 2 and "10.png" in captured.err and "33.png" in captured.err
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    assert [f"{k}.png" in reason for k, reason in zip((10, 33), manifest["unreadable"], strict=True)] == [True, True]
    assert [label for shard in manifest["shards"] for label in shard["labels"]] == [0] * 19 + [1] * 19
    extract_latents.main(arguments(pictures, tiny_vae, tmp_path / "latents", "--num-workers", "0"))  # nothing to do
    assert "continuing: 1 of 1 shards are there" in capsys.readouterr().out


def test_training_on_cached_latents_is_training_on_the_images(whole, pictures, tiny_vae, tmp_path):
    """The same draws from the same posteriors, up to the rounding of the encoder's batches."""
    for k in ("10", "33"):  # the same images for both
        assert any(f"{k}.png" in line for line in json.loads((whole / "manifest.json").read_text())["unreadable"])
    readable = tmp_path / "readable"
    for path in pictures.rglob("*.png"):
        if path.name not in ("10.png", "33.png"):
            (readable / path.parent.name).mkdir(parents=True, exist_ok=True)
            (readable / path.parent.name / path.name).symlink_to(path)
    losses = {}
    for name, data in (("images", readable), ("latents", whole)):
        args = ["--data-path", data, "--vae", tiny_vae, "--image-size", "16", "--num-classes", "2", "--exp", name]
        args += ["--model", "SiT-XS/2", "--global-batch-size", "8", "--num-workers", "0", "--max-steps", "6"]
        args += ["--lr", "1e-2", "--log-every", "1", "--sample-every", "6", "--results-dir", tmp_path]
        train.main(list(map(str, args)))
        folder = tmp_path / f"SiT-XS-2-{name}"
        losses[name] = [float(row["loss"]) for row in metrics(folder)]
        assert (folder / "samples" / "0000006.png").is_file()
    assert len(set(losses["images"])) == 6
    np.testing.assert_allclose(losses["images"], losses["latents"], rtol=1e-3)


def test_training_refuses_latents_that_do_not_fit_or_are_damaged(whole, tiny_vae, tmp_path):
    args = ["--data-path", whole, "--num-classes", "2", "--model", "SiT-XS/2", "--global-batch-size", "8"]
    args += ["--num-workers", "0", "--max-steps", "1", "--results-dir", tmp_path / "results"]
    fitting = ["--vae", tiny_vae, "--image-size", "16"]
    for flags, line in ((["--image-size", "32"], "--image-size 32, but"), (["--vae", "none"], "--vae none is not")):
        with pytest.raises(UsageError, match=line):
            train.main([*map(str, args + fitting), *flags])
    shutil.copytree(whole, tmp_path / "damaged")
    with open(tmp_path / "damaged" / "00003.npy", "r+b") as shard:
        shard.seek(500)
        shard.write(b"1234")
    with pytest.raises(DataError, match=r"00003\.npy is damaged, its SHA-256 .* run extract_latents\.py again"):
        train.main([*map(str, args + fitting), "--data-path", str(tmp_path / "damaged")])
    assert not (tmp_path / "results").exists()


def test_the_autoencoder_may_be_named_otherwise(whole, pictures, tiny_vae, tmp_path, capsys):
    shutil.copytree(tiny_vae, tmp_path / "moved")
    shutil.copytree(whole, tmp_path / "latents")
    (tmp_path / "latents" / "manifest.json").unlink()
    (tmp_path / "latents" / "00002.npy").unlink()
    with small_shards_on_one_thread():
        extract_latents.main(arguments(pictures, tmp_path / "moved", tmp_path / "latents", "--num-workers", "0"))
    assert files_of(tmp_path / "latents") == files_of(whole)


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_trouble_of_the_machine_stops_instead_of_dropping_images(code, pictures, tiny_vae, tmp_path, monkeypatch):
    opened = Image.open

    def fail_once(path, **kwargs):
        if str(path).endswith("20.png"):
            raise OSError(code, os.strerror(code), path)
        return opened(path, **kwargs)

    monkeypatch.setattr(Image, "open", fail_once)
    with pytest.raises(DataError, match=r"20\.png cannot be read"):
        extract_latents.main(arguments(pictures, tiny_vae, tmp_path / "latents", "--num-workers", "0"))
    assert not (tmp_path / "latents" / "manifest.json").exists()


def test_without_sample_pictures_training_needs_no_autoencoder(whole, tiny_vae, tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "load_autoencoder", lambda *args: pytest.fail("loaded"))
    args = ["--data-path", whole, "--vae", tiny_vae, "--image-size", "16", "--num-classes", "2", "--max-steps", "1"]
    args += ["--model", "SiT-XS/2", "--global-batch-size", "8", "--num-workers", "0", "--sample-every", "0"]
    train.main([*map(str, args), "--results-dir", str(tmp_path)])
    assert (tmp_path / "SiT-XS-2-exp_tmp" / "ckpt.pt").is_file()


def test_training_takes_image_size_and_autoencoder_from_the_latents(whole, tiny_vae, tmp_path):
    args = ["--data-path", whole, "--num-classes", "2", "--model", "SiT-XS/2", "--global-batch-size", "8"]
    args = [*map(str, args), "--num-workers", "0", "--results-dir", str(tmp_path)]
    train.main([*args, "--max-steps", "1"])
    folder = tmp_path / "SiT-XS-2-exp_tmp"
    assert f"From the latents: --vae {tiny_vae}, --image-size 16\n" in (folder / "log.txt").read_text()
    saved = checkpoint.load(folder / "ckpt.pt")["args"]
    assert saved["vae"] == str(tiny_vae) and saved["image_size"] == 16
    train.main([*args, "--max-steps", "2"])


@pytest.mark.parametrize("flags", [["--vae", "ema"], ["--vae", "mse", "--sample-every", "0"], ["--image-size", "256"]])
def test_a_mismatch_is_said_before_anything_is_fetched(whole, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(feed, "load_autoencoder", lambda *args: pytest.fail("loaded"))
    args = ["--data-path", str(whole), "--num-classes", "2", "--model", "SiT-XS/2", "--results-dir", str(tmp_path)]
    with pytest.raises(UsageError, match=r"--vae (ema|mse) is not the autoencoder of the latents|holds latents of 16"):
        train.main([*args, "--num-workers", "0", *flags])
    assert list(tmp_path.iterdir()) == []


def test_an_autoencoder_that_is_gone_is_for_pictures_only(whole, tiny_vae, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "latents")
    path = tmp_path / "latents" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["autoencoder"]["name"] = "gone"
    path.write_text(json.dumps(latents.signed(manifest)))
    args = ["--data-path", path.parent, "--num-classes", "2", "--model", "SiT-XS/2", "--global-batch-size", "8"]
    args = [*map(str, args), "--num-workers", "0", "--max-steps", "1", "--results-dir", str(tmp_path)]
    with pytest.raises(DataError, match=r"--vae gone is neither .*; it is for --sample-every and --eval-every only"):
        train.main(args)
    train.main([*args, "--sample-every", "0"])


def test_training_without_mirroring_on_latents(whole, pictures, tiny_vae, tmp_path):
    """With mirror images that are not used, or none; which none can be asked of."""
    plain = tmp_path / "plain"
    with small_shards_on_one_thread():
        extract_latents.main(arguments(pictures, tiny_vae, plain, "--num-workers", "0", "--no-flip"))
    losses = {}
    for data, flags in ((whole, ["--no-flip"]), (plain, []), (whole, [])):
        args = ["--data-path", data, "--num-classes", "2", "--model", "SiT-XS/2", "--global-batch-size", "16"]
        args += ["--num-workers", "0", "--max-steps", "2", "--log-every", "1", "--sample-every", "0", *flags]
        args += ["--results-dir", tmp_path, "--exp", (exp := str(len(losses)))]
        train.main([*map(str, args)])
        losses[exp] = [row["loss"] for row in metrics(tmp_path / f"SiT-XS-2-{exp}")]
    assert losses["0"] == losses["1"] != losses["2"]
    with pytest.raises(UsageError, match=r"plain holds no mirror images: give --no-flip"):
        train.main([*map(str, args), "--data-path", str(plain), "--flip", "--exp", "x"])


MISTAKES = [
    (["--vae", "none"], UsageError, "--vae none has no latents to extract"),
    (["--image-size", "17"], UsageError, "--image-size 17 is not a multiple of the autoencoder's 2"),
    (["--image-size", "32"], UsageError, "holds an extraction with another image size; give another folder"),
    (["--precision", "bf16"], UsageError, "another precision; give another folder"),
    (["--data-path", "absent"], DataError, "absent does not exist"),
    (["--out", str(ROOT)], UsageError, "is not empty and holds no extraction"),
]


@pytest.mark.parametrize(("flags", "kind", "line"), MISTAKES)
def test_mistakes_are_named_and_change_nothing(flags, kind, line, pictures, tiny_vae, whole):
    before = files_of(whole)
    with pytest.raises(kind, match=line):
        extract_latents.main([*arguments(pictures, tiny_vae, whole, "--num-workers", "0"), *flags])
    assert files_of(whole) == before


def test_a_changed_image_folder_is_noticed(pictures, tiny_vae, whole, tmp_path):
    (tmp_path / "class 0").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "class 0" / "00.png")
    with pytest.raises(UsageError, match="other images; give another folder"):
        extract_latents.main(arguments(tmp_path, tiny_vae, whole, "--num-workers", "0"))


def test_not_one_readable_image(tiny_vae, tmp_path):
    (tmp_path / "images" / "class").mkdir(parents=True)
    (tmp_path / "images" / "class" / "a.png").write_bytes(b"no")
    flags = ["--num-workers", "0", "--max-bad-images", "1"]
    with pytest.raises(DataError, match=r"not one of 1 images could be read; the first: .*a\.png"):
        extract_latents.main(arguments(tmp_path / "images", tiny_vae, tmp_path / "out", *flags))


def test_too_many_unreadable_images(pictures, tiny_vae, tmp_path):
    """The extraction stops, and goes on when more are allowed."""
    flags = ["--num-workers", "0", "--max-bad-images", "0.04"]
    line = r"2 of 40 images cannot be read, more than --max-bad-images 0.04 allows; the last: image .*33\.png"
    with pytest.raises(DataError, match=line):
        extract_latents.main(arguments(pictures, tiny_vae, tmp_path, *flags))
    assert not (tmp_path / "manifest.json").exists()
    extract_latents.main(arguments(pictures, tiny_vae, tmp_path, "--num-workers", "0"))
    assert (tmp_path / "manifest.json").exists()
