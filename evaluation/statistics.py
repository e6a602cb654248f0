"""Statistics of a set of images, from the images, a file or several processes; warnings about them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.features import DIMENSIONS, Extractor
from evaluation.image_sets import ARRAY, Batch, ImageSet, array_names, open_images
from evaluation.metrics import Moments, RunningMoments, Statistics
from runtime import distributed, progress
from runtime.errors import DataError
from runtime.files import DAMAGE, replacing

MAX_KEPT = 50_000  # images of a set whose features are kept for KID, precision and recall; moments are of all images
MAX_FEATURES = 10_000  # images whose features are in a file of statistics, as many as ADM's reference batches have


# ---- from images ---------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """The features that one process has computed of a set of images."""

    pooled: RunningMoments
    spatial: RunningMoments | None = None
    indices: list[int] = field(default_factory=list)  # of images whose features are kept
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


def evenly_spaced(count: int, most: int) -> list[int]:
    """Evenly spaced indices below `count`, at most `most`: folders are in the order of their classes."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def look(batches: Iterable[Batch], count: int, extractor: Extractor) -> Seen:
    """The features of a process's share of a set of `count` images."""
    seen = Seen(RunningMoments(DIMENSIONS[extractor.name]))
    kept = set(evenly_spaced(count, MAX_KEPT))
    for indices, images in batches:
        found = extractor.extract(images)
        seen.pooled.add(found.pooled)
        if found.spatial is not None:
            seen.spatial = seen.spatial or RunningMoments(found.spatial.shape[1])
            seen.spatial.add(found.spatial)
        chosen = [k for k, i in enumerate(indices) if i in kept]
        seen.indices += [indices[k] for k in chosen]
        seen.features.append(found.pooled[chosen].cpu())
        if found.logits is not None:
            seen.logits.append(found.logits[chosen].cpu())
    for running in (seen.pooled, seen.spatial):
        if running is not None:
            running.to(torch.device("cpu"))
    return seen


def statistics_of(batches: Iterable[Batch], count: int, extractor: Extractor) -> Statistics | None:
    """The statistics of a set of which every process gives its share, in the first process; None in the others.

    They do not depend on the number of processes, up to rounding.

    Raises:
        ValueError: there are fewer than two images.
    """
    return joined(distributed.gather_to_main(look(batches, count, extractor)), extractor)


def joined(parts: list[Seen], extractor: Extractor) -> Statistics | None:
    """The statistics of all processes' features together; None for no parts."""
    if not parts:
        return None
    pooled, spatial = RunningMoments(DIMENSIONS[extractor.name]), None
    for part in parts:
        pooled.merge(part.pooled)
        if part.spatial is not None:
            spatial = spatial or RunningMoments(len(part.spatial.mean))
            spatial.merge(part.spatial)
    order = torch.tensor([i for part in parts for i in part.indices]).argsort()
    features = torch.cat([f for part in parts for f in part.features])
    logits = [f for part in parts for f in part.logits]
    return Statistics(
        extractor.name,
        pooled.count,
        pooled.moments(),
        None if spatial is None else spatial.moments(),
        features[order],
        torch.cat(logits)[order] if logits else None,
    )


