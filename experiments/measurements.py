"""The measurements of a study: its rows, and the figure and the table that show them."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.files import replacing


@dataclass
class Row:
    """The measurements of one checkpoint."""

    variant: str
    seed: int
    step: int
    training: str  # digest of the other arguments of training
    samples: int
    sampling_steps: int
    lr: float = 1e-3  # peak learning rate; the default is that of tables without this column
    ema_decay: float = 0.99
    fd: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0  # of training up to this step, by the clock

    @property
    def key(self) -> tuple[object, ...]:
        """The values that tell it from other rows."""
        return (self.variant, self.seed, self.step, self.training, self.samples, self.sampling_steps, self.lr)


@dataclass
class ShapeRow(Row):
    """A row for a model of shapes, whose accuracy is the share of valid ones; see shapes/judging.py."""

    test_to_samples: float = 0.0
    samples_to_test: float = 0.0
    coverage: float = 0.0  # percent
    nearest: float = 0.0  # 1-NN accuracy, percent
    parts: float = 0.0  # mean number of parts of a sample


def by_variant(rows: Sequence[Row], measure: str) -> dict[str, dict[int, list[float]]]:
    """The values of all seeds, by variant and step."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        values.setdefault(row.variant, {}).setdefault(row.step, []).append(getattr(row, measure))
    return values


CURVES = 8  # variants in a figure, at most; more are dots
MEASURES = ("fd", "accuracy")  # of a figure


def draw_curves(rows: Sequence[Row], variants: Sequence[str], path: Path) -> None:
    """Draw Frechet distance and class accuracy against training steps: means over seeds, and the range between them."""
    with panels(path, (10, 4), rows) as axes:
        for axis, name in zip(axes, MEASURES, strict=True):
            values = by_variant(rows, name)
            for variant in (v for v in variants if v in values):
                steps = sorted(values[variant])
                groups = [values[variant][step] for step in steps]
                (line,) = axis.plot(steps, [statistics.fmean(g) for g in groups], "o-", markersize=4, label=variant)
                low, high = ([f(g) for g in groups] for f in (min, max))
                axis.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
            axis.set_xlabel("training steps")
        axes[0].set_yscale("log")
        axes[0].legend(fontsize=8)


def draw_dots(rows: Sequence[Row], variants: Sequence[str], path: Path) -> None:
    """Draw Frechet distance and class accuracy of many variants: a line for each, a dot per seed, a colour per step."""
    from matplotlib.ticker import LogLocator, NullFormatter

    there = [v for v in variants if v in {row.variant for row in rows}]
    with panels(path, (11, 1 + 0.22 * len(there)), rows, sharey=True) as axes:
        for axis, name in zip(axes, MEASURES, strict=True):
            for step in sorted({row.step for row in rows}):
                points = [(getattr(r, name), there.index(r.variant)) for r in rows if r.step == step]
                axis.plot(*zip(*points, strict=True), "o", markersize=4, alpha=0.8, label=f"{step} steps")
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_yticks(range(len(there)), there, fontsize=7)
        axes[0].invert_yaxis()
        axes[1].legend(fontsize=8)


@contextmanager
def panels(path: Path, size: tuple[float, float], rows: Sequence[Row], **shared: bool) -> Iterator[Any]:
    """A context with two axes for the two measures of the rows, written to a file at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=size, **shared)
    share = "share of valid shapes" if isinstance(rows[0], ShapeRow) else "share in the class asked for"
    for axis, title in zip(axes, ("Frechet distance / variance of the data", share), strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    yield axes
    figure.tight_layout()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    pyplot.close(figure)


def table_lines(rows: Sequence[Row], variants: Sequence[str]) -> Iterator[str]:
    """A table in Markdown: mean and standard deviation over seeds, and their number, at every step."""
    share = "valid" if isinstance(rows[0], ShapeRow) else "in class"
    distances, accuracies, seconds = (by_variant(rows, name) for name in ("fd", "accuracy", "seconds"))
    there = [v for v in variants if v in distances]
    steps = sorted(distances[there[0]])
    yield "| | " + " | ".join(f"1000 FD at {step}" for step in steps) + f" | {share} at the end | s of training |"
    yield "| --- " * (len(steps) + 3) + "|"
    for v in there:
        cells = [spread([1000 * x for x in distances[v][step]], 1) for step in steps]
        cells += [spread([100 * x for x in accuracies[v][steps[-1]]], 1) + " %", spread(seconds[v][steps[-1]], 0)]
        yield f"| {v} ({len(distances[v][steps[-1]])}) | " + " | ".join(cells) + " |"


def shape_lines(rows: Sequence[ShapeRow], variants: Sequence[str]) -> Iterator[str]:
    """A table in Markdown: mean and standard deviation of the other numbers of shapes at the last step."""
    last = max(row.step for row in rows)
    names = {"test_to_samples": 1000, "samples_to_test": 1000, "coverage": 1, "nearest": 1, "parts": 1}
    yield "| | 1000 test to samples | 1000 samples to test | coverage, % | 1-NN, % | parts |"
    yield "| --- " * (len(names) + 1) + "|"
    for v in variants:
        there = [row for row in rows if (row.variant, row.step) == (v, last)]
        if there:
            cells = [spread([factor * getattr(row, name) for row in there], 2) for name, factor in names.items()]
            yield f"| {v} | " + " | ".join(cells) + " |"


def tuning_lines(rows: Sequence[Row], variants: Sequence[str]) -> Iterator[str]:
    """A table in Markdown: distance and share in class at the last step, a column for each learning rate."""
    last = max(row.step for row in rows)
    made = {(row.variant, row.lr): row for row in rows if row.step == last}
    rates = sorted({lr for _, lr in made})
    yield f"| 1000 FD / in class at {last} | " + " | ".join(f"lr {lr:g}" for lr in rates) + " |"
    yield "| --- " * (len(rates) + 1) + "|"
    for v in (v for v in variants if v in {variant for variant, _ in made}):
        there = [made.get((v, lr)) for lr in rates]
        cells = ["" if row is None else f"{1000 * row.fd:.1f} / {100 * row.accuracy:.1f} %" for row in there]
        yield f"| {v} | " + " | ".join(cells) + " |"


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of values and their standard deviation, in words."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def comparison_lines(rows: Sequence[Row], variants: Sequence[str]) -> Iterator[str]:
    """The number of seeds in which a variant's distance is below that of UNSYNC_NONE, or of the first, at each step."""
    by_key = {(row.variant, row.seed, row.step): row.fd for row in rows}
    base = "UNSYNC_NONE" if "UNSYNC_NONE" in variants else variants[0]
    for v in variants:
        pairs: dict[int, list[bool]] = {}
        for (variant, seed, step), fd in sorted(by_key.items()):
            if variant == v != base and (base, seed, step) in by_key:
                pairs.setdefault(step, []).append(fd < by_key[base, seed, step])
        if pairs:
            counts = ", ".join(f"{sum(won)} of {len(won)} at {step}" for step, won in pairs.items())
            yield f"{v} is closer to the data than {base} in this many seeds: {counts} steps"
