import json
import signal

import numpy as np
import torch
from PIL import Image

import sample_ddp
from data.pictures import to_uint8
from kinds import model_config
from models import SiT
from runtime.files import sha256
from sampling.network import ImageNoise, guided
from tests.faults import Fault, launch
from tests.forked import run_forked
from transport import Sampler, create_transport

COMMON = ["--num-fid-samples", "10", "--num-sampling-steps", "5"]


def sample(trained, folder, *args, processes=1) -> str:
    """Sample by the SDE and return what is printed."""
    ckpt, log = ["--ckpt", str(trained / "ckpt.pt"), "--sample-dir", str(folder / "out")], folder / "output"
    log.unlink(missing_ok=True)
    codes = launch(["SDE", *ckpt, *COMMON, *args], log, world_size=processes, program="sample_ddp")
    assert codes == [0] * processes, log.read_text()
    return log.read_text()


def npz_of(folder) -> np.ndarray:
    (path,) = (folder / "out").glob("*.npz")
    with np.load(path) as npz:
        return npz["arr_0"]


def only(folder, pattern: str):
    (path,) = (folder / "out").glob(pattern)
    return path


def test_images_do_not_depend_on_processes_batches_or_deaths(trained, tmp_path):
    """64 images by one process in batches of 16, by two in batches of 4, and by a run that is killed twice."""
    many = ["--num-fid-samples", "64"]
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    for folder in (one, two, killed):
        folder.mkdir()
    assert "64 images in" in sample(trained, one, *many, "--per-proc-batch-size", "16")
    sample(trained, two, *many, "--per-proc-batch-size", "4", processes=2)
    there = 0
    for image in (9, 40):  # half-written when the process dies
        argv = ["SDE", "--ckpt", str(trained / "ckpt.pt"), "--sample-dir", str(killed / "out"), *COMMON, *many]
        fault = Fault("SIGKILL", "half a picture", image)
        assert launch(argv, killed / "output", program="sample_ddp", fault=fault) == [-signal.SIGKILL]
        pictures = list((killed / "out").glob("*/*.png"))
        assert there < len(pictures) < 64 and list((killed / "out").glob("*/*.tmp"))
        there = len(pictures)
        for path in pictures:
            Image.open(path).load()
    output = sample(trained, killed, *many, "--per-proc-batch-size", "7")
    assert f"continuing: {there} of 64 images are there" in output
    assert not list((killed / "out").rglob("*.tmp"))  # nor what the dead left

    with np.load(only(one, "*.npz")) as npz:
        images, labels = npz["arr_0"], npz["arr_1"]
    assert images.shape == (64, 8, 8, 3) and len(np.unique(images, axis=0)) == 64
    assert labels.tolist() == ImageNoise(0, range(64)).labels(10).tolist()
    for folder in (two, killed):
        with np.load(only(folder, "*.npz")) as npz:
            assert np.array_equal(npz["arr_1"], labels)
            assert abs(npz["arr_0"].astype(int) - images).max() <= 1
    # the same pictures make the same file
    before = only(one, "*.npz").read_bytes()
    assert "continuing: 64 of 64" in sample(trained, one, *many)
    assert only(one, "*.npz").read_bytes() == before

    # what made it
    manifest = json.loads(only(two, "*.json").read_text())
    assert manifest["npz_sha256"] == sha256(only(two, "*.npz")) and manifest["images"] == 64
    assert manifest["settings"]["checkpoint_sha256"] == sha256(trained / "ckpt.pt")
    (run,) = manifest["runs"]
    assert run["images"] == 64 and run["model_evaluations"] == 64 * 5 and run["processes"] == 2  # 4 steps and the last
    assert run["seconds"] > 0 and {"python", "torch", "numpy"} <= set(manifest["versions"])
    (run,) = json.loads(only(killed, "*.json").read_text())["runs"]
    assert run["images"] == 64 - there
    assert len(json.loads(only(one, "*.json").read_text())["runs"]) == 1  # the second one drew nothing


def test_pictures_that_were_changed_are_drawn_again(trained, tmp_path):
    """A smaller one, a damaged one and one that is gone, by two processes: the file that it was."""
    sample(trained, tmp_path)
    (folder,) = (p for p in (tmp_path / "out").iterdir() if p.is_dir())
    whole = only(tmp_path, "*.npz").read_bytes()
    Image.new("RGB", (4, 4)).save(folder / "000003.png")
    (folder / "000005.png").write_bytes((folder / "000005.png").read_bytes()[:-30])
    (folder / "000007.png").unlink()
    output = sample(trained, tmp_path, processes=2)
    assert "000003.png is 4 x 4 RGB, not 8 x 8 RGB; it is drawn again" in output
    assert "000005.png is damaged: " in output and "continuing: 7 of 10 images are there" in output
    assert only(tmp_path, "*.npz").read_bytes() == whole


def test_other_settings_make_other_images_in_a_folder_of_their_own(trained, tmp_path):
    for norm in ("1", "0.5"):
        sample(trained, tmp_path, "--diffusion-norm", norm)
    records = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/settings.json")]
    assert {r["diffusion_norm"] for r in records} == {0.5, 1.0} and len(records[0]["checkpoint_sha256"]) == 64
    first, second = (np.load(p)["arr_0"] for p in (tmp_path / "out").glob("*.npz"))
    assert not np.array_equal(first, second)


