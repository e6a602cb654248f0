"""Evaluation during training on structured shapes: samples against shapes that are held out."""

import argparse
from collections.abc import Callable
from typing import Any

from torch import Tensor

from data.feed import Data
from models import SiT
from runtime import distributed
from runtime.device import float64
from runtime.errors import DataError
from sampling.monitor import samples
from shapes.judging import OFTEN_COMPARED, OFTEN_POINTS, ShapeJudge, held_out
from shapes.sets import Shape, ShapeSpace, from_shapes, open_shapes
from transport import Transport


class ShapeMonitor:
    """The judge of shapes: numbers as from `sample_ddp.py SDE --balanced-labels` and `evaluate.py`, with fewer points.

    Shape i has the noise of (seed, i) every time. All processes sample, the first one judges.
    """

    def __init__(self, args: argparse.Namespace, process: distributed.Process, data: Data) -> None:
        self.args, self.process, self.data = args, process, data
        self.reference = args.eval_reference or args.data_path
        self.judge: ShapeJudge | None = None  # in the first process

    def prepare(self) -> list[str]:
        """Prepare the judge, in the first process; returns lines to log.

        Raises:
            DataError: the reference cannot be read, or has fewer than two shapes.
        """
        return distributed.from_main(self._make_judge)

    def _make_judge(self) -> list[str]:
        reference, training = held_out(open_shapes(self.reference))
        settings: dict[str, Any] = {"points": OFTEN_POINTS, "compared": OFTEN_COMPARED}
        self.judge = ShapeJudge(reference, training, **settings, device=float64(self.process.device))
        flags = " ".join(f"--{name} {value}" for name, value in settings.items())
        return [f"Evaluating: against {len(reference):,} shapes of {self.reference}, as evaluate.py {flags}"]

    def evaluate(self, model: SiT, transport: Transport, stop: Callable[[], bool]) -> dict[str, float]:
        """The measures of `ShapeJudge.evaluate`; see `Evaluator`.

        Raises:
            FloatingPointError: samples are not finite, or too large to be judged.
        """
        space = self.data.autoencoder
        assert isinstance(space, ShapeSpace)

        def decode(x: Tensor) -> list[Shape]:
            return [space.layout.decode(numbers) for numbers in x]

        made: dict[int, Shape] = {}
        for indices, shapes in samples(self.args, self.process, self.data, model, transport, decode, stop):
            made.update(zip(indices, shapes, strict=True))
        if stop():
            return {}
        parts = distributed.gather_to_main(made)
        if self.judge is None:
            return {}
        found = {i: shape for part in parts for i, shape in part.items()}
        names = self.data.dataset.class_names
        labels = [i % len(names) for i in range(len(found))]
        sampled = from_shapes([found[i] for i in range(len(found))], labels, names)
        try:
            return self.judge.evaluate(sampled)
        except DataError as error:  # as large as a diverging model makes them
            raise FloatingPointError(str(error)) from None
