"""Cached latents of all formats, found by the content of a path."""

from pathlib import Path

from data import fast_dit, latents, lightningdit, vae_sd
from data.foreign_latents import ForeignLatents
from data.latents import CachedLatents

Latents = CachedLatents | ForeignLatents


def is_latents(path: str | Path) -> bool:
    """Whether a path holds cached latents, finished or not."""
    path = Path(path)
    formats = (vae_sd, lightningdit, fast_dit)
    return latents.is_extraction(path) or any(module.find(path) is not None for module in formats)


def open_latents(path: str | Path, *, labels: bool = True) -> Latents | None:
    """The cached latents of a path; None where it holds none.

    Args:
        labels: whether to read the labels of another program's latents, which takes a while.

    Raises:
        DataError: they are not finished, or damaged.
    """
    path = Path(path)
    if latents.is_extraction(path):
        return CachedLatents(path)
    found: ForeignLatents | None = None
    if (tree := vae_sd.find(path)) is not None:
        found = vae_sd.VaeSd(tree)
    elif (shards := lightningdit.find(path)) is not None:
        found = lightningdit.LightningDiT(shards)
    elif (features := fast_dit.find(path)) is not None:
        found = fast_dit.FastDiT(features)
    if found is not None and labels:
        found.load()
    return found
