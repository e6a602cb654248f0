"""What `evaluate.py` and `train.py --eval-every` share: statistics of a set of images, and how two sets compare."""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import DataError
from features import Extractor, Features
from files import replacing
from image_sets import IMAGES, array_names
from metrics import Moments, frechet_distance, inception_score, kernel_distance, moments, precision_recall

MAX_FEATURES = 10_000  # in a file of statistics, as many as ADM's reference batches have images
NEIGHBOURS = 3  # of precision and recall


@dataclass
class Statistics:
    """A set of images as a network sees it.

    Attributes:
        extractor: the network's name.
        count: images, 0 where a file does not say.
        pooled, spatial: moments of its features; the spatial ones for inception only.
        features: (N, D), of all images or of some; None where a file has the moments alone.
        logits: (N, K), None where they come from a file.
    """

    extractor: str
    count: int
    pooled: Moments
    spatial: Moments | None
    features: Tensor | None
    logits: Tensor | None


# ---- from images ---------------------------------------------------------------------------------------------------


def extract(batches: Iterable[Tensor], extractor: Extractor) -> Features:
    """Features of all images (N, 3, H, W) uint8, on the CPU."""
    return joined(on_cpu(extractor.extract(images)) for images in batches)


def on_cpu(features: Features) -> Features:
    pooled, spatial, logits = features
    return Features(pooled.cpu(), None if spatial is None else spatial.cpu(), logits.cpu())


def joined(parts: Iterable[Features]) -> Features:
    """Features of sets, one after the other."""
    pooled, spatial, logits = zip(*parts, strict=True)
    return Features(torch.cat(pooled), None if spatial[0] is None else torch.cat(spatial), torch.cat(logits))


def statistics_of(features: Features, extractor: Extractor, device: torch.device) -> Statistics:
    """Moments in float64 on a device.

    Raises:
        ValueError: there are fewer than two images.
    """
    pooled = features.pooled.to(device)
    spatial = None if features.spatial is None else moments(features.spatial.to(device))
    return Statistics(extractor.name, len(pooled), moments(pooled), spatial, pooled, features.logits.to(device))


# ---- files ---------------------------------------------------------------------------------------------------------


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write `mu, sigma, mu_s, sigma_s`, as ADM's reference batches have, and the features of at most 10,000 images."""
    arrays = {"mu": statistics.pooled.mean, "sigma": statistics.pooled.cov}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.cov}
    if statistics.features is not None:  # evenly spaced: folders are in the order of their classes
        n = len(statistics.features)
        chosen = torch.linspace(0, n - 1, min(n, MAX_FEATURES)).round().long()
        arrays["features"] = statistics.features[chosen.to(statistics.features.device)]
    content: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    content |= {"extractor": np.array(statistics.extractor), "count": np.array(statistics.count)}
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(file, **content)


def is_statistics(path: Path) -> bool:
    """Whether an .npz holds moments."""
    return {"mu", "sigma"} <= array_names(path)


def load_statistics(path: Path, extractor: Extractor, device: torch.device) -> Statistics:
    """Read what `save_statistics` or ADM wrote; ADM's files are of the inception network.

    Raises:
        DataError: it is damaged, or of another network.
    """

    def array(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(arrays[name])).to(device)

    def moments_from(mean: str, cov: str) -> Moments:
        found = Moments(array(mean).double(), array(cov).double())
        d = len(found.mean)
        if found.mean.shape != (d,) or found.cov.shape != (d, d):
            raise ValueError(f"{mean} has shape {tuple(found.mean.shape)}, {cov} {tuple(found.cov.shape)}")
        if not (found.mean.isfinite().all() and found.cov.isfinite().all()):
            raise ValueError(f"{mean} or {cov} is not finite")
        return found

    try:
        with np.load(path) as arrays:
            name = str(arrays["extractor"]) if "extractor" in arrays else "inception"
            count = int(arrays["count"]) if "count" in arrays else 0
            pooled = moments_from("mu", "sigma")
            spatial = moments_from("mu_s", "sigma_s") if "mu_s" in arrays else None
            features = array("features") if "features" in arrays else None
            if features is not None and (features.ndim != 2 or features.shape[1] != len(pooled.mean)):
                raise ValueError(f"features have shape {tuple(features.shape)}, mu {tuple(pooled.mean.shape)}")
    except (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no statistics that can be read: {error}") from None
    if name != extractor.name:
        raise DataError(f"{path} holds statistics of {name}, not of {extractor.name}: give --features {name}")
    if len(pooled.mean) != extractor.dimensions:
        raise DataError(
            f"{path} holds statistics of {len(pooled.mean)} features; {extractor.name} has {extractor.dimensions}"
        )
    return Statistics(name, count, pooled, spatial, features, None)


def has_images(path: Path) -> bool:
    """Whether an .npz holds images, as ADM's reference batches do beside their statistics."""
    return IMAGES in array_names(path)


# ---- comparison ----------------------------------------------------------------------------------------------------


def compare(samples: Statistics, reference: Statistics) -> dict[str, float]:
    """What can be computed of FD, sFD, IS, KD, precision and recall (see `report_name`).

    IS and KD have their standard deviation over subsets beside them, as IS_std and KD_std.
    """
    results = {"FD": frechet_distance(samples.pooled, reference.pooled)}
    if samples.spatial is not None and reference.spatial is not None:
        results["sFD"] = frechet_distance(samples.spatial, reference.spatial)
    if samples.logits is not None:
        results["IS"], results["IS_std"] = inception_score(samples.logits)
    if samples.features is not None and reference.features is not None:
        results["KD"], results["KD_std"] = kernel_distance(samples.features, reference.features)
        if min(len(samples.features), len(reference.features)) > NEIGHBOURS:
            values = precision_recall(samples.features, reference.features, NEIGHBOURS)
            results["precision"], results["recall"] = values
    return results


def report_name(name: str, extractor: str) -> str:
    """What a number is called: FID, sFID and KID with inception, and with the network's name if that is another."""
    if extractor == "inception":
        return {"FD": "FID", "sFD": "sFID", "KD": "KID", "KD_std": "KID_std"}.get(name, name)
    stem, _, std = name.partition("_")
    return f"{stem}-{extractor}" + "_std" * bool(std)


def warnings_about(samples: Statistics, reference: Statistics) -> Iterator[str]:
    """What makes the numbers hard to compare with others'."""
    d = len(reference.pooled.mean)
    yield from warnings_about_counts(d, samples=samples.count, reference=reference.count)
    if reference.features is not None and len(reference.features) < reference.count:
        yield f"KID, precision and recall are with {len(reference.features):,} of {reference.count:,} reference images"


def warnings_about_counts(dimensions: int, **counts: int) -> Iterator[str]:
    """The same of sets by their sizes; 0 is unknown."""
    for what, count in counts.items():
        if 0 < count <= dimensions:
            yield (
                f"{count:,} images ({what}) are not more than the {dimensions:,} features: their covariance is "
                "singular, and Frechet distances are biased upwards"
            )
