"""Latents as other programs cache them: ten of 4 x 8 x 8 in three classes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
SHAPE = (4, 8, 8)


def latents(kind: int = 0) -> np.ndarray:
    return np.random.default_rng(kind).standard_normal((len(LABELS), *SHAPE)).astype(np.float32) * 5 + 1


def vae_sd(path: Path) -> Path:
    """As `dataset_tool.py encode` of EDM2 and REPA: beside the pictures."""
    names = [f"{k // 4:05d}/img-mean-std-{k:08d}.npy" for k in range(len(LABELS))]
    for name, mean, std in zip(names, latents(), np.abs(latents(1)), strict=True):
        (path / "vae-sd" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / "vae-sd" / name, np.concatenate([mean, std]))
    labels = [list(pair) for pair in zip(names, LABELS, strict=True)]
    (path / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": labels}))
    (path / "images" / "00000").mkdir(parents=True)
    (path / "images" / "00000" / "img00000000.png").write_bytes(b"")
    return path


def vae_sd_zip(path: Path) -> Path:
    root = vae_sd(path.with_name("unpacked")) / "vae-sd"
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root))
    return path


def lightningdit(path: Path) -> Path:
    from safetensors.torch import save_file

    path.mkdir()
    x, labels = torch.from_numpy(latents()), torch.tensor(LABELS)
    for k, part in enumerate((slice(0, 6), slice(6, None))):
        content = {"latents": x[part], "latents_flip": x[part].flip(-1), "labels": labels[part]}
        content = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(content, path / f"latents_rank00_shard{k:03d}.safetensors", {"total_size": str(len(x[part]))})
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    torch.save({"mean": mean, "std": std}, path / "latents_stats.pt")
    return path


def fast_dit(path: Path) -> Path:
    for kind in ("features", "labels"):
        (path / f"imagenet256_{kind}").mkdir(parents=True)
    for k, (latent, label) in enumerate(zip(latents(), LABELS, strict=True)):
        np.save(path / "imagenet256_features" / f"{k}.npy", latent[None])
        np.save(path / "imagenet256_labels" / f"{k}.npy", np.array([label]))
    return path


WRITERS = {"vae-sd": vae_sd, "vae-sd.zip": vae_sd_zip, "lightningdit": lightningdit, "fast-dit": fast_dit}
