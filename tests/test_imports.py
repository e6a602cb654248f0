"""Which way the arrows go, and what is loaded only when it is used."""

import signal
import subprocess
import sys

import pytest

import models
from tests.conftest import ROOT


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.split())


def test_the_transport_stands_alone():
    loaded = modules_after("import transport")
    assert "transport.sampler" in loaded
    ours = {p.stem for p in ROOT.glob("*.py")}
    assert not loaded & (ours | {"timm", "diffusers", "wandb", "accelerate", "PIL"})


@pytest.mark.parametrize("program", ["train", "sample", "sample_ddp", "extract_latents"])
def test_heavy_packages_are_imported_when_used(program):
    loaded = modules_after(f"import {program}")  # not wandb: timm imports it where it is installed
    assert program in loaded and not loaded & {"diffusers", "sklearn", "accelerate"}


@pytest.mark.parametrize(
    "arguments",
    [
        "train.py --help",
        "train.py --data-path digits --lerning-rate 1",
        "sample.py ODE --help",
        "sample.py ODE --sede 1",
        "sample_ddp.py SDE --last-step Meen",
        "evaluate.py",
        "extract_latents.py --vea ema",
        "export.py",
        "app.py --port 0",
    ],
)
def test_the_command_line_is_read_before_torch_is_imported(arguments):
    """Which takes six seconds of CPU time on a laptop; what is left takes a quarter of one."""
    code = """
import runpy, sys
program, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = program
try:
    runpy.run_path(program, run_name="__main__")
except SystemExit as ended:
    print("exit", ended.code, *sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = ran.stdout.partition("exit ")[2].split()
    helped = "--help" in arguments
    assert words[0] == ("0" if helped else "2") and ran.stderr.count("\n") == (not helped)
    assert "errors" in words and not {"torch", "timm", "torchvision"} & set(words)


@pytest.mark.parametrize("program", ["train.py", "sample.py"])
def test_ctrl_c_during_imports_is_one_line(program, tmp_path):
    arguments = {"train.py": ["--data-path", "digits"], "sample.py": ["ODE", "--ckpt", "absent.pt"]}[program]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / program), *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    while "torch" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said = [line for line in process.stderr if not line.startswith("import time:")]
    assert said == [f"{program}: error: interrupted\n"] and process.wait(30) == 130


def test_names_that_forks_of_sit_import():
    statement = (
        "from models import SiT, ComboStoc, SiT_models, ComboStoc_models; "
        "from transport import create_transport, Transport, Sampler, ModelType, PathType, WeightType, ComboStocType; "
        "from transport.path import expand_t_like_x; from data import center_crop_arr; "
        "from download import find_model; from wandb_utils import initialize, log, log_image; "
        "from train_utils import parse_transport_args, parse_ode_args, parse_sde_args; "
        "from transport.transport import Sampler as S; from transport.utils import mean_flat; assert S is Sampler; "
        "from train import update_ema, center_crop_arr; from sample_ddp import create_npz_from_sample_folder; "
        "from download import download_model; print('imported')"
    )
    assert "imported" in modules_after(statement)


def test_no_package_is_promised():
    """`pip install` would put modules of these names beside everybody's."""
    assert not {"[project]", "[build-system]"} & set((ROOT / "pyproject.toml").read_text().splitlines())


def test_constructors_by_their_predecessors_names():
    """Every model of 24 is there as a function, and is the registry's."""
    for registry in (models.SiT_models, models.ComboStoc_models):
        for name, constructor in registry.items():
            if "-XS/" not in name:
                assert getattr(models, name.replace("-", "_").replace("/", "_")) is constructor
    model = models.ComboStoc_S_8(input_size=8, num_classes=3)
    assert isinstance(model, models.ComboStoc) and (model.patch_size, len(model.blocks)) == (8, 12)
