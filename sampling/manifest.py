"""The manifest beside an .npz of samples: what made it, so that a number computed from it can be traced."""

import argparse
import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from runtime import distributed
from runtime.files import replacing, sha256
from sampling.network import Network

PACKAGES = ("torch", "torchvision", "timm", "torchdiffeq", "diffusers", "numpy", "Pillow")


def versions() -> dict[str, str]:
    """The versions of Python, of the packages that pictures depend on, and of this code where it is a git checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


def runs_before(path: Path, digest: str) -> list[dict[str, object]]:
    """The runs that an earlier manifest of the checkpoint records."""
    try:
        earlier = json.loads(path.read_text())
        return earlier["runs"] if earlier["settings"]["checkpoint_sha256"] == digest else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write(
    args: argparse.Namespace,
    network: Network,
    process: distributed.Process,
    run: Mapping[str, float],
    settings: dict[str, object],
    npz: Path,
) -> None:
    """Write the manifest of an .npz beside it.

    Args:
        run: numbers of this run: images, model evaluations, seconds. A run that was killed has left no record; the
            images of all recorded runs are then fewer than those of the file.
        settings: everything an image depends on.
    """
    path = npz.with_suffix(".json")
    on_cpu, on_cuda = (process.device.type == kind for kind in ("cpu", "cuda"))
    device = torch.cuda.get_device_name(process.device) if on_cuda else platform.machine() + " GPU" * (not on_cpu)
    about = {"processes": process.world_size, "per_proc_batch_size": args.per_proc_batch_size, "device": device}
    runs = runs_before(path, str(settings["checkpoint_sha256"]))
    content = {
        "npz": npz.name,
        "npz_sha256": sha256(npz),
        "images": args.num_fid_samples,
        "checkpoint": str(network.path),
        "step": network.step,
        "settings": settings,
        "runs": [*runs, {**run, **about}] if run["images"] else runs,
        "versions": versions(),
    }
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")
