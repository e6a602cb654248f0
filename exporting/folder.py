"""The folder of a pipeline of diffusers, which opens and runs without this code."""

import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from data.autoencoder import LatentSpace
from exporting.bundle import bundle
from runtime.errors import DataError, UsageError, first_line
from sampling.network import Network
from transport.shift import shift_for

INDEX = "model_index.json"
TRANSFORMER = "combostoc_transformer"  # the module in the transformer's folder
# For each file: its docstring, its modules, and modules from elsewhere whose names these define, see `bundle`.
PIPELINE_FILE = (
    "A pipeline of diffusers for a SiT or ComboStoc model of images; written by export.py.",
    (
        *("transport.names", "transport.path", "transport.shift", "transport.graded"),
        *("sampling.guidance", "data.tokenizers", "exporting.pipeline"),
    ),
    (),
)
TRANSFORMER_FILE = (
    "The transformers SiT and ComboStoc for diffusers; written by export.py.",
    ("exporting.layers", "models", "exporting.transformer"),
    ("timm.layers", "timm.models.vision_transformer"),
)


def text_of(file: tuple[str, tuple[str, ...], tuple[str, ...]]) -> str:
    """The text of one of the files above."""
    first_line_of_file, modules, instead = file
    return bundle(first_line_of_file, [import_module(name) for name in modules], instead)


def check_folder(folder: Path) -> None:
    """See that a pipeline can be written to a folder.

    Raises:
        UsageError: it is there and holds no earlier pipeline.
        DataError: the folder that it would be in does not exist.
    """
    if not folder.parent.is_dir():
        raise DataError(f"--diffusers {folder}: folder {folder.parent} does not exist")
    if folder.exists() and not (folder.is_dir() and ((folder / INDEX).is_file() or not any(folder.iterdir()))):
        raise UsageError(f"--diffusers {folder} exists and is no pipeline, which would be replaced; give a new folder")


def write(network: Network, trained: dict[str, Any], folder: Path) -> None:
    """Write a network of images as a pipeline, whole or not at all.

    Args:
        trained: the arguments that it was trained with, {} where they are not known.
    """
    from exporting.transformer import transformer_of

    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        beside.chmod(0o755)
        transformer = transformer_of(network.model)
        transformer.save_pretrained(beside / "transformer")
        (beside / "transformer" / f"{TRANSFORMER}.py").write_text(text_of(TRANSFORMER_FILE), encoding="utf-8")
        (beside / "pipeline.py").write_text(text_of(PIPELINE_FILE), encoding="utf-8")
        if isinstance(network.autoencoder, LatentSpace):
            network.autoencoder.vae.save_pretrained(beside / "vae")
        index = index_of(network, type(transformer).__name__)
        (beside / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (beside / "README.md").write_text(card(network, trained), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def index_of(network: Network, transformer: str) -> dict[str, Any]:
    """The content of the pipeline's index: its components and settings."""
    import diffusers

    transport, space = network.transport, network.images
    path = {"LINEAR": "Linear"}.get(transport.path_type.name, transport.path_type.name)
    prediction = transport.model_type.name.lower()
    eps = transport.train_eps, transport.sample_eps
    times = {  # Heun's last step of a predicted x1 is Euler's
        method: transport.check_interval(*eps, eval=True, evaluates_end=method == "heun" and prediction != "data")
        for method in ("heun", "euler")
    }
    return {
        "_class_name": ["pipeline", "ComboStocPipeline"],
        "_diffusers_version": diffusers.__version__,
        "transformer": [TRANSFORMER, transformer],
        "vae": ("diffusers", space.class_name) if isinstance(space, LatentSpace) else (None, None),
        "id2label": {str(k): name for k, name in enumerate(network.class_names or [])} or None,
        "path_type": path,
        "prediction": prediction,
        "time_shift": shift_for(transport.time_shift, network.input_shape),
        "times": times,
        "latents": {"scale": space.scale, "shift": space.shift} if isinstance(space, LatentSpace) else None,
    }


def card(network: Network, trained: dict[str, Any]) -> str:
    """The model card: how to use the model, and how it was trained. Of a path only the last part is told."""
    told = {k: Path(v).name if isinstance(v, str) and "/" in v else v for k, v in sorted(trained.items())}
    rows = "\n".join(f"| {name} | {value} |" for name, value in told.items() if value not in (None, ""))
    settings = f"| setting | value |\n| --- | --- |\n{rows}" if rows else "The checkpoint does not say."
    label = repr(network.class_names[0]) if network.class_names else "0"
    steps = f", trained for {network.step:,} steps" if network.step else ""
    return f"""---
library_name: diffusers
tags:
- flow-matching
- class-conditional-image-generation
---

# {network.config.name}

{network.config}, pictures of {network.image_size} x {network.image_size} pixels{steps}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
image = pipe({label}, guidance_scale=4.0, num_inference_steps=50).images[0]
```

FOLDER is this folder, or the name of its repository. `help(pipe.__call__)` lists guidance, methods, and the graded
control of a picture by a mask.

## Training

{settings}
"""


def check_token(repository: str) -> None:
    """See that there is a token of the Hub.

    Raises:
        UsageError: there is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise UsageError(f"--push-to-hub {repository}: no token of the Hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Upload a pipeline to a repository of the Hub, which is made if it is not there. Returns its address.

    Raises:
        DataError: the Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        name = HfApi().create_repo(repository, exist_ok=True).repo_id
        return str(HfApi().upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # network, authorisation, a name: the Hub raises many kinds
        raise DataError(
            f"--push-to-hub {repository}: {folder} is written, not uploaded: {first_line(error)}"
        ) from error
