"""The quality of each sampler against the number of model evaluations.

    python experiments/samplers.py --ckpt A.safetensors B.safetensors --data-path FOLDER --out results/samplers
    make study-times                                            # ends by it: visuals/study-samplers*

For each checkpoint, sampler and number of evaluations: the share of samples that a classifier of the data puts in the
class asked for, and the Frechet distance of its features to all images', in units of the data's total variance, as in
ablation.py. The samplers are Euler, Heun and look-ahead for the ODE, and Euler for the SDE. Look-ahead needs a model
that was trained with --difficulty, and is left out for others. Rows that OUT.csv has are not computed again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kinds
from data.caches import is_latents
from data.sets import DIGITS, load_dataset
from experiments.judge import Judge, judge_samples, unguided
from experiments.tables import read_rows, write_rows
from runtime import distributed, precision, progress
from runtime.command_line import Parser, positive_int, with_values
from runtime.errors import DataError, UsageError, run_program
from runtime.files import replacing
from transport.names import ComboStocType
from transport.solvers import AHEAD_METHODS, ODE_SOLVERS, SDE_SOLVERS


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler: a mode and a solver."""

    mode: str
    solver: str

    @property
    def decides(self) -> bool:
        """Whether the solver chooses the number of evaluations itself."""
        return self.mode == "ODE" and ODE_SOLVERS[self.solver].adaptive

    def points(self, evaluations: int) -> int:
        """The number of time points at which a model that predicts the velocity is evaluated `evaluations` times."""
        if self.mode == "SDE":  # whose last step is one more
            return evaluations // (SDE_SOLVERS[self.solver].evaluations or 1)
        return evaluations // (ODE_SOLVERS[self.solver].evaluations or 2) + 1  # look-ahead takes two at most


METHODS = {
    "dopri5": SamplerChoice("ODE", "dopri5"),  # the default
    "Euler": SamplerChoice("ODE", "euler"),
    "Heun": SamplerChoice("ODE", "heun2"),
    "look-ahead": SamplerChoice("ODE", "look-ahead"),
    "SDE, Euler": SamplerChoice("SDE", "Euler"),
}


@dataclass
class Row:
    """The measurements of one checkpoint with one sampler."""

    ckpt: str
    sampler: str
    evaluations: int  # the most that the sampler may take, 0 where it decides
    samples: int
    taken: int = 0  # evaluations that it took; look-ahead takes one per step where t is small
    fd: float = 0.0
    accuracy: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """The values that tell it from other rows."""
        return tuple(asdict(self).values())[:4]


def sampling_args(args: argparse.Namespace, ckpt: str, method: SamplerChoice, evaluations: int) -> argparse.Namespace:
    """The arguments of sample.py, without guidance."""
    flags = ["--ckpt", ckpt, "--sampling-method", method.solver]
    if not method.decides:
        flags += ["--num-sampling-steps", str(method.points(evaluations))]
    flags += ["--vae", args.vae] if args.vae else []
    return unguided(method.mode, *flags)


def measure(args: argparse.Namespace, judge: Judge, row: Row) -> Row:
    """Sample and judge the checkpoint and sampler of a row, and fill it in."""
    parsed = sampling_args(args, row.ckpt, METHODS[row.sampler], row.evaluations)
    precision.setup(parsed.precision)
    network = kinds.load_network(parsed, distributed.single().device, default_vae="ema")
    parsed = with_values(parsed, network.settings)
    row.fd, row.accuracy, row.taken = judge_samples(parsed, network, judge, row.samples)
    return row


