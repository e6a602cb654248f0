"""The quality of graded control, against how much is kept of a reference.

    python experiments/graded.py --ckpt results/ComboStoc-XS-2-demo/ckpt.pt --out results/graded     # after make demo
    python experiments/graded.py --ckpt A.pt B.pt --data-path FOLDER --out results/graded
    make graded                                                 # makes visuals/graded*

For references of the data, with one half of the picture or of the channels kept at m and the rest regenerated: the
root mean square distance to the reference where it is kept, the share of samples that a classifier of the data puts in
the reference's class, and the Frechet distance of its features, in units of the data's total variance. With the class
label given and without, by steps of the same number and of the same size, with the velocity decompensated or taken as
it is. Checkpoints of one --combostoc-type are seeds of one model. Rows that OUT.csv has are not computed again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

import kinds
from data.caches import is_latents
from data.pictures import grid, save_image, to_uint8
from data.sets import load_dataset
from experiments.judge import Judge
from experiments.tables import read_rows, write_rows
from runtime import distributed, precision, progress
from runtime.command_line import Parser, positive_int, with_values
from runtime.errors import DataError, run_program
from runtime.files import replacing
from sampling.arguments import sampling_parser
from sampling.network import ImageNoise, Network, guided
from transport import PUBLISHED_SDE, Sampler

KEPT = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
SHOWN = 8  # references in the picture


@dataclass(frozen=True)
class Setting:
    """One way to sample, the subject of a row of the table and of a line of the figure."""

    mode: str
    schedule: str
    decompensated: bool


ODE, ODE_OFF = Setting("ODE", "number", False), Setting("ODE", "number", True)
SIZE = Setting("ODE", "size", False)
SDE, SDE_OFF = Setting("SDE", "number", False), Setting("SDE", "number", True)


@dataclass
class Row:
    """The measurements of one checkpoint with one setting."""

    ckpt: str
    combostoc_type: str
    mode: str
    schedule: str
    decompensated: bool
    labels: bool  # whether the class was given
    kind: str  # of map: half, channels
    kept: float  # m
    references: int
    distance: float = 0.0
    accuracy: float = 0.0
    fd: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """The values that tell it from other rows."""
        return tuple(str(value) for value in list(asdict(self).values())[:9])


def kept_part(kind: str, channels: int, size: int) -> Tensor:
    """A map that is 1 in the left half, or in the first half of the channels; broadcasts to (C, h, w)."""
    if kind == "half":
        return (torch.arange(size) < size // 2).float().expand(1, size, size)
    return (torch.arange(channels) < max(1, channels // 2)).float()[:, None, None]


# ---- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class References:
    """Reference images of the data, and a judge of samples."""

    images: Tensor  # (R, C, S, S)
    labels: Tensor  # (R,)
    judge: Judge


def load_references(args: argparse.Namespace, network: Network, *, mirror: bool) -> References:
    """References of --data-path, and a judge trained on it, for which mirror images are images, too, or not.

    Raises:
        DataError: it has fewer images than --references.
    """
    channels = network.config.in_channels if network.settings["vae"] == "none" else 3
    dataset = load_dataset(args.data_path, network.image_size, channels, class_names=network.class_names)
    judge = Judge(dataset, mirror=mirror)
    print(f"The classifier is right on {judge.accuracy:.1%} of the images it has not seen", flush=True)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    if len(dataset) < args.references:
        raise DataError(f"--data-path {args.data_path} has {len(dataset)} images, fewer than --references")
    items = [dataset[i, False] for i in order[: args.references].tolist()]
    return References(torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items]), judge)


@torch.no_grad()
def sample(args: argparse.Namespace, network: Network, data: References, row: Row) -> tuple[Tensor, float]:
    """Samples (R, C, S, S), and their distance to the references where these are kept."""
    device = next(network.model.parameters()).device
    part = kept_part(row.kind, network.config.in_channels, network.config.input_size)
    method = {"ODE": "euler", "SDE": "Euler"}[row.mode]
    settings = {"mode": row.mode, "schedule": row.schedule, "decompensate": row.decompensated}
    if row.mode == "SDE":
        settings["diffusion_form"] = PUBLISHED_SDE.diffusion_form
    model = guided(network.model, 1.0, precision_name=args.precision)
    images, squares = [], 0.0
    for rows in torch.arange(len(data.images)).split(args.batch_size):
        noise = ImageNoise(args.seed, rows.tolist())
        reference = network.autoencoder.encode(data.images[rows].to(device), sample=False)
        y = data.labels[rows] if row.labels else torch.full((len(rows),), network.config.num_classes)
        if row.mode == "SDE":
            settings["randn"] = noise.randn_like
        sampler = Sampler(network.transport).sample_graded(
            reference,
            (row.kept * part).to(device),
            sampling_method=method,
            num_steps=args.num_sampling_steps,
            **settings,
        )
        x = sampler(noise.randn(reference.shape[1:], device), model, y=y.to(device))[-1]
        kept = part.to(device).expand_as(x)
        squares += (((x - reference) * kept).square().sum() / kept[0].sum()).item()
        images.append(network.autoencoder.decode(x).cpu())
    return torch.cat(images), (squares / len(data.images)) ** 0.5


def rows_to_do(args: argparse.Namespace, network: Network, ckpt: str) -> Iterator[Row]:
    """The rows of a checkpoint, before they are measured."""
    trained = network.transport.combostoc_type.name
    settings = [ODE, ODE_OFF, SIZE, SDE, SDE_OFF] if network.transport.compensates else [ODE, SIZE, SDE]
    for kind in ["half"] + ["channels"] * (network.config.in_channels > 1):
        for labels in (True, False):
            for setting in settings:
                for kept in KEPT:
                    yield Row(
                        ckpt,
                        trained,
                        **asdict(setting),
                        labels=labels,
                        kind=kind,
                        kept=kept,
                        references=args.references,
                    )


def measure(args: argparse.Namespace, network: Network, data: References, row: Row) -> Row:
    """Sample and judge the setting of a row, and fill it in."""
    start = time.time()
    images, row.distance = sample(args, network, data, row)
    row.accuracy = (data.judge.classes(images) == data.labels).double().mean().item()
    row.fd = data.judge.distance(images)
    row.seconds = round(time.time() - start, 1)
    return row


# ---- figures and tables --------------------------------------------------------------------------------------------

LINES = {  # of the figure: type that was trained with, setting -> label, style
    ("UNSYNC_ALL", ODE): ("UNSYNC_ALL", "o-C0"),
    ("UNSYNC_ALL", ODE_OFF): ("UNSYNC_ALL, decompensated", "s--C1"),
    ("UNSYNC_ALL", SIZE): ("UNSYNC_ALL, steps of one size", "^:C2"),
    ("UNSYNC_NONE", ODE): ("UNSYNC_NONE", "x-C3"),
}
MEASURES = {"distance": "distance where kept", "accuracy": "in the reference's class", "fd": "Frechet distance"}


def over_checkpoints(rows: Sequence[Row], measure: str, **same: object) -> dict[float, list[float]]:
    """The values of a measure at every m, one for each checkpoint, of the rows that agree with `same`."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if all(getattr(row, name) == value for name, value in same.items()):
            values.setdefault(row.kept, []).append(getattr(row, measure))
    return dict(sorted(values.items()))


