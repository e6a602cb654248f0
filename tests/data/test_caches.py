"""Latents that other programs cached: what is read of them, and what is said of those that are damaged."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from data.caches import is_latents, open_latents
from data.feed import load_latents
from data.sets import ImageFolder
from runtime import distributed
from runtime.command_line import with_values
from runtime.errors import DataError, UsageError
from tests import foreign
from tests.foreign import LABELS, SHAPE, latents
from training.arguments import make_parser


@pytest.fixture(params=foreign.WRITERS)
def cache(request, tmp_path):
    return foreign.WRITERS[request.param](tmp_path / "cache")


def test_every_item_is_what_was_cached(cache):
    data = open_latents(cache)
    assert is_latents(cache) and len(data) == 10 and data.labels == LABELS and data.latent_shape == SHAPE
    assert data.class_names == ["0", "1", "2"] and data.notes == []
    data = pickle.loads(pickle.dumps(data))  # on the way to a worker that is not forked
    for k in range(10):
        item, label = data[k, False]
        assert label == LABELS[k] and item.dtype == torch.float32 and item.shape == (data.parts, *SHAPE)
        assert torch.equal(item[0], torch.from_numpy(latents()[k]))
        if data.parts == 2:
            assert torch.equal(item[1], torch.from_numpy(np.abs(latents(1)[k])))
        if data.flip:
            assert torch.equal(data[k, True][0], item.flip(-1))


def test_a_zip_and_its_folder_are_the_same_data(tmp_path):
    packed = open_latents(foreign.vae_sd_zip(tmp_path / "cache"))
    unpacked = open_latents(tmp_path / "unpacked" / "vae-sd")
    assert packed.digest == unpacked.digest and open_latents(tmp_path / "unpacked").digest == packed.digest


def test_the_digest_is_of_names_and_labels(cache, tmp_path):
    before = open_latents(cache).digest
    assert open_latents(cache).digest == before
    if (cache / "imagenet256_labels").is_dir():
        np.save(cache / "imagenet256_labels" / "3.npy", np.array([1]))
    elif cache.suffix == ".zip":
        pytest.skip("as of the folder")
    elif (cache / "vae-sd").is_dir():
        path = cache / "vae-sd" / "dataset.json"
        content = json.loads(path.read_text())
        content["labels"][3][1] = 1
        path.write_text(json.dumps(content))
    else:
        path = cache / "latents_rank00_shard001.safetensors"
        content = load_file(path)
        content["labels"][0] = 1
        save_file(content, path)
    assert open_latents(cache).digest != before


def test_they_are_no_pictures(cache):
    """For programs that need those, the format is named."""
    folder = cache / "vae-sd" if (cache / "vae-sd").is_dir() else cache
    if cache.suffix != ".zip":
        with pytest.raises(DataError, match=r"holds .*(REPA|LightningDiT|fast-DiT) cached.*, no pictures in folders"):
            ImageFolder(folder, 8)


def test_pictures_are_no_latents(image_folder, tmp_path):
    assert not is_latents(image_folder) and open_latents(image_folder) is None and open_latents("digits") is None
    (tmp_path / "a_features").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_latents(tmp_path) is None


def arguments(path, *flags):
    return make_parser().parse_args(["--data-path", str(path), *flags])


def supplied(data, args, *typed: str):
    """Arguments with what the latents bring."""
    return with_values(args, data.supply(args, set(typed)))


def test_arguments_that_the_latents_know(tmp_path):
    """Four channels are taken for SD-VAE's; of others no autoencoder is known."""
    data, args = open_latents(foreign.fast_dit(tmp_path / "cache")), arguments(tmp_path)
    assert data.supply(args, set()) == {"image_size": 64, "flip": False}
    assert data.image_size(supplied(data, args), None) == 64
    data.latent_shape, args = (32, 16, 16), arguments(tmp_path)
    assert data.supply(args, set()) == {"vae": "none", "image_size": None, "flip": False}
    assert data.image_size(supplied(data, args), None) == 256
    args = supplied(data, arguments(tmp_path, "--image-size", "250", "--vae", "none"), "image_size", "vae")
    with pytest.raises(UsageError, match=r"--image-size 250, but .* holds latents of 16 x 16: give a multiple of 16"):
        data.image_size(args, None)
    args = supplied(data, arguments(tmp_path, "--vae", "mse"), "vae")
    with pytest.raises(UsageError, match=r"--vae mse has 4 channels, the latents in .* 32: give their autoencoder"):
        data.image_size(args, None)


