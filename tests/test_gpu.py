"""What only a CUDA device can show, in processes of their own."""

import shutil
import subprocess
import sys
import textwrap

import pytest

from runtime import checkpoint
from tests.conftest import DIGITS_ARGS, GPUS, ROOT, run_cli, with_gpus


def gpus() -> int:
    if not shutil.which("nvidia-smi"):
        return 0
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(count, env=with_gpus(), capture_output=True, text=True).stdout or 0)


WITHOUT = "needs a CUDA device: without one nccl, streams, what Triton compiles, and numbers on the device go untested"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpus() == 0, reason=WITHOUT)]


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    environment = with_gpus()
    monkeypatch.delenv(GPUS)
    if GPUS in environment:
        monkeypatch.setenv(GPUS, environment[GPUS])


def test_train_and_sample_with_nccl(tmp_path):
    """torchrun on every visible GPU, a continued run, both samplers."""
    processes = min(gpus(), 2)
    args = [*DIGITS_ARGS, "--sample-every", "10", "--num-workers", "1"]
    run_cli("train.py", *args, "--max-steps", "5", processes=processes, cwd=tmp_path)
    fast = ["--precision", "bf16", "--compile", "--grad-accum", "2", "--max-grad-norm", "1"]
    run_cli("train.py", *args, "--max-steps", "10", *fast, processes=processes, cwd=tmp_path)
    ckpt = tmp_path / "results" / "ComboStoc-XS-4-exp_tmp" / "ckpt.pt"
    assert checkpoint.load(ckpt)["step"] == 10
    for mode in ("ODE", "SDE"):
        run_cli("sample.py", mode, "--ckpt", ckpt, "--num-sampling-steps", "5", cwd=tmp_path)
        count = ["--num-fid-samples", "9", "--num-sampling-steps", "5"]
        run_cli("sample_ddp.py", mode, "--ckpt", ckpt, *count, *fast[:3], processes=processes, cwd=tmp_path)


def run_code(code: str) -> None:
    """In a process that sees the GPUs."""
    prelude = "import torch; from runtime import precision; torch.cuda.init(); precision.setup('fp32')\n"
    subprocess.run([sys.executable, "-c", prelude + textwrap.dedent(code)], cwd=ROOT, check=True)


def test_the_golden_outputs_on_the_gpu():
    """The models' golden numbers in float32 on CUDA, and draws on the device."""
    run_code("""
        from tests.test_models import *
        from transport import create_transport
        model = golden_model("combostoc").cuda()
        x, y, t = (G[f"combostoc/{k}"].cuda() for k in ("x", "y", "t_full"))
        assert relative_error(model(x, t, y).detach().cpu(), G["combostoc/out_t_full"]) < 1e-4
        t, x0, _ = create_transport(combostoc_type="UNSYNC_ALL").sample(x)
        assert t.is_cuda and x0.is_cuda
    """)


def test_a_training_step_never_waits_for_the_gpu():
    run_code("""
        from copy import deepcopy
        from models import ComboStoc_models
        from data.autoencoder import draw_posterior
        from training.bookkeeping import Bookkeeping
        from runtime.distributed import single
        from data.feed import feed
        from training.step import build_optimizer, training_step
        from transport import create_transport
        model = ComboStoc_models["ComboStoc-XS/2"](input_size=32, grad_checkpointing=2).cuda().train()
        ema, opt = deepcopy(model).requires_grad_(False), build_optimizer(model, 1e-4)
        transport = create_transport(combostoc_type="UNSYNC_ALL")
        device = torch.device("cuda", 0)
        loaded = [(torch.rand(8, 2, 4, 32, 32).pin_memory(), torch.randint(10, (8,)).pin_memory()) for _ in range(4)]
        batches = feed(iter(loaded), draw_posterior, device)
        books = Bookkeeping(single(), [], max_bad_steps=10, saved={}, source="")
        settings = dict(ema_decay=0.9, precision_name="bf16", grad_accum=2, max_grad_norm=1.0)
        for step in range(4):
            torch.manual_seed(step)
            result = training_step(model, ema, opt, transport, *next(batches), **settings)
            books.add(result)
            assert not books.agree(0).diverged
            torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")
        assert result.loss.isfinite() and not result.bad
    """)


