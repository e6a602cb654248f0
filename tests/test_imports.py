"""Which way the arrows go, and what is loaded only when it is used."""

import subprocess
import sys

import pytest

import models

from .conftest import ROOT


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