def draw_figure(rows: Sequence[Row], path: Path) -> None:
    """Draw a row of panels for each kind of map, with and without the class; bars span the checkpoints of a type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(row.kind, row.labels) for row in rows}, key=lambda p: (p[0] != "half", not p[1]))
    figure, axes = pyplot.subplots(len(panels), 3, figsize=(11, 2.7 * len(panels)), squeeze=False)
    for (kind, labels), line in zip(panels, axes, strict=True):
        for (measure, title), axis in zip(MEASURES.items(), line, strict=True):
            for (trained, setting), (label, style) in LINES.items():
                same = {"combostoc_type": trained, "kind": kind, "labels": labels, **asdict(setting)}
                values = over_checkpoints(rows, measure, **same)
                if values:
                    means = np.array([statistics.fmean(v) for v in values.values()])
                    low, high = (np.array([f(v) for v in values.values()]) for f in (min, max))
                    axis.errorbar(
                        list(values),
                        means,
                        [means - low, high - means],
                        fmt=style,
                        label=label,
                        markersize=4,
                        capsize=2,
                    )
            given = "class given" if labels else "no class given"
            axis.set_title(f"{title}: {kind} kept, {given}", fontsize=9)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("m, how much is kept")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    pyplot.close(figure)


def print_table(rows: Sequence[Row]) -> None:
    """Print means over the checkpoints of a type, with the least and greatest where there are several."""
    print("| trained with | sampler | kept | m | class | " + " | ".join(MEASURES.values()) + " |")
    print("| --- " * (5 + len(MEASURES)) + "|")
    names = ("combostoc_type", "mode", "schedule", "decompensated", "kind", "kept", "labels")
    for key in dict.fromkeys(tuple(getattr(row, name) for name in names) for row in rows):
        same = dict(zip(names, key, strict=True))
        cells = []
        for measure in MEASURES:
            (values,) = over_checkpoints(rows, measure, **same).values()
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        trained, mode, schedule, decompensated, kind, kept, labels = key
        sampler = f"{mode}, {schedule}" + ", decompensated" * decompensated
        print(
            f"| {trained} | {sampler} | {kind} | {kept:g} | {'given' if labels else '-'} | " + " | ".join(cells) + " |"
        )


def draw_pictures(args: argparse.Namespace, network: Network, data: References, out: Path, ckpt: str) -> None:
    """Draw references and a sample of each at every m, with the class given: a file for each kind of map."""
    few = References(data.images[:SHOWN], data.labels[:SHOWN], data.judge)
    for kind in ["half"] + ["channels"] * (network.config.in_channels > 1):
        columns = [data.images[:SHOWN]]
        for kept in KEPT:
            row = Row(ckpt, "", **asdict(ODE), labels=True, kind=kind, kept=kept, references=SHOWN)
            columns.append(sample(args, network, few, row)[0])
        tiles = torch.stack(columns, dim=1).flatten(0, 1)  # a row for each reference
        captions = ["reference", *(f"m = {kept:g}" for kept in KEPT)] * SHOWN
        save_image(grid(to_uint8(tiles), captions, columns=1 + len(KEPT)), out.with_name(f"{out.name}-{kind}.png"))


# ---- the program ---------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measure graded control with checkpoints, and draw the figures.

    Raises:
        DataError: a folder does not exist, or data that cannot be used.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, metavar="FILE", help="checkpoints of ComboStoc models")
    parser.add_argument("--data-path", default="digits", help="folder of images, a sub-folder a class, or 'digits'")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="NAME", help="write NAME.csv, NAME.png, NAME-half.png and more"
    )
    parser.add_argument("--references", type=positive_int, default=500, help="number of reference images")
    parser.add_argument("--num-sampling-steps", type=positive_int, default=50, help="time points of the Euler solvers")
    parser.add_argument("--batch-size", type=positive_int, default=250, help="samples at a time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of references and of the noise")
    parser.add_argument("--vae", help="autoencoder, as sample.py takes it")
    precision.add_speed_args(parser.add_argument_group("speed"))
    args = parser.parse_args(argv)
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist")
    if is_latents(args.data_path):
        raise DataError(f"--data-path {args.data_path} holds cached latents; images are needed")

    process = distributed.single()
    precision.setup(args.precision)
    table = args.out.with_suffix(".csv")
    rows = read_rows(table, Row)
    data = None
    for ckpt in args.ckpt:
        flags = ["ODE", "--ckpt", ckpt, "--precision", args.precision] + ["--compile"] * args.compile
        flags += ["--vae", args.vae] if args.vae else []
        sampling_args = sampling_parser("", lambda sub: None, vae="ema", cfg_scale=1.0, reverse=False).parse_args(flags)
        network = kinds.load_network(sampling_args, process.device, default_vae="ema")
        args = with_values(args, {"vae": network.settings["vae"]})
        data = data or load_references(args, network, mirror=args.data_path != "digits")
        if ckpt == args.ckpt[0]:
            draw_pictures(args, network, data, args.out, ckpt)
        there = {row.key for row in rows}
        todo = [row for row in rows_to_do(args, network, ckpt) if row.key not in there]
        for row in progress.bar(todo, desc=ckpt):
            rows.append(measure(args, network, data, row))
            write_rows(rows, table)
    draw_figure(rows, args.out.with_suffix(".png"))
    print_table(rows)


if __name__ == "__main__":
    run_program(main)
