"""Pictures completed from a given region: by asynchronous times, and by the methods for models of one time per sample.

    python experiments/completion.py --ckpt A.pt B.pt --data-path FOLDER --out results/completion
    make study-completion                                           # makes visuals/completion*

Of each reference the left half, all but a hole in the middle, or the first channel is given; its class is not. Methods
are compared at equal numbers of model evaluations: graded control by the ODE and by the SDE, which gives known entries
time 1 (for models that take a time per entry); replacement, which puts the known region, noised, in its place before
each Euler step (Song et al., arXiv 2011.13456, appendix I); and RePaint (arXiv 2201.09865), which also goes back and
repeats each step. Measured are the share of results that a classifier of the data puts in the reference's class, and
the Frechet distance of its features to all images', in units of the data's total variance. Rows that OUT.csv has are
not computed again.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import kinds
from data.caches import is_latents
from data.pictures import grid, save_image, to_uint8
from experiments.graded import SHOWN, References, load_references
from experiments.judge import unguided
from experiments.tables import read_rows, write_rows
from models import ComboStoc
from runtime import distributed, progress
from runtime.command_line import Parser, positive_int
from runtime.errors import DataError, UsageError, run_program
from sampling.network import ImageNoise, Network
from transport import PUBLISHED_SDE, Sampler, Transport

REPEATS = (1, 10)  # how many times each step is taken: once is replacement, more often is RePaint
Field = Callable[[Tensor, Tensor], Tensor]  # the model's velocity of (x, t)


@dataclass
class Row:
    """The measurements of one checkpoint with one method."""

    ckpt: str
    method: str
    given: str  # half, rest, channel
    references: int
    evaluations: int
    accuracy: float = 0.0
    fd: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """The values that tell it from other rows."""
        return tuple(asdict(self).values())[:5]


def known_part(given: str, channels: int, size: int) -> Tensor:
    """A mask that is 1 where the reference is given, and 0 elsewhere; broadcasts to (C, h, w)."""
    side = torch.arange(size)
    if given == "half":
        return (side < size // 2).float().expand(1, size, size)
    if given == "rest":
        width = 2 * round(size * 3 / 16)  # of the hole: 12 of 32, 4 of 8
        inside = (side >= (size - width) // 2) & (side < (size + width) // 2)
        return 1 - (inside[:, None] & inside).float()[None]
    return (torch.arange(channels) < 1).float()[:, None, None]


# ---- ways to complete ----------------------------------------------------------------------------------------------


def replacement(
    field: Field, transport: Transport, reference: Tensor, known: Tensor, noise: ImageNoise, *, steps: int, repeats: int
) -> Tensor:
    """Euler's method for a model of one time per sample, with the known region put in its place before every step.

    Each step from t to t' is taken `repeats` times, and in between x goes back from t' to t by the forward process,
    q(x_t | x_t') = N(a x_t', sigma_t^2 - a^2 sigma_t'^2) with a = alpha_t / alpha_t' (RePaint, algorithm 1).

    Args:
        field: the model's velocity at (x, t).
        reference: (N, C, h, w).
        known: a mask that is 1 where the reference is given; broadcasts to it.
        noise: the randomness of each sample.

    Returns:
        Samples (N, C, h, w), equal to the reference where it is given.
    """
    path = transport.path_sampler
    times = torch.linspace(0, 1, steps + 1, device=reference.device)
    x = noise.randn(reference.shape[1:], reference.device)
    for t, later in itertools.pairwise(times):
        alpha, sigma = path.compute_alpha_t(t)[0], path.compute_sigma_t(t)[0]
        for repeat in range(repeats):
            if repeat:
                back = alpha / path.compute_alpha_t(later)[0]
                variance = sigma**2 - (back * path.compute_sigma_t(later)[0]) ** 2
                x = back * x + variance.clamp(min=0).sqrt() * noise.randn_like(x)
            noised = alpha * reference + sigma * noise.randn_like(x)
            x = known * noised + (1 - known) * x
            x = x + (later - t) * field(x, t.expand(len(x)))
    return known * reference + (1 - known) * x


@torch.no_grad()
def complete(args: argparse.Namespace, network: Network, images: Tensor, row: Row) -> Tensor:
    """Completed images (R, C, S, S)."""
    device = next(network.model.parameters()).device
    known = known_part(row.given, network.config.in_channels, network.config.input_size).to(device)
    done = []
    for rows in torch.arange(len(images)).split(args.batch_size):
        noise = ImageNoise(args.seed, rows.tolist())
        reference = network.autoencoder.encode(images[rows].to(device), sample=False)
        y = torch.full((len(rows),), network.config.num_classes, device=device)
        if row.method.startswith("graded"):
            by_sde = vars(PUBLISHED_SDE) | {"randn": noise.randn_like}
            settings: dict[str, Any]
            mode, settings = ("SDE", by_sde) if "SDE" in row.method else ("ODE", {"sampling_method": "euler"})
            settings["num_steps"] = row.evaluations + (mode == "ODE")  # the SDE's last step is one more evaluation
            sampler = Sampler(network.transport).sample_graded(reference, known, mode=mode, **settings)
            x = sampler(noise.randn(reference.shape[1:], device), network.model, y=y)[-1]
            assert sampler.nfe == row.evaluations
        else:
            field, repeats = partial(network.transport.get_drift(), model=network.model, y=y), int(row.method[-2:])
            steps = row.evaluations // repeats
            x = replacement(field, network.transport, reference, known, noise, steps=steps, repeats=repeats)
        done.append(network.autoencoder.decode(x).cpu())
    return torch.cat(done)


def methods_of(network: Network) -> list[str]:
    """The methods that fit a model."""
    graded = ["graded, ODE", "graded, SDE"] if isinstance(network.model, ComboStoc) else []
    return graded + [f"repeats {n}" for n in REPEATS]


def parts_of(network: Network) -> list[str]:
    """The names of the regions of a model's pictures that may be given, see `known_part`."""
    return ["half", "rest"] + ["channel"] * (network.config.in_channels > 1)


def rows_to_do(args: argparse.Namespace, network: Network, ckpt: str) -> Iterator[Row]:
    """The rows of a checkpoint, before they are measured."""
    for given in parts_of(network):
        for evaluations in args.evaluations:
            for method in methods_of(network):
                yield Row(ckpt, method, given, args.references, evaluations)


# ---- tables --------------------------------------------------------------------------------------------------------


def variant_name(ckpt: str) -> str:
    """The variant of a checkpoint that experiments/ablation.py trained: the folder's name without seed and digest."""
    folder = next((p.name for p in Path(ckpt).resolve().parents if "-study-" in p.name), None)
    return "-".join(folder.partition("-study-")[2].split("-")[:-3]) if folder else Path(ckpt).parent.name


def print_table(rows: Sequence[Row]) -> None:
    """Print means over the checkpoints of a model, and the standard deviation where there are several."""
    given = list(dict.fromkeys(row.given for row in rows))
    print("| trained with | method | evaluations | " + " | ".join(f"{g} given: FD, in class" for g in given) + " |")
    print("| --- " * (3 + len(given)) + "|")
    for key in dict.fromkeys((variant_name(row.ckpt), row.method, row.evaluations) for row in rows):
        cells = []
        for g in given:
            those = [r for r in rows if (variant_name(r.ckpt), r.method, r.evaluations, r.given) == (*key, g)]
            cells.append(f"{spread([1000 * r.fd for r in those])} / {spread([100 * r.accuracy for r in those])} %")
        print(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(cells) + " |")


def spread(values: Sequence[float]) -> str:
    """The mean of values and their standard deviation, in words."""
    return f"{statistics.fmean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else "")


# ---- the program ---------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every method with every checkpoint.

    Raises:
        UsageError: evaluations that are not whole steps.
        DataError: a folder or a checkpoint that cannot be used, or too few images.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, metavar="FILE", help="checkpoints of image models")
    parser.add_argument("--data-path", default="digits", help="folder of images, a sub-folder a class, or 'digits'")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="write NAME.csv, NAME-half.png ...")
    parser.add_argument("--references", type=positive_int, default=500, help="number of images to complete")
    parser.add_argument("--evaluations", type=positive_int, nargs="+", default=[50], help="model evaluations")
    parser.add_argument("--batch-size", type=positive_int, default=250, help="pictures at a time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of references and of the noise")
    args = parser.parse_args(argv)
    for evaluations in args.evaluations:
        if evaluations % max(REPEATS):
            raise UsageError(f"--evaluations {evaluations} is not a multiple of {max(REPEATS)}, RePaint's repeats")
    if not args.out.parent.is_dir():
        raise DataError(f"--out {args.out}: folder {args.out.parent} does not exist")
    if is_latents(args.data_path):
        raise DataError(f"--data-path {args.data_path} holds cached latents; images are needed")

    process = distributed.single()
    table = args.out.with_suffix(".csv")
    rows = read_rows(table, Row)
    data: References | None = None
    pictures: dict[str, list[tuple[str, Tensor]]] = {}  # columns: caption and images of each kind of part
    shown: set[str] = set()
    for ckpt in args.ckpt:
        network = kinds.load_network(unguided("ODE", "--ckpt", ckpt), process.device, default_vae="ema")
        data = data or load_references(args, network, mirror=False)
        there = {row.key for row in rows}
        for row in progress.bar([r for r in rows_to_do(args, network, ckpt) if r.key not in there], desc=ckpt):
            start = time.time()
            completed = complete(args, network, data.images, row)
            row.accuracy = (data.judge.classes(completed) == data.labels).double().mean().item()
            row.fd, row.seconds = data.judge.distance(completed), round(time.time() - start, 1)
            rows.append(row)
            write_rows(rows, table)
        if (name := variant_name(ckpt)) in shown:
            continue
        shown.add(name)
        for given in parts_of(network):
            method = "graded, SDE" if isinstance(network.model, ComboStoc) else "repeats 10"
            few = Row(ckpt, method, given, SHOWN, max(args.evaluations))
            pictures.setdefault(given, []).append(
                (f"{name}: {method}", complete(args, network, data.images[:SHOWN], few))
            )
    assert data is not None  # --ckpt has one or more
    few_images = data.images[:SHOWN]
    for given, columns in pictures.items():
        known = known_part(given, *few_images.shape[1:3]) if given != "channel" else torch.ones(1, 1, 1)
        whole = [("reference", few_images), ("given", few_images * known + (1 - known)), *columns]
        tiles = torch.stack([x for _, x in whole], 1).flatten(0, 1)  # a row for each reference
        captions = [name for name, _ in whole] * SHOWN
        picture = grid(to_uint8(tiles), captions, columns=len(whole))
        save_image(picture, args.out.with_name(f"{args.out.name}-{given}.png"))
    print_table(rows)


if __name__ == "__main__":
    run_program(main)
