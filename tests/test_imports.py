"""Which way the arrows go, and what is loaded only when it is used."""

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import models
from tests.conftest import ROOT

PROGRAMS = ("train", "sample", "sample_ddp", "evaluate", "extract_latents", "import_shapes", "export", "app")
# Whoever stands in it may import what stands further down, and what is of its own package.
ORDER = (
    ("experiments", "benchmarks"),
    PROGRAMS,
    ("page",),
    ("training",),
    ("kinds",),
    ("shapes",),
    ("exporting",),
    ("sampling",),
    ("evaluation",),
    ("data",),
    ("train_utils", "download", "wandb_utils"),
    ("models", "transport", "runtime"),  # which know nothing of each other
)
LAYERS = {name: height for height, names in enumerate(reversed(ORDER)) for name in names}


def modules(root: Path) -> dict[str, Path]:
    """All modules of the project but the tests, by name."""
    paths = [p for name in LAYERS for p in [root / f"{name}.py", *(root / name).rglob("*.py")] if p.is_file()]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(name: str, path: Path, known: set[str], types: bool = True) -> Iterator[str]:
    """The project's modules that a module imports, wherever in it, or all but those for the type checker."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package, node.module])) if node.level else node.module or ""
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in found:
            yield from {m for m in (module, module.rpartition(".")[0]) if m in known and m != package}


def upward(root: Path) -> list[str]:
    """Imports that run up, or to a neighbour, in the order above."""
    known = modules(root)
    found = []
    for name, path in known.items():
        own = name.partition(".")[0]
        for module in imports(name, path, set(known)):
            other = module.partition(".")[0]
            if other != own and LAYERS[other] >= LAYERS[own]:
                found.append(f"{name} imports {module}")
    return found


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle, [] if there are none; in the transport also one of types alone."""
    known = modules(root)
    graph = {
        name: set(imports(name, path, set(known), types=name.startswith("transport."))) - {name}
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_arrow_points_down():
    assert upward(ROOT) == [] and circle(ROOT) == []
    unknown = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert unknown - {*LAYERS, "tests"} == set(), "in no layer"


def test_the_top_holds_programs_and_the_names_that_sits_users_know():
    assert {p.stem for p in ROOT.glob("*.py")} == {
        *PROGRAMS,
        "models",
        "kinds",
        "train_utils",
        "download",
        "wandb_utils",
    }


def modules_after(*statements: str) -> list[set[str]]:
    """What is loaded after each of the statements, in one fresh process."""
    code = "import sys; " + "; ".join(f"{statement}; print(*sys.modules)" for statement in statements)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return [set(line.split()) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def after_imports() -> dict[str, set[str]]:
    """What is loaded after the transport and each of the programs is imported, one after the other."""
    names = ("transport", *PROGRAMS)
    return dict(zip(names, modules_after(*(f"import {name}" for name in names)), strict=True))


def test_the_transport_stands_alone(after_imports):
    loaded = after_imports["transport"]
    assert "transport.sampler" in loaded
    ours = {*PROGRAMS, *LAYERS} - {"transport"}
    assert not loaded & (ours | {"timm", "diffusers", "wandb", "accelerate", "PIL"})


def test_heavy_packages_are_imported_when_used(after_imports):
    for program in PROGRAMS:  # not wandb: timm imports it where it is installed
        loaded = after_imports[program]
        assert program in loaded and not loaded & {"diffusers", "sklearn", "accelerate", "gradio"}, program


SHAPES_MAY_BE_IMPORTED_BY = ("kinds", "import_shapes", "experiments.partnet", "experiments.judge_shapes")


def test_only_one_place_knows_that_there_are_shapes():
    """A third kind of data would be one more folder, and one line in kinds.py."""
    known = modules(ROOT)
    importing = {
        name for name, path in known.items() if any(m.startswith("shapes") for m in imports(name, path, set(known)))
    }
    others = {name for name in importing if name.partition(".")[0] not in ("shapes", "page")}
    assert others == set(SHAPES_MAY_BE_IMPORTED_BY)


def changes_of_arguments(path: Path) -> Iterator[str]:
    """Where a module changes what a parser has made: args.x = ..., setattr(args, ...), vars(args).update(...)."""
    parsed = r"(\w*args|parsed)"
    for node in ast.walk(ast.parse(path.read_text())):
        change = None
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            change = re.match(rf"{parsed}\.", ast.unparse(node))
        elif isinstance(node, ast.Call):
            change = re.match(rf"setattr\({parsed},|vars\({parsed}\)\.update\(", ast.unparse(node))
        if change:
            yield f"{path}:{node.lineno}"


def test_nothing_changes_parsed_arguments():
    """What is resolved is a new Namespace, see `with_values`."""
    assert [place for path in modules(ROOT).values() for place in changes_of_arguments(path)] == []


@pytest.mark.parametrize("program", ["train.py", pytest.param("sample.py", marks=pytest.mark.drill)])
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
    exec(
        "from models import SiT, ComboStoc, SiT_models, ComboStoc_models; "
        "from transport import create_transport, Transport, Sampler, ModelType, PathType, WeightType, ComboStocType; "
        "from transport.path import expand_t_like_x; from data import center_crop_arr; "
        "from download import find_model; from wandb_utils import initialize, log, log_image; "
        "from train_utils import parse_transport_args, parse_ode_args, parse_sde_args; "
        "from transport.transport import Sampler as S; from transport.utils import mean_flat; assert S is Sampler; "
        "from train import update_ema, center_crop_arr; from sample_ddp import create_npz_from_sample_folder; "
        "from download import download_model",
        {},
    )


def test_no_package_is_promised():
    """`pip install` would put modules of these names beside everybody's."""
    assert not {"[project]", "[build-system]"} & set((ROOT / "pyproject.toml").read_text().splitlines())


def test_constructors_by_their_predecessors_names():
    """Every published model of 24 is there as a function, and is the registry's."""
    published = [f"{size}/{patch}" for size in ("XL", "L", "B", "S") for patch in (2, 4, 8)]
    for family, registry in (("SiT", models.SiT_models), ("ComboStoc", models.ComboStoc_models)):
        for name in (f"{family}-{size}" for size in published):
            assert getattr(models, name.replace("-", "_").replace("/", "_")) is registry[name]
    model = models.ComboStoc_S_8(input_size=8, num_classes=3)
    assert isinstance(model, models.ComboStoc) and (model.patch_size, len(model.blocks)) == (8, 12)


def test_scripts_in_a_folder_find_the_project_before_they_import_from_it():
    """`python experiments/ablation.py` starts with its own folder on the path alone."""
    scripts = [p for name in ORDER[0] for p in (ROOT / name).glob("*.py") if "__main__" in p.read_text()]
    assert len(scripts) > 8
    ours = set(LAYERS)
    for script in scripts:
        found = False
        for node in ast.parse(script.read_text()).body:
            found = found or ast.unparse(node).startswith("sys.path.insert(")
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
            assert found or not ours & {n.partition(".")[0] for n in names}, f"{script.name}:{node.lineno}"