def test_without_an_autoencoder_there_are_no_pictures(tmp_path):
    path = foreign.lightningdit(tmp_path / "cache")
    few = ["--data-path", path, "--num-classes", 3, "--model", "SiT-XS/2", "--global-batch-size", 4, "--num-workers", 0]
    few = [*map(str, few), "--vae", "none", "--max-steps", "1", "--results-dir", str(tmp_path / "r")]
    with pytest.raises(UsageError, match=r"--vae none decodes no latents, .*or --sample-every 0"):
        train.main(few)
    train.main([*few, "--sample-every", "0"])
    train.main([*few, "--sample-every", "0", "--max-steps", "2"])  # continued


def test_statistics_standardise(tmp_path):
    """LightningDiT's own, of latents that are not scaled; decoding leads back to them."""
    data = open_latents(foreign.lightningdit(tmp_path / "cache"))
    mean, std = data.statistics
    np.testing.assert_allclose(mean, latents().mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, latents().std((0, 2, 3), ddof=1), rtol=1e-5)
    (tmp_path / "cache" / "latents_stats.pt").unlink()
    assert open_latents(tmp_path / "cache").statistics is None


# ---- damage ----------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def edit_shard(path, **tensors):
    content = load_file(path) | tensors
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, path)


VAE_SD, SHARD = "vae-sd/00001/img-mean-std-00000005.npy", "latents_rank00_shard001.safetensors"
FEATURE, LABEL = "imagenet256_features/5.npy", "imagenet256_labels/5.npy"
FIRST = "vae-sd/00000/img-mean-std-00000000.npy"
DAMAGE = [
    ("vae-sd", lambda p: cut(p / VAE_SD), r"img-mean-std-00000005\.npy has 2,167 bytes, .* 2,176"),
    ("vae-sd", lambda p: (p / VAE_SD).unlink(), "lists 1 pictures that are not there, 00001/img-mean-std-00000005"),
    ("vae-sd", lambda p: (p / "vae-sd/dataset.json").unlink(), "latents without a dataset.json"),
    ("vae-sd", lambda p: (p / "vae-sd/dataset.json").write_text("{"), r"dataset\.json cannot be read"),
    ("vae-sd", lambda p: (p / FIRST).write_bytes(b"x" * 99), r"00000000\.npy is no array of latents"),
    ("vae-sd", lambda p: np.save(p / FIRST, np.zeros((3, 8, 8))), r"is \(3, 8, 8\); mean and deviation"),
    ("vae-sd", lambda p: np.save(p / FIRST, np.array([{}], dtype=object)), "is no array of latents"),
    ("lightningdit", lambda p: cut(p / SHARD), r"shard001\.safetensors cannot be read"),
    ("lightningdit", lambda p: edit_shard(p / SHARD, labels=None), r"shard001\.safetensors has no labels; it has lat"),
    ("lightningdit", lambda p: edit_shard(p / SHARD, labels=torch.zeros(3, dtype=torch.int64)), "with labels of 3 "),
    ("lightningdit", lambda p: edit_shard(p / SHARD, labels=torch.zeros(4)), "with labels of 4 torch.float32"),
    ("lightningdit", lambda p: edit_shard(p / SHARD, latents=torch.zeros(4, 4, 4, 4)), "holds latents of 4 x 4 x 4 x"),
    ("lightningdit", lambda p: edit_shard(p / SHARD, latents_flip=torch.zeros(1)), "latents_flip are not of the shape"),
    ("lightningdit", lambda p: (p / "latents_stats.pt").write_bytes(b"x"), r"latents_stats\.pt holds no mean and std"),
    ("lightningdit", lambda p: torch.save({"mean": 1}, p / "latents_stats.pt"), "holds no mean and std"),
    (
        "lightningdit",
        lambda p: torch.save({"mean": torch.zeros(3), "std": torch.ones(3)}, p / "latents_stats.pt"),
        "are 3 and 3 numbers for 4 channels",
    ),
    (
        "lightningdit",
        lambda p: torch.save({"mean": torch.zeros(4), "std": torch.zeros(4)}, p / "latents_stats.pt"),
        "a std is not positive",
    ),
    ("fast-dit", lambda p: cut(p / FEATURE), r"5\.npy has 1,143 bytes, .*0\.npy 1,152"),
    ("fast-dit", lambda p: (p / LABEL).unlink(), r"5\.npy is in .*_features or .*_labels alone"),
    ("fast-dit", lambda p: (p / LABEL).write_bytes(b"x"), r"_labels/5\.npy is no array of latents or labels"),
    ("fast-dit", lambda p: np.save(p / LABEL, np.array([1.5])), "one whole number, a label, is needed"),
    ("fast-dit", lambda p: np.save(p / LABEL, np.array([-1])), "a label is -1; numbers from 0"),
    ("fast-dit", lambda p: np.save(p / "imagenet256_features/0.npy", np.zeros((4, 8, 8))), "one latent, .1, C, h, w."),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGE)
