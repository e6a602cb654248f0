import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm.layers
import timm.models.vision_transformer
import torch
from PIL import Image
from torch import nn

import export
import models
from data.autoencoder import load_autoencoder
from exporting import layers
from exporting.bundle import bundle
from exporting.folder import PIPELINE_FILE, TRANSFORMER_FILE, text_of
from kinds import load_network
from models import ComboStoc_models, SiT_models
from runtime.command_line import with_values
from runtime.errors import DataError, UsageError
from sampling.arguments import pictures_parser
from sampling.image_control import make_control
from sampling.network import ImageNoise, guided_by
from shapes.network import Parts_models
from tests.tokenizers import SIZE, SMALL, without_transformers
from tests.tokenizers import save as save_autoencoder
from train_utils import build_graded_sampler, build_sampler

NAMES = [f"class {k}" for k in range(10)]


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Let diffusers copy the code to a folder of the test's, not of the user's."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def checkpoint_of(path: Path, name="ComboStoc-XS/4", channels=3, size=8, **content) -> Path:
    torch.manual_seed(len(name))
    model = (SiT_models | ComboStoc_models)[name](input_size=size, in_channels=channels, num_classes=10)
    for p in model.parameters():
        nn.init.normal_(p, std=0.05)
    torch.save({"ema": model.state_dict(), "args": {}, "class_names": NAMES} | content, path)
    return path


def exported(ckpt: Path, *flags: str) -> Path:
    folder = ckpt.with_suffix("")
    export.main([str(ckpt), "--diffusers", str(folder), *flags])
    return folder


def opened(folder: Path, **settings):
    from diffusers import DiffusionPipeline  # not in every worker of pytest-xdist

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(ckpt: Path, steps: int, labels: list[int], *flags: str, reference=None, mask=None):
    """What sample.py draws: latents and pictures, and their noise."""
    args = pictures_parser(None).parse_args(
        ["ODE", "--ckpt", str(ckpt), "--num-sampling-steps", str(steps + 1), *flags]
    )
    network = load_network(args, torch.device("cpu"), "mse")
    args = with_values(args, network.settings)
    z = ImageNoise(0, range(len(labels))).randn(network.input_shape, torch.device("cpu"))
    sampler = build_sampler(args, network.transport)
    if reference is not None:
        control = make_control(reference, mask, None, network)
        args.preserve_schedule = "number"
        kept = control.latents(network, z.device).expand_as(z), control.keep.expand(len(z), -1, -1, -1)
        sampler = build_graded_sampler(args, network.transport, *kept)
    x = sampler(z, guided_by(args, network), y=torch.tensor(labels))[-1]
    return z, x, network.autoencoder.decode(x)