def draw_figure(rows: Sequence[Row], path: Path) -> None:
    """Draw the distance against the number of evaluations: a panel for each checkpoint, a line for each sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.ckpt for row in rows))
    figure, axes = pyplot.subplots(1, len(names), figsize=(1 + 4 * len(names), 4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for k, sampler in enumerate(METHODS):  # of one colour in all panels
            points = sorted((row.taken, row.fd) for row in rows if (row.ckpt, row.sampler) == (name, sampler))
            if points:
                axis.plot(*zip(*points, strict=True), "o-", markersize=4, label=sampler, color=f"C{k}")
        axis.set_title(shown_name(name), fontsize=7)
        axis.set_xlabel("evaluations of the model")
        axis.grid(alpha=0.3)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("Frechet distance / variance of the data")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    pyplot.close(figure)


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table in Markdown: a row for each checkpoint and sampler, a column for each number of evaluations."""
    columns = sorted({row.evaluations for row in rows})
    cells = {(row.ckpt, row.sampler, row.evaluations): row for row in rows}
    names = [f"{n} evaluations" if n else "its own number" for n in columns]
    yield "| 1000 FD / in class | sampler | " + " | ".join(names) + " |"
    yield "| --- " * (len(columns) + 2) + "|"
    for name in dict.fromkeys(row.ckpt for row in rows):
        for sampler in METHODS:
            there = [cells.get((name, sampler, n)) for n in columns]
            if any(there):
                texts = [
                    f"{1000 * row.fd:.1f} / {100 * row.accuracy:.1f} %" + f" ({row.taken})" * (not row.evaluations)
                    if row
                    else ""
                    for row in there
                ]
                yield f"| {shown_name(name)} | {sampler} | " + " | ".join(texts) + " |"


def shown_name(ckpt: str) -> str:
    """The name of a checkpoint's experiment, or of its file."""
    path = Path(ckpt)
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def main(argv: Sequence[str] | None = None) -> None:
    """Measure samplers with checkpoints, and draw the figure.

    Raises:
        UsageError: a number of evaluations that not all samplers can take.
        DataError: a folder does not exist, or data that cannot be used.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, metavar="FILE", help="checkpoints of one data set")
    parser.add_argument("--data-path", default=DIGITS, help="folder of images, a sub-folder a class, or 'digits'")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="write NAME.csv and NAME.png")
    parser.add_argument(
        "--evaluations",
        type=positive_int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="numbers of model evaluations, multiples of 8",
    )
    parser.add_argument("--samples", type=positive_int, default=1500, help="samples for each measurement")
    parser.add_argument("--vae", help="autoencoder, as sample.py takes it")
    args = parser.parse_args(argv)
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist")
    if is_latents(args.data_path):
        raise DataError(f"--data-path {args.data_path} holds cached latents; images are needed")
    if odd := [n for n in args.evaluations if n % 8]:
        raise UsageError(f"--evaluations {odd[0]} is not a multiple of 8, by which all samplers can take as many")

    table = args.out.with_suffix(".csv")
    rows = read_rows(table, Row)
    there = {row.key for row in rows}
    judge = None
    for ckpt in args.ckpt:
        parsed = sampling_args(args, ckpt, METHODS["Euler"], 8)
        network = kinds.load_network(parsed, distributed.single().device, default_vae="ema")
        ahead = network.transport.difficulty and network.transport.combostoc_type is not ComboStocType.UNSYNC_NONE
        todo = [
            row
            for sampler in METHODS
            if ahead or sampler not in AHEAD_METHODS
            for n in ([0] if METHODS[sampler].decides else args.evaluations)
            if (row := Row(ckpt, sampler, n, args.samples)).key not in there
        ]
        if todo and judge is None:
            channels = network.config.in_channels if network.settings["vae"] == "none" else 3
            dataset = load_dataset(args.data_path, network.image_size, channels, class_names=network.class_names)
            judge = Judge(dataset, mirror=args.data_path != DIGITS)
            print(f"The classifier is right on {judge.accuracy:.1%} of the images it has not seen", file=sys.stderr)
        for row in progress.bar(todo, desc=shown_name(ckpt)):
            assert judge is not None
            rows.append(measure(args, judge, row))
            write_rows(rows, table)
    shown = [row for row in rows if row.ckpt in args.ckpt and row.samples == args.samples]
    draw_figure(shown, args.out.with_suffix(".png"))
    print("\n".join(table_lines(shown)))


if __name__ == "__main__":
    run_program(main)
