"""Fixtures shared by the tests: the golden arrays, exact models of Gaussian data, and small files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

GOLDEN = Path(__file__).parent / "golden"
GPUS, HIDDEN_GPUS = "CUDA_VISIBLE_DEVICES", "TESTS_CUDA_VISIBLE_DEVICES"


def pytest_configure() -> None:
    """Hide the GPUs, before CUDA starts: the suite is for CPUs, and tests/test_gpu.py's processes for `with_gpus`."""
    os.environ.setdefault(HIDDEN_GPUS, os.environ.get(GPUS, "all"))  # the workers of pytest-xdist inherit both
    os.environ[GPUS] = ""


# What takes longest, in this order, so that the workers of pytest-xdist end together.
LONG = (
    *("test_train.py", "test_app.py", "test_faults.py", "test_shapes.py", "test_resume.py", "test_app_shapes.py"),
    *("test_graded.py", "test_sampler.py", "test_models.py", "test_models_transforms.py", "test_imports.py"),
    *("test_notebook.py", "test_bad_input.py", "test_ablation.py", "test_monitor.py", "test_sample.py"),
    *("test_extract_latents.py", "test_folder.py", "test_evaluate.py", "test_server.py", "test_sample_ddp.py"),
    *("test_integrators.py", "test_throughput.py", "test_network.py", "test_tokenizers.py", "test_wandb_utils.py"),
    *("test_environment.py",),
)
# `make test-fast` leaves out these files, and every test that starts a process: it has one of these names in it.
SLOW = ("test_train.py", "test_graded.py", "test_sampler.py", "test_monitor.py", "test_evaluate.py", "test_resume.py")
SLOW += ("test_throughput.py", "test_ablation.py", "test_features.py")
STARTS = {"run_cli", "run_forked", "launch", "start", "subprocess", "modules_after", "log_in", "serving", "Process"}
STARTS |= {"trained", "uninterrupted", "after_imports", "server", "browser", "compile_blocks", "executed"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        assert isinstance(item, pytest.Function)
        names = {*item.fixturenames, *item.function.__code__.co_names}
        if not item.get_closest_marker("fast") and (item.path.name in SLOW or names & STARTS):
            item.add_marker("slow")


def with_gpus() -> dict[str, str]:
    """The environment as it was before the GPUs were hidden."""
    environment = dict(os.environ)
    if (visible := environment.pop(HIDDEN_GPUS)) == "all":
        del environment[GPUS]
    else:
        environment[GPUS] = visible
    return environment


def golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of one golden file as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind != "U"}


def golden_model_config() -> dict:
    with np.load(GOLDEN / "models.npz") as arrays:
        return json.loads(str(arrays["config"]))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


class Operations(TorchDispatchMode):
    """The names of all operations that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func.overloadpacket))
        return func(*args, **kwargs or {})


class GaussianModel:
    """The exact prediction for data distributed as N(mu, sd^2), for any path.

    x_t ~ N(alpha mu, alpha^2 sd^2 + sigma^2); with r = (x - alpha mu) / variance the score is -r and the expected
    noise sigma r.
    """

    def __init__(self, path, prediction: str, mu, sd) -> None:
        self.path, self.prediction, self.mu, self.sd = path, prediction, mu, sd

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **kwargs) -> torch.Tensor:
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        alpha, d_alpha = self.path.compute_alpha_t(t)
        sigma, d_sigma = self.path.compute_sigma_t(t)
        r = (x - alpha * self.mu) / (alpha**2 * self.sd**2 + sigma**2)
        if self.prediction == "score":
            return -r
        if self.prediction == "noise":
            return sigma * r
        if self.prediction == "data":
            return self.mu + alpha * self.sd**2 * r
        # at t = 1 the VP path has sigma = 0 and d_sigma infinite, their product is finite
        return d_alpha * (self.mu + alpha * self.sd**2 * r) + d_sigma * sigma * r


@pytest.fixture
def seeded():
    torch.manual_seed(0)


# ---- programs ------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
DIGITS_ARGS = (
    "--data-path digits --vae none --image-size 8 --num-classes 10 --model ComboStoc-XS/4 --global-batch-size 16 "
    "--num-workers 0"
).split()


def run_cli(program: str, *args: str | Path, processes: int = 0, cwd: Path, check: bool = True, **env: str):
    """Run a program as a user does: `python program.py ...`, or under torchrun with so many processes."""
    command = [sys.executable]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(ROOT / program), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The experiment folder of 20 steps on the digits by two gloo processes, through torchrun: for reading."""
    args = [
        *DIGITS_ARGS,
        "--max-steps",
        "20",
        "--log-every",
        "5",
        "--ckpt-every",
        "10",
        "--sample-every",
        "20",
        "--ema-decay",
        "0.9",
    ]
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with FileLock(f"{folder}.lock"):  # the first worker trains for all
        if not (done := folder / "done").is_file():
            folder.mkdir(exist_ok=True)
            run_cli("train.py", *args, "--exp", "two", processes=2, cwd=folder)
            done.touch()
    return folder / "results" / "ComboStoc-XS-4-two"


def see_little(rank: int = 0) -> None:
    """In a process: means over parts of a picture in the place of EfficientNet-Lite0's features, whose moments take
    seconds."""
    from evaluation import features, report
    from sampling import monitor

    def extract(images: torch.Tensor) -> features.Features:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)  # (N, 48)
        return features.Features(pooled, None, pooled / 50)

    features.DIMENSIONS["efficientnet-lite0"] = 48
    monitor.load_extractor = report.load_extractor = lambda name, *_: features.Extractor(name, extract)


@pytest.fixture
def few_features(monkeypatch):
    from evaluation import features, report
    from sampling import monitor

    monkeypatch.setitem(features.DIMENSIONS, "efficientnet-lite0", 1280)  # to be put back
    for module in (monitor, report):
        monkeypatch.setattr(module, "load_extractor", module.load_extractor)
    see_little()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Three classes of four colour pictures of different sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (20 + 3 * i, 33 - 2 * k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory) -> Path:
    """A diffusers AutoencoderKL with random weights: factor 2, 4 latent channels."""
    from diffusers.models import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    """A SiT-XS/4 for 8 x 8 pixels and 10 classes whose output depends on everything, unlike a fresh model's."""
    from models import SiT_models

    torch.manual_seed(0)
    model = SiT_models["SiT-XS/4"](input_size=8, in_channels=3, num_classes=10)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    path = tmp_path_factory.mktemp("random") / "ckpt.pt"
    torch.save(model.state_dict(), path)
    return path


# ---- the page in a browser ---------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as p:
        yield chromium(p)


def chromium(playwright):
    """The browser, drawing on the CPU as fast as it can, and without a sandbox, for root."""
    args = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    return playwright.chromium.launch(executable_path=CHROMIUM, args=args)
