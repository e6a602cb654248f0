"""What only a CUDA device can show, in processes of their own."""

import os
import shutil
import subprocess
import sys

import pytest

import checkpoint

from .conftest import DIGITS_ARGS, ROOT, VISIBLE_GPUS, run_cli

ENVIRONMENT = {} if VISIBLE_GPUS is None else {"CUDA_VISIBLE_DEVICES": VISIBLE_GPUS}


def gpus() -> int:
    if not shutil.which("nvidia-smi"):
        return 0
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | ENVIRONMENT
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(count, env=environment, capture_output=True, text=True).stdout or 0)


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpus() == 0, reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_train_and_sample_with_nccl(tmp_path):
    """torchrun on every visible GPU, a continued run, both samplers."""
    processes = min(gpus(), 2)
    args = [*DIGITS_ARGS, "--sample-every", "10", "--num-workers", "1"]
    for steps in ("5", "10"):
        run_cli("train.py", *args, "--max-steps", steps, processes=processes, cwd=tmp_path)
    ckpt = tmp_path / "results" / "ComboStoc-XS-4-exp_tmp" / "ckpt.pt"
    assert checkpoint.load(ckpt)["step"] == 10
    for mode in ("ODE", "SDE"):
        run_cli("sample.py", mode, "--ckpt", ckpt, "--num-sampling-steps", "5", cwd=tmp_path)
        count = ["--num-fid-samples", "9", "--num-sampling-steps", "5"]
        run_cli("sample_ddp.py", mode, "--ckpt", ckpt, *count, processes=processes, cwd=tmp_path)


def test_the_golden_outputs_on_the_gpu():
    """The models' golden numbers in float32 on CUDA, and draws on the device."""
    code = (
        "import torch; from tests.test_models import *; from transport import *; "
        "model = golden_model('combostoc').cuda(); "
        "x, y, t = (G[f'combostoc/{k}'].cuda() for k in ('x', 'y', 't_full')); "
        "out = model(x, t, y).detach().cpu(); assert relative_error(out, G['combostoc/out_t_full']) < 1e-4; "
        "t, x0, _ = create_transport(combostoc_type='UNSYNC_ALL').sample(x); assert t.is_cuda and x0.is_cuda"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | ENVIRONMENT
    prelude = "import os; v = os.environ.get('CUDA_VISIBLE_DEVICES'); import torch; torch.cuda.init(); "
    subprocess.run([sys.executable, "-c", prelude + code], cwd=ROOT, env=environment, check=True)
