"""The study's judge of structured shapes: samples against the shapes of a set that were not trained on."""

import argparse

from experiments.judge import balanced_labels, drawn
from experiments.measurements import ShapeRow
from sampling.network import Network
from shapes.control import layout_of
from shapes.judging import OFTEN_COMPARED, OFTEN_POINTS, held_out
from shapes.judging import ShapeJudge as ShapeJudge
from shapes.sets import ShapeSet, from_shapes, open_shapes


def open_shape_judge(data_path: str) -> ShapeJudge:
    """The judge of the shapes of --data-path."""
    return make_shape_judge(open_shapes(data_path))


def make_shape_judge(shapes: ShapeSet) -> ShapeJudge:
    """A judge that compares samples with the held-out shapes of a set."""
    return ShapeJudge(*held_out(shapes), points=OFTEN_POINTS, compared=OFTEN_COMPARED)


def judge_shapes(args: argparse.Namespace, network: Network, judge: ShapeJudge, row: ShapeRow) -> None:
    """Fill in the row, from samples of each class equally often, from the noise of seed 0."""
    layout = layout_of(network)
    labels = balanced_labels(network, row.samples)
    made = [layout.decode(numbers) for x, _ in drawn(args, network, labels) for numbers in x]
    names = network.class_names or [str(k) for k in range(network.num_labels)]
    samples = from_shapes(made, labels.tolist(), names)
    found = judge.evaluate(samples)
    row.fd, row.accuracy = found["FD-points"], found["valid_percent"] / 100
    row.test_to_samples, row.samples_to_test = found["test_to_samples"], found["samples_to_test"]
    row.coverage, row.nearest = found["coverage_percent"], found["1NN_accuracy_percent"]
    row.parts = float(samples.counts.mean())
