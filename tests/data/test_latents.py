import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import extract_latents
from data.autoencoder import draw_posterior, load_autoencoder
from data.latents import CachedLatents, is_extraction, map_shard, shard_batches, shard_ranges, signed
from data.sets import ImageFolder
from runtime.errors import DataError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def folder(image_folder, tiny_vae, tmp_path, monkeypatch):
    """Latents of the twelve pictures in three shards."""
    monkeypatch.setattr(extract_latents, "SHARD_SIZE", 5)
    args = ["--data-path", image_folder, "--out", tmp_path / "latents", "--vae", tiny_vae, "--image-size", 16]
    extract_latents.main([*map(str, args), "--num-workers", "0", "--batch-size", "2"])
    return tmp_path / "latents"


def test_an_item_is_what_encoding_gives(folder, image_folder, tiny_vae):
    """Moments, label and mirroring of every image; the pictures themselves are not symmetric."""
    latents, images, space = CachedLatents(folder), ImageFolder(image_folder, 16), load_autoencoder(str(tiny_vae), CPU)
    assert len(latents) == 12 and latents.class_names == images.class_names and latents.labels == images.labels
    for index in range(12):
        for mirror in (False, True):
            image, label = images[index, mirror]
            moments, cached_label = latents[index, mirror]
            assert moments.shape == (2, 4, 8, 8) and cached_label == label
            torch.testing.assert_close(moments, space.moments(image[None])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latents[0, False][0], latents[0, True][0])


def test_every_visit_draws_anew_from_the_posterior(seeded):
    moments = torch.stack([torch.full((4000, 2, 2), 3.0), torch.full((4000, 2, 2), 0.5)])[None]
    draws = draw_posterior(moments)
    assert draws.shape == (1, 4000, 2, 2)
    assert abs(draws.mean() - 3) < 0.02 and abs(draws.std() - 0.5) < 0.02
    assert not torch.equal(draws, draw_posterior(moments))


def test_shards_are_mapped_not_read(folder):
    latents = CachedLatents(folder)
    moments, _ = latents[7, True]
    assert list(latents.maps) == [1]
    path = folder / "00001.npy"
    assert str(path) in Path("/proc/self/maps").read_text()
    assert torch.equal(moments, torch.from_numpy(np.load(path)[2, 1]))
    assert pickle.loads(pickle.dumps(latents)).maps == {}  # on the way to a worker that is not forked


