"""Finding weights: a local file, a published name, or hf://owner/repo/file."""

from pathlib import Path, PurePosixPath

from runtime import checkpoint, shards
from runtime.errors import DataError, first_line

# SiT's published EMA weights, trained on ImageNet at 256 x 256 pixels: name -> (repository, file, model)
PRETRAINED = {
    "SiT-S-2-256.pt": ("nyu-visionx/SiT-collections", "SiT-S-2-256.pt", "SiT-S/2"),
    "SiT-B-2-256.pt": ("nyu-visionx/SiT-collections", "SiT-B-2-256.pt", "SiT-B/2"),
    "SiT-XL-2-256.pt": ("nyu-visionx/SiT-collections", "SiT-XL-2-256.pt", "SiT-XL/2"),
}
PRETRAINED["SiT-XL-2-256x256.pt"] = PRETRAINED["SiT-XL-2-256.pt"]  # the name SiT's own programs use


def pretrained_name(model: str) -> str | None:
    """The name of the published weights of a model, None where there are none."""
    return next((name for name, (_, _, m) in PRETRAINED.items() if m == model), None)


def locate(name: str) -> Path:
    """The local path of a checkpoint, or of the index of one in several files; it is fetched from the Hub if need be.

    Args:
        name: a path, a key of `PRETRAINED`, or hf://owner/repo/file.

    Raises:
        DataError: no such file, or it could not be fetched.
    """
    path = Path(name)
    if path.exists() or path.is_symlink():
        return checkpoint.find(path)
    if name.startswith("hf://"):
        owner, _, rest = name.removeprefix("hf://").partition("/")
        repo, _, file = rest.partition("/")
        if not (owner and repo and file):
            raise DataError(f"{name} is not of the form hf://owner/repo/file")
        return _fetch(f"{owner}/{repo}", file)
    if name in PRETRAINED:
        repository, file, _ = PRETRAINED[name]
        return _fetch(repository, file)
    raise DataError(
        f"checkpoint {name} does not exist; give a .pt or .safetensors file, hf://owner/repo/file, "
        f"or one of {', '.join(PRETRAINED)}"
    )


def find_model(model_name: str) -> checkpoint.StateDict:
    """The state dict of a checkpoint, EMA weights first (SiT's function of this name)."""
    return checkpoint.weights(checkpoint.load(locate(model_name)), model_name)


download_model = find_model  # SiT's function for a published name


def _fetch(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file))
        if shards.is_index(path):
            for shard in sorted(set(shards.weight_map(path).values())):
                hf_hub_download(repository, str(PurePosixPath(file).with_name(shard)))
        return path
    except DataError:
        raise
    except Exception as error:  # network, authorisation, a missing file: the Hub raises many kinds
        raise DataError(
            f"{file} could not be fetched from the Hub repository {repository}: {first_line(error)} "
            "(or give --ckpt a local file)"
        ) from error