def test_compiled_equals_eager_on_the_gpu():
    run_code("""
        from tests.test_models import *
        model = random_model(class_dropout_prob=0.0).cuda()
        x, y = torch.randn(4, 4, 8, 8).cuda(), torch.tensor([1, 2, 3, 9]).cuda()
        t = [torch.rand(2, 4, 8, 8).cuda(), torch.rand(2, 1, 1, 1).cuda()]
        eager = outputs_and_gradients(model, x, t, y)
        model.compile_blocks()
        for compiled, expected in zip(outputs_and_gradients(model, x, t, y), eager, strict=True):
            assert (compiled - expected).norm() <= 1e-4 * expected.norm().clamp_min(1e-3)
    """)


def test_what_is_fed_on_a_stream_of_its_own_is_complete_when_used():
    run_code("""
        from data.feed import feed
        def encode(data):
            for _ in range(200):
                data = (data @ torch.eye(2000, device="cuda")).clone()  # longer than the host takes to go on
            return data
        batches = [(torch.full((2000, 2000), float(k)).pin_memory(), torch.tensor([k]).pin_memory()) for k in range(4)]
        for k, (x, y) in enumerate(feed(iter(batches), encode, torch.device("cuda", 0))):
            assert (x == k).all() and y.item() == k
    """)


def test_pictures_fetched_later_are_complete():
    run_code("""
        from data.pictures import to_uint8, to_uint8_later
        images = torch.rand(64, 3, 256, 256) * 2 - 1
        waits = [to_uint8_later((images.cuda() * s)) for s in (1.0, 0.5)]
        for wait, s in zip(waits, (1.0, 0.5)):
            assert abs(wait().astype(int) - to_uint8(images * s)).max() <= 1
    """)


def test_two_sets_compare_on_the_gpu_as_on_the_cpu():
    """Features in float32 whatever training allows, arithmetic in float64."""
    run_code("""
        from dataclasses import fields
        from evaluation.metrics import compare
        from evaluation.statistics import statistics_of
        from evaluation.features import load_extractor
        precision.setup("tf32")
        images = torch.randint(0, 256, (2, 24, 3, 32, 32), dtype=torch.uint8)
        results = []
        for device in (torch.device("cpu"), torch.device("cuda", 0)):
            extractor = load_extractor("efficientnet-lite0", None, device)
            sets = [statistics_of([(range(24), part)], 24, extractor) for part in images]
            assert all(getattr(s.pooled, f.name).device.type == "cpu" for s in sets for f in fields(s.pooled))
            results.append(compare(*sets, device))
        assert torch.backends.cudnn.allow_tf32
        cpu, cuda = results
        assert cpu.keys() == cuda.keys() and all(abs(cuda[k] - v) <= 1e-3 * abs(v) + 1e-6 for k, v in cpu.items())
    """)


def test_shapes_compare_on_the_gpu_as_on_the_cpu():
    """Several clouds at a time, in float32 whatever training allows."""
    run_code("""
        from shapes.chamfer import chamfer_distances
        precision.setup("tf32")
        a, b = torch.rand(40, 700, 3), torch.rand(50, 700, 3) + 0.1
        for pair in ((a, b), (a,), (a, a + 1e-3)):
            found, expected = chamfer_distances(*(x.cuda() for x in pair)).cpu(), chamfer_distances(*pair)
            assert (found - expected).abs().max() <= 1e-4 * expected.max()
        assert torch.backends.cuda.matmul.allow_tf32
    """)


def test_evaluation_during_training_on_the_gpu(tmp_path):
    args = [*DIGITS_ARGS, "--sample-every", "0", "--max-steps", "4", "--eval-every", "2", "--eval-samples", "8"]
    args += ["--eval-sampling-steps", "3", "--eval-features", "efficientnet-lite0"]
    run_cli("train.py", *args, processes=min(gpus(), 2), cwd=tmp_path)
    table = (tmp_path / "results" / "ComboStoc-XS-4-exp_tmp" / "evaluations.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in table] == ["step", "2", "4"]
