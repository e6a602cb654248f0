import json

import numpy as np
import torch

import sample_ddp
from pictures import to_uint8
from sampling import ImageNoise, guided
from train_utils import model_config
from transport import Sampler, create_transport

from .conftest import run_cli
from .faults import launch

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


def test_images_do_not_depend_on_processes_or_batches_and_a_run_continues(trained, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    output = sample(trained, folders[0], "--per-proc-batch-size", "10")
    assert "10 images in" in output and "images/s" in output
    one = npz_of(folders[0])
    assert one.shape == (10, 8, 8, 3) and one.dtype == np.uint8 and len(np.unique(one, axis=0)) == 10
    sample(trained, folders[1], "--per-proc-batch-size", "3", processes=2)
    assert abs(one.astype(int) - npz_of(folders[1])).max() <= 1

    # a run that lost some pictures makes those, and only those
    pictures = sorted((folders[0] / "out").glob("*/*.png"))
    times = {p: p.stat().st_mtime_ns for p in pictures}
    for k in (2, 7):
        pictures[k].unlink()
    assert "continuing: 8 of 10 images are there" in sample(trained, folders[0])
    assert abs(one.astype(int) - npz_of(folders[0])).max() <= 1
    assert [k for k, p in enumerate(pictures) if p.stat().st_mtime_ns != times[p]] == [2, 7]

    # other settings make other images, in a folder of their own
    sample(trained, folders[0], "--diffusion-norm", "0.5")
    records = [json.loads(p.read_text()) for p in (folders[0] / "out").glob("*/settings.json")]
    assert {r["diffusion_norm"] for r in records} == {0.5, 1.0} and len(records[0]["checkpoint_sha256"]) == 64


def test_ode_through_torchrun(trained, tmp_path):
    args = ["ODE", "--ckpt", trained / "ckpt.pt", "--sample-dir", tmp_path / "out", *COMMON]
    assert "model evaluations" in run_cli("sample_ddp.py", *args, processes=2, cwd=tmp_path).stdout
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