def test_balanced_labels_are_all_alike_often_and_leave_the_noise(tmp_path, random_checkpoint, monkeypatch):
    drawn = []
    original = ImageNoise.randn
    monkeypatch.setattr(ImageNoise, "randn", lambda self, *a: drawn.append(original(self, *a)) or drawn[-1])
    for flags in ([], ["--balanced-labels"]):
        args = ["--ckpt", str(random_checkpoint), "--sample-dir", str(tmp_path / "out"), *COMMON, *flags]
        sample_ddp.main(["SDE", *args, "--num-fid-samples", "20"])
    labels = sorted(np.load(p)["arr_1"].tolist() for p in (tmp_path / "out").glob("*.npz"))
    assert labels[0] == list(range(10)) * 2 and labels[1] != labels[0]
    half = len(drawn) // 2
    assert all(torch.equal(a, b) for a, b in zip(drawn[:half], drawn[half:], strict=True))


def test_an_ode_in_two_processes(trained, tmp_path):
    args = ["ODE", "--ckpt", trained / "ckpt.pt", "--sample-dir", tmp_path / "out", *COMMON]
    assert "model evaluations" in run_forked("sample_ddp.py", *args, processes=2, cwd=tmp_path).stdout
    assert npz_of(tmp_path).shape == (10, 8, 8, 3)


def test_labels_guidance_and_noise_are_those_of_seed_and_index(tmp_path, random_checkpoint):
    """Image i is what the library draws for (seed, i), with a model whose output depends on everything."""
    args = ["--ckpt", str(random_checkpoint), "--sample-dir", str(tmp_path), *COMMON, "--global-seed", "3"]
    sample_ddp.main(["SDE", *args, "--cfg-scale", "2"])
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as npz:
        images = npz["arr_0"]
    state = torch.load(random_checkpoint, weights_only=True)
    model = model_config(state, "").build()
    model.load_state_dict(state)
    sampler = Sampler(create_transport())
    for i in (0, 9):
        noise = ImageNoise(3, [i])
        y, z = noise.labels(10), noise.randn((3, 8, 8), torch.device("cpu"))
        draw = sampler.sample_sde(diffusion_form="sigma", num_steps=5, randn=noise.randn_like)
        expected = to_uint8(draw(z, guided(model.eval(), 2.0), y=y)[-1])[0]
        assert abs(expected.astype(int) - images[i]).max() <= 1
        assert expected.std() > 10


def test_images_without_a_class(tmp_path, random_checkpoint, monkeypatch):
    """--cfg-scale 0: the null class and its label, from the noise that images of classes have."""
    args = ["SDE", "--ckpt", str(random_checkpoint), "--sample-dir", str(tmp_path), *COMMON]
    asked = []
    monkeypatch.setattr(SiT, "forward", lambda self, x, t, y: asked.append(y) or torch.zeros_like(x))
    for scale in ("0", "1"):
        sample_ddp.main([*args, "--cfg-scale", scale])
    (path,) = tmp_path.glob("*cfg0-*.npz")
    (of_classes,) = tmp_path.glob("*cfg1-*.npz")
    with np.load(path) as without, np.load(of_classes) as with_classes:
        assert without["arr_1"].tolist() == [10] * 10 and len(set(with_classes["arr_1"])) > 1
        assert np.array_equal(without["arr_0"], with_classes["arr_0"])  # this model does not look at the class
    half = len(asked) // 2
    assert torch.cat(asked[:half]).unique().tolist() == [10] and torch.cat(asked[half:]).max() < 10


def test_what_has_no_effect_makes_no_second_folder(tmp_path, random_checkpoint, capsys):
    args = ["ODE", "--ckpt", str(random_checkpoint), "--sample-dir", str(tmp_path), "--num-fid-samples", "2"]
    for typed, says in (
        ([], []),
        (["--num-sampling-steps", "40"], ["--num-sampling-steps has no effect on dopri5"]),
        (["--num-sampling-steps=250"], ["--num-sampling-steps has no effect on dopri5"]),
        (["--cfg-channels", "all"], ["--cfg-channels has no effect without guidance"]),
    ):
        sample_ddp.main([*args, *typed])
        said = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
        assert len(said) == len(says) and all(expected in line for expected, line in zip(says, said, strict=True))
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert "ODE-dopri5-250-seed0" in folder.name


def test_classes_without_data_are_not_sampled(tmp_path, random_checkpoint):
    """A model with room for more classes than the data had."""
    state = torch.load(random_checkpoint, weights_only=True)
    torch.save({"ema": state, "class_names": ["one", "two"]}, tmp_path / "few.pt")
    drawn = []
    original = ImageNoise.labels
    try:
        ImageNoise.labels = lambda self, n: drawn.append(n) or original(self, n)
        sample_ddp.main(["SDE", "--ckpt", str(tmp_path / "few.pt"), "--sample-dir", str(tmp_path), *COMMON])
    finally:
        ImageNoise.labels = original
    assert set(drawn) == {2}


def test_a_folder_of_pictures_is_packed_as_sits_function_does(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    (tmp_path / "a.b").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "a.b" / f"{i:06d}.png")
    npz = sample_ddp.create_npz_from_sample_folder(str(tmp_path / "a.b"), 2)
    assert npz == tmp_path / "a.b.npz"
    with np.load(npz) as arrays:
        assert arrays.files == ["arr_0"] and (arrays["arr_0"] == images[:2]).all()
