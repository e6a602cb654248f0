"""From pictures to samples with each class of autoencoders, and with latents that other programs cached."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import export
import extract_latents
import sample
import sample_ddp
import train
from data.autoencoder import load_autoencoder
from data.latents import signed
from data.scaling import KEY
from runtime import checkpoint
from runtime.errors import DataError, UsageError
from tests import foreign, tokenizers
from tests.test_export import network
from tests.tokenizers import SIZE, SMALL

MODEL = "SiT-XS/2"
FEW = ["--model", MODEL, "--num-classes", "3", "--global-batch-size", "4", "--num-workers", "0", "--log-every", "1"]


def run(data, results, steps: int, *flags) -> dict:
    """Train; the checkpoint."""
    args = ["--data-path", data, *FEW, "--max-steps", steps, "--results-dir", results, *flags]
    train.main([*map(str, args)])
    return checkpoint.load(results / "SiT-XS-2-exp_tmp" / "ckpt.pt")


def log(results) -> str:
    return (results / "SiT-XS-2-exp_tmp" / "log.txt").read_text()


def check_resumes(data, folder, *flags, steps=3) -> dict:
    """Some steps at once, and in two runs, end with the same bits."""
    whole = run(data, folder / "whole", steps, *flags)
    run(data, folder / "parts", steps * 2 // 3, *flags)
    parts = run(data, folder / "parts", steps, *flags)
    for name in ("model", "ema"):
        assert all(torch.equal(tensor, parts[name][key]) for key, tensor in whole[name].items())
    assert whole.get(KEY) == parts.get(KEY)
    assert whole["progress"]["images_seen"] == parts["progress"]["images_seen"]
    return whole


def check_samples(folder, size: int, *flags) -> np.ndarray:
    ckpt, out = folder / "whole" / "SiT-XS-2-exp_tmp" / "ckpt.pt", folder / "a.png"
    args = ["ODE", "--ckpt", ckpt, "--class-labels", "0", "2", "--out", out, "--sampling-method", "euler"]
    sample.main([*map(str, args), "--num-sampling-steps", "3", *map(str, flags)])
    with Image.open(out) as picture:
        assert min(picture.size) >= size
        return np.asarray(picture)


QUICK = {"Flux2", "lightningdit"}  # one of each kind
SOURCES = [*SMALL, *tokenizers.WITH_TRANSFORMERS, *foreign.WRITERS]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.drill) for n in SOURCES])
def test_twenty_steps_to_a_number(name, image_folder, tmp_path, monkeypatch, capsys):
    """Of latents of each class of autoencoders, and of each other program: trained on, continued to the same bits,
    sampled, compared with pictures."""
    if name in tokenizers.WITH_TRANSFORMERS:
        pytest.importorskip("transformers")
    else:
        tokenizers.without_transformers(monkeypatch)
    data = tmp_path / "latents"
    vae = tokenizers.save("KL" if name in foreign.WRITERS else name, tmp_path / "vae")
    if name in foreign.WRITERS:
        data = foreign.WRITERS[name](data)
    else:
        args = ["--data-path", image_folder, "--out", data, "--vae", vae, "--image-size", SIZE, "--num-workers", 0]
        extract_latents.main([*map(str, args)])
    check_resumes(data, tmp_path, "--vae", vae, "--sample-every", "0", "--ema-warmup", steps=20)
    args = ["--ckpt", tmp_path / "whole" / "SiT-XS-2-exp_tmp" / "ckpt.pt", "--sample-dir", tmp_path / "samples"]
    args += [
        "--num-fid-samples",
        6,
        "--per-proc-batch-size",
        3,
        "--num-sampling-steps",
        4,
        "--sampling-method",
        "euler",
    ]
    sample_ddp.main(["ODE", *map(str, args)])
    (samples,) = (tmp_path / "samples").glob("*.npz")
    with np.load(samples) as arrays:
        assert arrays["arr_0"].shape == (6, SIZE, SIZE, 3) and arrays["arr_0"].std() > 1
    capsys.readouterr()
    flags = ["--features", "efficientnet-lite0", "--image-size", str(SIZE)]
    evaluate.main([str(samples), str(image_folder), *flags])
    numbers = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert 0 < float(numbers["FD-efficientnet-lite0"]) < 1e4


RARE = {"KL", "KVAE", "HunyuanImage", "QwenImage", "Asymmetric", "VQ"}  # or tried by other tests


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.drill) if n in RARE else n for n in SMALL])
def test_pictures_to_latents_to_samples(name, image_folder, tmp_path, monkeypatch, capsys):
    tokenizers.without_transformers(monkeypatch)
    vae = tokenizers.save(name, tmp_path / "vae")
    args = ["--data-path", image_folder, "--out", tmp_path / "latents", "--vae", vae, "--image-size", SIZE]
    extract_latents.main([*map(str, args), "--num-workers", "0"])
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    printed = capsys.readouterr().out
    for word in ("mean", "std"):
        assert len(manifest["statistics"][word]) == SMALL[name][3]
        assert len(re.search(rf"^{word} of each channel: (.*)$", printed, re.M)[1].split()) == SMALL[name][3]
    saved = check_resumes(tmp_path / "latents", tmp_path, "--sample-every", "3")
    assert (KEY in saved) == (name in ("KVAE", "Tiny"))  # whose configurations have no scale
    assert saved["args"]["latent_stats"] == ("data" if KEY in saved else "config")
    check_samples(tmp_path, SIZE)


@pytest.mark.parametrize("name", ["DC", "RAE", "Flux2"])
def test_pictures_to_samples(name, image_folder, tmp_path, monkeypatch):
    tokenizers.without_transformers(monkeypatch)
    vae = tokenizers.save(name, tmp_path / "vae")
    check_resumes(image_folder, tmp_path, "--vae", vae, "--image-size", SIZE, "--sample-every", "0")
    check_samples(tmp_path, SIZE)


@pytest.mark.parametrize(("name", "size", "said"), [("DC", 18, "multiple of 8"), ("RAE", 32, "of 16 pixels only")])
def test_sizes_that_do_not_fit_are_named(name, size, said, image_folder, tmp_path, monkeypatch):
    tokenizers.without_transformers(monkeypatch)
    vae = tokenizers.save(name, tmp_path / "vae")
    flags = ["--vae", vae, "--image-size", size]
    with pytest.raises(UsageError, match=f"--image-size {size}.*{said}"):
        run(image_folder, tmp_path / "results", 1, *flags)
    args = [*map(str, ["--data-path", image_folder, "--out", tmp_path / "out", *flags, "--num-workers", 0])]
    with pytest.raises(UsageError, match=f"--image-size {size}"):
        extract_latents.main(args)
    assert not (tmp_path / "results").exists() and not (tmp_path / "out").exists()


# ---- scale -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extracted(image_folder, tiny_vae, tmp_path_factory):
    """Latents of an autoencoder with a scale."""
    out = tmp_path_factory.mktemp("extracted") / "latents"
    args = ["--data-path", image_folder, "--out", out, "--vae", tiny_vae, "--image-size", SIZE, "--num-workers", 0]
    extract_latents.main([*map(str, args)])
    return out


def test_statistics_are_those_of_draws(extracted):
    """Of both the mean's spread and each posterior's own."""
    manifest = json.loads((extracted / "manifest.json").read_text())
    moments = np.concatenate([np.load(path) for path in sorted(extracted.glob("*.npy"))])  # (12, 2, 2, 4, 8, 8)
    noise = np.random.default_rng(0).standard_normal((50, *moments[:, :, 0].shape))
    draws = moments[:, :, 0] + moments[:, :, 1] * noise
    np.testing.assert_allclose(manifest["statistics"]["mean"], draws.mean((0, 1, 2, 4, 5)), rtol=0.02, atol=2e-3)
    np.testing.assert_allclose(manifest["statistics"]["std"], draws.std((0, 1, 2, 4, 5)), rtol=0.01)


def test_a_scale_of_the_data_or_none_is_carried_and_undone(extracted, tiny_vae, tmp_path, monkeypatch):
    """The model sees standardised latents, or those of the autoencoder; sampling leads back to these."""
    seen = {}
    for kind in ("config", "data", "none"):
        inputs = []
        step = train.training_step
        monkeypatch.setattr(
            train, "training_step", lambda *a, _i=inputs, _s=step, **k: (_i.append(a[4]), _s(*a, **k))[1]
        )
        saved = run(extracted, tmp_path / kind / "whole", 3, "--latent-stats", kind, "--sample-every", "0")
        monkeypatch.setattr(train, "training_step", step)
        seen[kind] = torch.cat(inputs), saved.get(KEY)
    m = json.loads((extracted / "manifest.json").read_text())["statistics"]
    mean, std = (torch.tensor(m[name]).view(-1, 1, 1) for name in ("mean", "std"))
    config = seen["config"][0]
    torch.testing.assert_close(seen["data"][0], (config - mean) / std, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["none"][0], config / 0.18215, rtol=1e-4, atol=1e-5)
    assert seen["config"][1] is None and seen["none"][1] == {"scale": 1.0, "shift": 0.0}
    own = load_autoencoder(str(tiny_vae), torch.device("cpu"))
    latents = torch.randn(2, 4, 8, 8)
    for kind, back in (("config", latents), ("data", latents * std + mean), ("none", latents * 0.18215)):
        ckpt, exported = tmp_path / kind / "whole" / "SiT-XS-2-exp_tmp" / "ckpt.pt", tmp_path / kind / "a.safetensors"
        export.main([str(ckpt), "--out", str(exported)])
        for path in (ckpt, exported):
            space = network(path).autoencoder
            torch.testing.assert_close(space.decode(latents), own.decode(back), rtol=1e-3, atol=1e-4)
    with pytest.raises(
        UsageError, match=r"a\.pt: of a model of images it must end in \.safetensors, which keeps the latent_scale"
    ):
        export.main([str(ckpt), "--out", str(tmp_path / "a.pt")])


def test_a_continued_run_keeps_its_scale(extracted, tmp_path):
    """Though the data come without statistics by then."""
    shutil.copytree(extracted, tmp_path / "latents")
    saved = run(tmp_path / "latents", tmp_path, 1, "--latent-stats", "data", "--sample-every", "0")
    path = tmp_path / "latents" / "manifest.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "statistics"}
    path.write_text(json.dumps(signed(manifest)))
    assert run(tmp_path / "latents", tmp_path, 2, "--sample-every", "0")[KEY] == saved[KEY]
    assert "of the data" in log(tmp_path)


def test_a_checkpoint_that_was_trained_without_goes_on_without(image_folder, tmp_path):
    """Of an autoencoder without a scale, by a version that knew no statistics."""
    vae = tokenizers.save("Tiny", tmp_path / "vae")
    args = ["--data-path", image_folder, "--out", tmp_path / "latents", "--vae", vae, "--image-size", SIZE]
    extract_latents.main([*map(str, args), "--num-workers", "0"])
    results = tmp_path / "results"
    run(tmp_path / "latents", results, 1, "--latent-stats", "config", "--sample-every", "0")
    ckpt = results / "SiT-XS-2-exp_tmp" / "ckpt.pt"
    content = checkpoint.load(ckpt)
    del content["args"]["latent_stats"]
    checkpoint.save(ckpt, content)
    assert KEY not in run(tmp_path / "latents", results, 2, "--sample-every", "0")
    assert KEY in run(tmp_path / "latents", tmp_path / "fresh", 1, "--sample-every", "0")


@pytest.mark.parametrize(
    "latents",
    [3, {"scale": 1.0}, {"scale": 0.0, "shift": 0.0}, {"scale": [1.0] * 3, "shift": 0.0}, {"scale": 1.0, "shift": "x"}],
)
def test_a_scale_that_is_none_is_named(latents, extracted, tmp_path):
    run(extracted, tmp_path / "whole", 1, "--sample-every", "0")
    ckpt = tmp_path / "whole" / "SiT-XS-2-exp_tmp" / "ckpt.pt"
    checkpoint.save(ckpt, checkpoint.load(ckpt) | {KEY: latents})
    with pytest.raises(DataError, match="its 'latent_scale' "):
        check_samples(tmp_path, SIZE)
    with pytest.raises(DataError, match="its 'latent_scale' "):
        run(extracted, tmp_path / "whole", 2, "--sample-every", "0")


def test_what_has_no_statistics_is_said(extracted, image_folder, tiny_vae, tmp_path):
    """An older version's latents, to which a second extraction adds them, and pictures."""
    older = tmp_path / "latents"
    args = ["--data-path", image_folder, "--out", older, "--vae", tiny_vae, "--image-size", SIZE, "--num-workers", 0]
    extract_latents.main([*map(str, args)])
    manifest = json.loads((older / "manifest.json").read_text())
    statistics = manifest.pop("statistics")
    (older / "manifest.json").write_text(json.dumps(signed(manifest)))
    for path in (older / "records").iterdir():
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "statistics"}))
    flags = ["--latent-stats", "data", "--sample-every", "0"]
    for data, more in ((older, []), (image_folder, ["--vae", tiny_vae, "--image-size", SIZE])):
        with pytest.raises(UsageError, match="--latent-stats data: no mean and deviation come with"):
            run(data, tmp_path / "results", 1, *flags, *more)
    run(older, tmp_path / "results", 1, "--sample-every", "0")
    extract_latents.main([*map(str, args)])
    assert json.loads((older / "manifest.json").read_text())["statistics"] == statistics
    run(older, tmp_path / "results", 2, "--sample-every", "0")
    assert "the data have changed" not in log(tmp_path / "results")


