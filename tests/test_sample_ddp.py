import json

import numpy as np

from .conftest import run_cli

COMMON = ["--num-fid-samples", "10", "--num-sampling-steps", "5"]


def sample(trained, folder, *args, mode="SDE", processes=0, check=True):
    ckpt = ["--ckpt", trained / "ckpt.pt", "--sample-dir", folder / "out"]
    return run_cli("sample_ddp.py", mode, *ckpt, *COMMON, *args, processes=processes, cwd=folder, check=check)


def npz_of(folder) -> np.ndarray:
    (path,) = (folder / "out").glob("*.npz")
    with np.load(path) as npz:
        return npz["arr_0"]


def test_images_do_not_depend_on_processes_or_batches_and_a_run_continues(trained, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    result = sample(trained, folders[0], "--per-proc-batch-size", "10")
    assert "10 images in" in result.stdout and "images/s" in result.stdout
    one = npz_of(folders[0])
    assert one.shape == (10, 8, 8, 3) and one.dtype == np.uint8 and len(np.unique(one, axis=0)) == 10
    sample(trained, folders[1], "--per-proc-batch-size", "3", processes=2)
    assert abs(one.astype(int) - npz_of(folders[1])).max() <= 1

    # a run that lost some pictures makes those, and only those
    pictures = sorted((folders[0] / "out").glob("*/*.png"))
    times = {p: p.stat().st_mtime_ns for p in pictures}
    for k in (2, 7):
        pictures[k].unlink()
    result = sample(trained, folders[0])
    assert "continuing: 8 of 10 images are there" in result.stdout
    assert abs(one.astype(int) - npz_of(folders[0])).max() <= 1
    assert [k for k, p in enumerate(pictures) if p.stat().st_mtime_ns != times[p]] == [2, 7]

    # other settings that share a folder name are refused instead of mixed
    (record,) = (folders[0] / "out").glob("*/settings.json")
    settings = json.loads(record.read_text())
    assert len(settings["checkpoint_sha256"]) == 64
    record.write_text(json.dumps(settings | {"checkpoint_sha256": "0" * 64}))
    result = sample(trained, folders[0], check=False)
    assert result.returncode == 2 and "made with checkpoint_sha256 = 000" in result.stderr


def test_ode(trained, tmp_path):
    assert "model evaluations" in sample(trained, tmp_path, mode="ODE", processes=2).stdout
    assert npz_of(tmp_path).shape == (10, 8, 8, 3)