@dataclass
class Source:
    """A source to evaluate, opened: statistics, images, or, as ADM's reference batches have, both."""

    name: str
    saved: Statistics | None
    images: ImageSet | None
    has_moments: bool = False  # whether there are moments of some network beside the images

    def statistics(
        self, extractor: Extractor | None, process: distributed.Process, batch_size: int
    ) -> Statistics | None:
        """The source's statistics, in the first process; None in the others. All processes look at the images.

        Args:
            extractor: the network of features; None will do where there are no images.
        """
        if self.images is None or extractor is None:
            return self.saved
        batches = self.images.batches(batch_size, process.rank, process.world_size)
        total = -(-len(self.images) // (batch_size * process.world_size))
        shown = progress.bar(batches, total=total, desc=Path(self.name).name)
        found = statistics_of(shown, len(self.images), extractor)
        if found is None or self.saved is None:
            return found
        return replace(found, pooled=self.saved.pooled, spatial=self.saved.spatial, count=self.saved.count)


def open_source(name: str, extractor: str, image_size: int | None = None) -> Source:
    """A file, a folder, or 'digits', opened before anything takes time.

    Args:
        extractor: the network of features that is wanted. ADM's moments are of inception; for another, its images
            count.
        image_size: crop pictures of folders to this.

    Raises:
        DataError: it is missing, is not what it should be, or has fewer than two images.
    """
    path = Path(name)
    saved, has_moments = None, False
    if path.suffix == ".npz":
        names = array_names(path)
        if has_moments := {"mu", "sigma"} <= names:
            if ARRAY not in names:
                return Source(name, load_statistics(path, extractor), None)
            if extractor == "inception":
                saved = load_statistics(path, extractor)
    images = open_images(name, image_size)
    if len(images) < 2:
        raise DataError(f"{name} holds {len(images)} image; a distribution takes two or more")
    return Source(name, saved, images, has_moments)


# ---- files ---------------------------------------------------------------------------------------------------------


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write `mu, sigma, mu_s, sigma_s`, as ADM's reference batches have, and the features of at most 10,000 images."""
    arrays = {"mu": statistics.pooled.mean, "sigma": statistics.pooled.cov}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.cov}
    if statistics.features is not None:
        arrays["features"] = statistics.features[evenly_spaced(len(statistics.features), MAX_FEATURES)]
    content: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    content |= {"extractor": np.array(statistics.extractor), "count": np.array(statistics.count)}
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(file, **content)


def load_statistics(path: Path, extractor: str) -> Statistics:
    """The statistics that `save_statistics` or ADM wrote; ADM's files are of the inception network.

    Raises:
        DataError: the file is damaged, or of another network.
    """

    def moments_from(mean: str, cov: str) -> Moments:
        found = Moments(*(torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in (mean, cov)))
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
            features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
            if features is not None and (features.ndim != 2 or features.shape[1] != len(pooled.mean)):
                raise ValueError(f"features have shape {tuple(features.shape)}, mu {tuple(pooled.mean.shape)}")
    except (*DAMAGE, TypeError) as error:
        raise DataError(f"{path} holds no statistics that can be read: {error}") from None
    if name != extractor:
        raise DataError(f"{path} holds statistics of {name}, not of {extractor}")
    if len(pooled.mean) != DIMENSIONS[extractor]:
        raise DataError(f"{path} holds statistics of {len(pooled.mean)} features; {extractor} has {DIMENSIONS[name]}")
    return Statistics(name, count, pooled, spatial, features, None)


# ---- warnings ------------------------------------------------------------------------------------------------------


def warnings_about(samples: Statistics, reference: Statistics) -> Iterator[str]:
    """Warnings about sets whose numbers cannot be compared with those of others."""
    d = len(reference.pooled.mean)
    yield from warnings_about_counts(d, samples=samples.count, reference=reference.count)
    for what, statistics in (("samples", samples), ("reference", reference)):
        if statistics.features is not None and len(statistics.features) < statistics.count:
            kept = len(statistics.features)
            yield f"KID, precision and recall are with {kept:,} of {statistics.count:,} images ({what})"


def warnings_about_sizes(samples: tuple[int, int] | None, reference: tuple[int, int] | None) -> Iterator[str]:
    """Warnings about sets whose images differ in size, (width, height); None is unknown."""
    if samples and reference and samples != reference:
        (a, b), (c, d) = samples, reference
        yield (
            f"the samples are images of {a} x {b} pixels, the reference's are of {c} x {d}: the network sees them at "
            "one size, and so the difference in sharpness, too"
        )


def warnings_about_counts(dimensions: int, **counts: int) -> Iterator[str]:
    """Warnings about sets of few images, by the number in each; 0 is unknown."""
    for what, count in counts.items():
        if 0 < count <= dimensions:
            yield (
                f"{count:,} images ({what}) are not more than the {dimensions:,} features: their covariance is "
                "singular, and Frechet distances are biased upwards"
            )