def test_damage_is_named_before_anything_is_written(name, damage, said, tmp_path):
    path = foreign.WRITERS[name](tmp_path / "cache")
    damage(path)
    args = ["--data-path", path, "--num-classes", 3, "--model", "SiT-XS/2", "--global-batch-size", 4]
    args = [*map(str, args), "--num-workers", "0", "--sample-every", "0", "--results-dir", str(tmp_path / "r")]
    with pytest.raises(DataError, match=said) as raised:
        train.main(args)
    assert "\n" not in str(raised.value) and not (tmp_path / "r").exists()


def test_another_shape_of_the_same_size_is_named(tmp_path):
    path = foreign.fast_dit(tmp_path / "cache")
    np.save(path / FEATURE, np.zeros((1, 16, 4, 4), np.float32))
    data = open_latents(path)
    data.verify()
    with pytest.raises(DataError, match=r"5\.npy is 1 x 16 x 4 x 4, the first one 4 x 8 x 8"):
        data[sorted(range(10), key=str).index(5), False]


def test_a_damaged_archive_is_named(tmp_path):
    path = foreign.vae_sd_zip(tmp_path / "cache")
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"\.npy cannot be read: the archive is damaged"):
        data = open_latents(path)
        for k in range(len(data)):
            data[k, False]


def test_an_empty_cache_is_named(tmp_path):
    path = foreign.fast_dit(tmp_path / "cache")
    for folder in path.iterdir():
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(DataError, match=r"imagenet256_features holds no \.npy"):
        open_latents(path)


@pytest.mark.parametrize("name", ["vae-sd", "fast-dit", "lightningdit"])
def test_what_a_model_sees(name, tmp_path):
    """Latents of SD-VAE by its 0.18215, which fast-DiT's have already; LightningDiT's by the statistics beside them."""
    path, process = foreign.WRITERS[name](tmp_path / "cache"), distributed.Process(0, 0, 1, torch.device("cpu"))
    data, args = open_latents(path), arguments(path, "--sample-every", "0", "--model", "SiT-XS/2")
    found = load_latents(supplied(data, args), process, data)
    items = torch.stack([data[k, False][0] for k in range(10)])
    if data.parts == 2:
        items[:, 1] = 0  # the deviation
    x, z = found.to_latents(items), torch.from_numpy(latents())
    if name == "lightningdit":
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(4))
        z = (x * torch.tensor(data.statistics[1]).view(4, 1, 1)) + torch.tensor(data.statistics[0]).view(4, 1, 1)
        torch.testing.assert_close(z, torch.from_numpy(latents()), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(x, z * 0.18215 if name == "vae-sd" else z)
    assert found.input_shape == SHAPE and found.autoencoder is None
