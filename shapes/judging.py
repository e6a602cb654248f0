"""Measures of a set of shapes against another: Chamfer distances, a point network, and whether shapes could be made."""

import argparse
import json
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from runtime import precision
from runtime.device import float64
from runtime.distributed import Process
from runtime.errors import DataError, UsageError
from runtime.files import replacing
from shapes.chamfer import chamfer_distances, coverage, nearest_means, nearest_neighbour_accuracy
from shapes.meshes import surface_points
from shapes.point_network import PointNetwork
from shapes.sets import BOX, ShapeSet, open_shapes
from shapes.validity import ground_level, validity

POINTS = 2048  # points drawn on each shape
COMPARED = 500  # shapes of each set, at most, between which distances are computed
OFTEN_POINTS, OFTEN_COMPARED = 1024, 200  # during training, where sets are judged often: half a minute of a core
MAX_SHAPES = 10_000  # shapes of each set, at most, for all other measures
LARGEST = 1e15  # a box's numbers may not be larger: squares of distances are float32
SAMPLES, REFERENCE, TRAINING = range(3)  # seeds by which each set gets points of its own
NUMBERS = (  # names of the measures, in their order
    *("test_to_samples", "samples_to_test", "coverage_percent", "1NN_accuracy_percent", "FD-points"),
    *("connected_percent", "standing_percent", "valid_percent", "compared"),
)


def held_out(shapes: ShapeSet) -> tuple[ShapeSet, ShapeSet | None]:
    """The reference and the training of a ShapeJudge, from the splits of a set.

    The reference is the test split, or where there is none the validation split, or else the whole set; without a split
    there is no training.
    """
    reference = next((part for name in ("test", "val") if len(part := shapes.of_split(name))), shapes)
    training = shapes.of_split("train")
    return reference, training if reference is not shapes and len(training) else None


class ShapeJudge:
    """A judge of sets of shapes: a reference, prepared once for any number of sets of samples.

    Args:
        reference: real shapes, as a rule of the test split.
        training: shapes that the point network is trained on; by default the reference. Many are better than few.
        points: points drawn on each shape. Distances shrink with their number, and take time with its square.
        compared: shapes of each set, at most, between which distances are computed; the same number of both. Time grows
            with its square; coverage depends on it.
        seed: seed of the points, the choice of shapes and the network.

    Raises:
        DataError: a set has fewer than two shapes, or one whose box is not finite, or beyond 1e15.
    """

    @precision.exact()
    def __init__(
        self,
        reference: ShapeSet,
        training: ShapeSet | None = None,
        *,
        points: int = POINTS,
        compared: int = COMPARED,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.points, self.compared, self.seed, self.device = points, compared, seed, device
        self.reference = self._some(reference, "reference")
        self.clouds = self._clouds(self.reference, REFERENCE)
        self.ground = ground_level(self.reference)
        seen, clouds = self.reference, self.clouds
        if training is not None:
            seen = self._some(training, "training")
            clouds = self._clouds(seen, TRAINING)
        self.network = PointNetwork(clouds, torch.from_numpy(seen.labels), len(seen.class_names), seed)

    @precision.exact()
    def evaluate(self, samples: ShapeSet) -> dict[str, float]:
        """All measures of samples, by name; see docs/evaluation.md.

        Chamfer distances are test_to_samples and samples_to_test; compared is the number of shapes of each set between
        which they are computed.

        Raises:
            DataError: there are fewer than two samples, or one whose box is not finite, or beyond 1e15.
        """
        samples = self._some(samples, "samples")
        clouds = self._clouds(samples, SAMPLES)
        count = min(len(samples), len(self.reference), self.compared)
        compared = clouds[:count]
        between = chamfer_distances(compared, self.clouds[:count], desc="Between the sets")
        within = chamfer_distances(compared, desc="Between samples")
        test_to_samples, samples_to_test = nearest_means(between)
        return {
            "test_to_samples": test_to_samples,
            "samples_to_test": samples_to_test,
            "coverage_percent": coverage(between),
            "1NN_accuracy_percent": nearest_neighbour_accuracy(within, between, self._within[:count, :count]),
            "FD-points": self.network.distance(clouds, self.clouds),
            **validity(samples, self.ground),
            "compared": float(count),
        }

    @cached_property
    def _within(self) -> Tensor:
        return chamfer_distances(self.clouds[: self.compared], desc="Between real shapes")

    def _some(self, shapes: ShapeSet, what: str) -> ShapeSet:
        """At most `MAX_SHAPES` of the shapes in random order, so that the first stand for all.

        Raises:
            DataError: there are fewer than two, or one whose box is not finite, or beyond 1e15.
        """
        if len(shapes) < 2:
            raise DataError(f"{what}: {len(shapes)} shapes; two or more are needed")
        for name in BOX:
            usable = (np.abs(shapes.attributes[name]) <= LARGEST).all(1)  # nan is not
            if not usable.all():
                shape = int(np.searchsorted(shapes.starts, usable.argmin(), side="right")) - 1
                raise DataError(f"{what}: {name} of shape {shape} is not finite, or beyond {LARGEST:g}")
        return shapes.select(np.random.default_rng(self.seed).permutation(len(shapes))[:MAX_SHAPES])

    def _clouds(self, shapes: ShapeSet, which: int) -> Tensor:
        """Points on the surfaces of N shapes: (N, points, 3)."""
        generators = (np.random.default_rng([self.seed, which, k]) for k in range(len(shapes)))
        clouds = [surface_points(shapes[k], self.points, rng) for k, rng in enumerate(generators)]
        return torch.from_numpy(np.stack(clouds).astype(np.float32)).to(self.device)


def evaluate(args: argparse.Namespace, process: Process) -> None:
    """Print the measures of two sets of shapes, by evaluate.py's arguments; the first process does all.

    Raises:
        UsageError, DataError: one of them is none.
    """
    if args.save_stats or not args.reference:
        raise UsageError(f"{args.samples} holds shapes, which have no statistics to save: give a REFERENCE")
    features = None if args.features == "inception" else args.features  # the default
    for flag, value in (("image-size", args.image_size), ("features", features), ("weights", args.weights)):
        if value is not None:
            raise UsageError(f"--{flag} {value} is for images, and {args.samples} is compared with shapes")
    if not process.is_main:
        return
    reference, training = held_out(open_shapes(args.reference))
    samples = open_shapes(args.samples)
    settings = {"points": args.points, "compared": args.compared}
    judge = ShapeJudge(reference, training, **settings, device=float64(process.device))
    results = judge.evaluate(samples)
    for name, value in results.items():
        print(f"{name:<28} {value:.6g}")
    if args.out:
        about = {"samples": args.samples, "reference": args.reference}
        counts = {"sample_count": len(samples), "reference_count": len(reference)}
        with replacing(args.out) as beside:
            beside.write_text(json.dumps(about | counts | results, indent=1) + "\n")