@pytest.mark.parametrize(
    ("name", "channels", "trained", "flags", "settings"),
    [
        ("ComboStoc-XS/4", 3, {}, [], {}),
        ("SiT-XS/2", 1, {"path_type": "GVP"}, ["--guidance-interval", "0.2", "0.7"], {"guidance_interval": (0.2, 0.7)}),
        ("ComboStoc-XS/4", 3, {"prediction": "data", "time_shift": 2.0}, [], {}),
        ("ComboStoc-XS/2", 3, {"prediction": "noise"}, ["--sampling-method", "euler"], {"method": "euler"}),
        ("SiT-XS/4", 3, {"path_type": "VP", "prediction": "score", "time_shift": "auto"}, [], {}),
    ],
)
def test_pictures_are_those_of_sample_py(tmp_path, name, channels, trained, flags, settings):
    ckpt = checkpoint_of(tmp_path / "c.pt", name, channels, args=trained)
    flags = [*flags, "--cfg-scale", "2"] + ["--sampling-method", "heun2"] * ("--sampling-method" not in flags)
    z, _, images = sampled(ckpt, 6, [3, 10, 7], *flags)
    pipe = opened(exported(ckpt))
    drawn = pipe([3, None, "class 7"], 6, 2.0, latents=z, output_type="pt", **settings).images
    torch.testing.assert_close(drawn, (images / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    assert pipe.image_size == 8 and type(pipe).__module__.startswith("diffusers_modules")
    assert Path(sys.modules[type(pipe.transformer).__module__].__file__).name == "combostoc_transformer.py"


IN_SUITE = ("KL", "DC", "Flux2", "RAE", "Tiny")  # each convention; all classes: make drill


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in IN_SUITE else pytest.mark.drill) for kind in sorted(SMALL)]
)
def test_latents_are_decoded_by_the_autoencoder_in_the_folder(tmp_path, kind, monkeypatch):
    """Of every class, also where the checkpoint has a scale of its own."""
    if kind == "RAE":
        without_transformers(monkeypatch)
    vae = save_autoencoder(kind, tmp_path / "vae")
    space = load_autoencoder(vae, torch.device("cpu"))
    scaling = {"scale": [0.5 + 0.1 * c for c in range(space.channels)], "shift": 0.2}
    content = {"latent_scale": scaling} if kind in ("KL", "DC", "RAE") else {}
    ckpt = checkpoint_of(tmp_path / "c.pt", "ComboStoc-XS/2", space.channels, SIZE // space.factor, **content)
    picture = torch.rand(1, 3, SIZE, SIZE).mul(255).round() / 255
    mask = torch.zeros(SIZE, SIZE)
    mask[:, : SIZE // 2] = 0.8
    flags = ["--vae", str(vae), "--cfg-scale", "1.5", "--sampling-method", "heun2"]
    graded = {"reference": picture * 2 - 1, "mask": mask[None]}
    pipe = opened(exported(ckpt, "--vae", str(vae)))
    for given, asked in (({}, {}), (graded, {"image": picture, "mask": mask})):
        z, x, images = sampled(ckpt, 3, [1, 2], *flags, **given)
        latents = pipe([1, 2], 3, 1.5, latents=z, output_type="latent", **asked).images
        torch.testing.assert_close(latents, x, atol=1e-5, rtol=1e-5)
        drawn = pipe([1, 2], 3, 1.5, latents=z, output_type="pt", **asked).images
        torch.testing.assert_close(drawn, (images / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_what_a_user_of_diffusers_expects(tmp_path):
    folder = exported(checkpoint_of(tmp_path / "c.pt", args={"lr": 0.1, "data_path": "/home/me/digits"}, step=7))
    pipe = opened(folder)
    again = [pipe(1, 2, generator=torch.Generator().manual_seed(k)).images[0] for k in (0, 0, 1)]
    assert again[0].size == (8, 8) and again[0] == again[1] != again[2]
    assert pipe(["class 1", 2], 2, output_type="np", num_images_per_label=3, return_dict=False)[0].shape == (6, 8, 8, 3)
    unnamed = opened(exported(checkpoint_of(tmp_path / "unnamed.pt", class_names=None)))
    assert unnamed(1, 1, output_type="pt").images.shape == (1, 3, 8, 8) and not unnamed.labels
    seen = []

    def callback(pipe, step, t, given):
        seen.append((step, round(t.item(), 3)))
        pipe._interrupt = step == 1
        return {"latents": given["latents"] * 0}

    pipe(1, 4, callback_on_step_end=callback)
    assert seen == [(0, 0.25), (1, 0.5)]
    kept = pipe(None, 2, image=Image.new("RGB", (8, 8), (255, 0, 0)), mask=Image.new("L", (8, 8), 255)).images[0]
    assert np.asarray(kept)[0, 0].tolist() == [255, 0, 0]
    half = opened(folder, dtype=torch.bfloat16)
    z = torch.randn(1, 3, 8, 8)
    exact, rounded = (p(3, 4, 1.5, latents=z, output_type="latent").images for p in (pipe, half))
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).norm() < 0.05 * exact.norm()
    card = (folder / "README.md").read_text()
    assert "| lr | 0.1 |" in card and "trained for 7 steps" in card and "/home" not in card and "| digits |" in card
    for asked, says in (
        ({"class_labels": "class x"}, "no class 'class x'; the model has 10, such as class"),
        ({"class_labels": np.int64(10)}, "class label 10 is out of range"),
        ({"class_labels": torch.tensor([1, -1])}, "class label -1 is out of range"),
        ({"method": "dopri5"}, "choose from heun, euler"),
        ({"mask": 0.5}, "give both or none"),
        ({"latents": z[:, :1]}, "1 pictures need"),
        ({"image": np.zeros((1, 8, 8, 3)), "mask": np.zeros((4, 4))}, "not of 8 x 8 pixels"),
    ):
        with pytest.raises(ValueError, match=says):
            pipe(**asked)


def test_the_three_layers_are_those_of_timm():
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 48)
    attention = timm.models.vision_transformer.Attention(48, num_heads=3, qkv_bias=True)
    for ours, theirs, x in (
        (layers.Attention(48, num_heads=3, qkv_bias=True), attention, tokens),
        (layers.Mlp(48, 96), timm.layers.Mlp(48, 96), tokens),
        (layers.PatchEmbed(8, 2, 3, 48), timm.layers.PatchEmbed(8, 2, 3, 48), torch.randn(2, 3, 8, 8)),
    ):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


def test_files_import_nothing_of_this_code_and_hold_its_text():
    for file in (PIPELINE_FILE, TRANSFORMER_FILE):
        tree = ast.parse(text_of(file))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        known = {*sys.stdlib_module_names, "torch", "numpy", "diffusers", "PIL"}
        assert {name.partition(".")[0] for name in imported} <= known
    assert Path(models.__file__).read_text().split("class SiT(nn.Module)")[1].strip() in text_of(TRANSFORMER_FILE)


def test_two_modules_of_a_file_may_not_share_a_name(tmp_path):
    made = []
    for name, text in (("a", "from b import y\nx = 1\n"), ("b", "def x():\n    pass\n")):
        (tmp_path / f"{name}.py").write_text(text)
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        made.append(module)
    with pytest.raises(ValueError, match="a and b both have x"):
        bundle("Both.", made)
    assert "from b" not in bundle("One.", made[:1], ["b"]) and "from b" in bundle("One.", made[:1])


def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, monkeypatch):
    ckpt = checkpoint_of(tmp_path / "c.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for flags, kind, says in (
        (["--diffusers", tmp_path / "mine"], UsageError, "exists and is no pipeline"),
        (["--diffusers", tmp_path / "absent" / "x"], DataError, "absent does not exist"),
        (
            ["--diffusers", tmp_path / "new", "--push-to-hub", "me/it"],
            UsageError,
            "--push-to-hub me/it: no token",
        ),
        (["--out", tmp_path / "w.pt", "--push-to-hub", "me/it"], UsageError, "--push-to-hub me/it is for --diffusers"),
        (["--diffusers", tmp_path / "new", "--vae", "absent"], DataError, "--vae absent is neither ema, mse, none nor"),
    ):
        with pytest.raises(kind, match=says):
            export.main([str(ckpt), *map(str, flags)])
    parts = {"ema": Parts_models["Parts-XS"](in_channels=15, num_classes=6).state_dict(), "layout": {"num_parts": 8}}
    torch.save(parts, tmp_path / "parts.pt")
    with pytest.raises(UsageError, match=r"--diffusers is for images; .*parts\.pt holds a model of shapes"):
        export.main([str(tmp_path / "parts.pt"), "--diffusers", str(tmp_path / "new")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "mine", "parts.pt"]


def test_an_upload_and_a_second_export_to_the_same_folder(tmp_path, monkeypatch, capsys):
    uploaded = []

    class Hub:
        def create_repo(self, name, exist_ok):
            return ModuleType("repo") if name is None else type("Repo", (), {"repo_id": name})

        def upload_folder(self, repo_id, folder_path):
            uploaded.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    ckpt = checkpoint_of(tmp_path / "c.pt")
    exported(ckpt)
    exported(ckpt, "--push-to-hub", "me/it")
    assert uploaded == [("me/it", ["README.md", "model_index.json", "pipeline.py", "transformer"])]
    assert "uploaded to https://hub/me/it" in capsys.readouterr().out
    assert json.loads((tmp_path / "c" / "model_index.json").read_text())["vae"] == [None, None]


OUTSIDE = """
import sys
import torch

sys.modules["timm"] = sys.modules["torchdiffeq"] = None  # as if they were not installed
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)
z = torch.load(sys.argv[2])
torch.save(pipe([3, None], 4, 2.0, latents=z, output_type="latent").images, sys.argv[2])
assert not {"models", "transport", "sampling", "runtime", "data", "exporting"} & set(sys.modules)
"""


@pytest.mark.drill
def test_it_runs_where_this_code_and_its_other_packages_are_not(tmp_path):
    ckpt = checkpoint_of(tmp_path / "c.pt")
    folder = exported(ckpt)
    z, x, _ = sampled(ckpt, 4, [3, 10], "--cfg-scale", "2", "--sampling-method", "heun2")
    torch.save(z, tmp_path / "z.pt")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", OUTSIDE, str(folder), str(tmp_path / "z.pt")]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), x, atol=1e-5, rtol=0)