def test_pixels_have_no_scale(tmp_path):
    args = ["--data-path", "digits", "--vae", "none", "--image-size", "8", "--latent-stats", "none"]
    with pytest.raises(UsageError, match="--latent-stats none is for latents; --vae none has none"):
        train.main([*args, "--results-dir", str(tmp_path)])


# ---- latents of other programs ---------------------------------------------------------------------------------------

SHOWN = {
    "vae-sd": "EDM2 or REPA cached in .*: 10 of 4 x 8 x 8, mean and deviation, without mirror images",
    "vae-sd.zip": "EDM2 or REPA cached in .*: 10 of 4 x 8 x 8, mean and deviation, without mirror images",
    "lightningdit": "LightningDiT cached in .*: 10 of 4 x 8 x 8, one draw each, with mirror images",
    "fast-dit": "fast-DiT cached in .*: 10 of 4 x 8 x 8, one draw each, without mirror images",
}


@pytest.mark.parametrize("name", foreign.WRITERS)
def test_latents_of_other_programs(name, tiny_vae, tmp_path):
    """Trained on where they lie, continued bit for bit, sampled."""
    path = foreign.WRITERS[name](tmp_path / "cache")
    saved = check_resumes(path, tmp_path, "--vae", tiny_vae, "--sample-every", "3")
    assert saved["args"]["image_size"] == 16 and saved["class_names"] == ["0", "1", "2"]
    assert re.search(SHOWN[name], log(tmp_path / "whole"))
    assert (KEY in saved) == (name == "lightningdit") and saved["args"]["flip"] == (name == "lightningdit")
    check_samples(tmp_path, 16)


def test_an_evaluation_needs_a_reference(tmp_path):
    path = foreign.WRITERS["fast-dit"](tmp_path / "cache")
    with pytest.raises(UsageError, match="with cached latents needs --eval-reference"):
        run(
            path,
            tmp_path / "r",
            1,
            "--sample-every",
            "0",
            "--eval-every",
            "1",
            "--vae",
            tokenizers.save("KL", tmp_path / "v"),
        )