def test_shards_keep_no_file_open(folder):
    """ImageNet has more of them than a process may usually have open files."""
    latents = CachedLatents(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for index in range(12):
        latents[index, False]
    assert len(latents.maps) == 3 and len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_shard_that_is_no_array_is_named(folder):
    for content in (b"", b"abc" * 100, (folder / "00001.npy").read_bytes()[:-400]):
        (folder / "00001.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"shard .*00001\.npy is no shard of latents"):
            map_shard(folder / "00001.npy", (5, 2, 2, 4, 8, 8))
    np.save(folder / "00001.npy", np.zeros(3))
    with pytest.raises(DataError, match="it holds float64"):
        map_shard(folder / "00001.npy", (5, 2, 2, 4, 8, 8))


def test_damage_is_named(folder):
    """Truncated, missing, changed; the manifest too."""
    shard, manifest = folder / "00001.npy", folder / "manifest.json"
    whole, text = shard.read_bytes(), manifest.read_text()
    CachedLatents(folder).verify()
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shard .*00001\.npy has .* bytes, manifest\.json says .*delete it and run"):
        CachedLatents(folder)
    shard.write_bytes(whole[:-7] + bytes(7))
    with pytest.raises(DataError, match=r"shard .*00001\.npy is damaged, its SHA-256"):
        CachedLatents(folder).verify()
    CachedLatents(folder).verify(rank=0, world_size=2)  # the other process's share
    shard.unlink()
    with pytest.raises(DataError, match=r"shard .*00001\.npy has 0 bytes"):
        CachedLatents(folder)
    shard.write_bytes(whole)
    for broken in ("", "[]", "{}", text[:100], text.replace('"labels"', '"lables"')):
        manifest.write_text(broken)
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            CachedLatents(folder)
    manifest.unlink()
    assert is_extraction(folder)
    with pytest.raises(DataError, match=r"is not finished: run extract_latents\.py again"):
        CachedLatents(folder)


def test_latents_without_mirror_images(folder, image_folder, tiny_vae, tmp_path):
    """Half the bytes, the same moments."""
    args = ["--data-path", image_folder, "--out", tmp_path / "plain", "--vae", tiny_vae, "--image-size", 16]
    extract_latents.main([*map(str, args), "--num-workers", "0", "--batch-size", "2", "--no-flip"])
    mirrored, plain = CachedLatents(folder), CachedLatents(tmp_path / "plain")
    assert mirrored.flip and not plain.flip and np.load(tmp_path / "plain" / "00000.npy").shape == (5, 1, 2, 4, 8, 8)
    for index in range(12):
        assert torch.equal(plain[index, False][0], mirrored[index, False][0])
    with pytest.raises(UsageError, match=r"plain holds an extraction without mirror images; give another folder"):
        extract_latents.main([*map(str, args), "--num-workers", "0"])


def test_latents_of_an_older_version_have_mirror_images(folder):
    """Their settings do not say so."""
    for name in ("manifest.json", "extraction.json"):
        content = json.loads((folder / name).read_text())
        del content["flip"]
        (folder / name).write_text(json.dumps(signed(content) if name == "manifest.json" else content))
    latents = CachedLatents(folder)
    assert latents.flip and not torch.equal(latents[0, True][0], latents[0, False][0])


def test_latents_of_an_autoencoder_with_a_mean_for_each_channel(image_folder, tiny_vae, tmp_path):
    shutil.copytree(tiny_vae, tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config |= {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    args = ["--data-path", image_folder, "--out", tmp_path / "out", "--vae", tmp_path / "vae", "--image-size", 16]
    extract_latents.main([*map(str, args), "--num-workers", "0"])
    latents, space = CachedLatents(tmp_path / "out"), load_autoencoder(str(tmp_path / "vae"), CPU)
    assert latents.made_by["shift"] == [0.1, 0.2, 0.3, 0.4] and len(latents.made_by["scale"]) == 4
    image, _ = ImageFolder(image_folder, 16)[3, False]
    torch.testing.assert_close(latents[3, False][0], space.moments(image[None])[0], rtol=1e-4, atol=1e-5)
    latents.check_fits(16, "moved", space)
    with pytest.raises(UsageError, match=r"--vae plain is not the autoencoder .* scale by channel"):
        latents.check_fits(16, "plain", load_autoencoder(str(tiny_vae), CPU))


def test_another_size_or_autoencoder_is_refused(folder, tiny_vae, tmp_path):
    space = load_autoencoder(str(tiny_vae), CPU)
    latents = CachedLatents(folder)
    latents.check_fits(16, "x", space)
    latents.check_fits(16, str(tiny_vae), None)  # by its name
    latents.made_by |= {"name": "ema"}
    latents.latent_shape, latents.image_size = (4, 2, 2), 16
    latents.check_fits(16, "mse", None)  # has the encoder of ema
    latents = CachedLatents(folder)
    with pytest.raises(UsageError, match="--vae ema is not the autoencoder"):
        latents.check_fits(16, "ema", None)
    with pytest.raises(UsageError, match=r"--image-size 32, but .*latents holds latents of 16 pixels"):
        latents.check_fits(32, "x", space)
    with pytest.raises(UsageError, match=r"--vae none is not the autoencoder of the latents"):
        latents.check_fits(16, "none", load_autoencoder("none", CPU))
    other = load_autoencoder(str(tiny_vae), CPU)
    next(other.vae.decoder.parameters()).data += 1
    latents.check_fits(16, "other decoder", other)  # latents do not depend on it
    next(other.vae.encoder.parameters()).data += 1
    with pytest.raises(UsageError, match="--vae other is not the autoencoder"):
        latents.check_fits(16, "other", other)
    space.scale = 0.5
    with pytest.raises(UsageError, match="--vae rescaled is not the autoencoder"):
        latents.check_fits(16, "rescaled", space)


def test_an_image_folder_is_no_cached_latents(image_folder, folder, tmp_path):
    assert not is_extraction(image_folder) and not is_extraction("digits") and is_extraction(folder)
    (tmp_path / "pictures").mkdir()
    for name in ("settings.json", "manifest.json"):  # as other tools, and sample_ddp.py, leave them
        (tmp_path / "pictures" / name).write_text("{}")
    assert not is_extraction(tmp_path / "pictures")


def test_batches_stay_within_shards():
    shards = shard_ranges(12, 5)
    assert [list(s) for s in shards] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert shard_batches(shards[1:], 2) == [[5, 6], [7, 8], [9], [10, 11]]


def test_the_manifest_tells_what_the_latents_are(folder, tiny_vae):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["image_size"] == 16 and manifest["latent_shape"] == [4, 8, 8]
    assert manifest["autoencoder"]["name"] == str(tiny_vae) and manifest["autoencoder"]["scale"] == 0.18215
    assert [s["file"] for s in manifest["shards"]] == ["00000.npy", "00001.npy", "00002.npy"]
    assert manifest["unreadable"] == [] and manifest["class_names"] == ["ant", "bee", "cat"]
