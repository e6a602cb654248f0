"""Pictures of a study side by side: a row for each variant and number of steps, the same noise and classes in all.

    python experiments/strip.py --study results/study-methods.csv --out results/study-methods-strip.png \\
        --variants SiT UNSYNC_ALL --steps 500 1500                                 # after make study-methods

The runs of the study must be there; the table tells the learning rate that each variant was trained with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import kinds
from data.pictures import grid, save_image, to_uint8
from experiments.judge import unguided
from experiments.measurements import Row
from experiments.tables import read_rows
from runtime import distributed, precision
from runtime.command_line import Parser, positive_int, with_values
from runtime.errors import DataError, UsageError, run_program
from sampling.network import ImageNoise, draw, guided_by


def make_parser() -> Parser:
    """The parser of strip.py."""
    parser = Parser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="CSV", help="a table of ablation.py")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder of its experiments")
    parser.add_argument("--variants", nargs="+", required=True, metavar="NAME", help="variants, from top to bottom")
    parser.add_argument("--names", nargs="+", metavar="WORDS", help="captions of --variants; default: their names")
    parser.add_argument(
        "--steps", type=positive_int, nargs="+", required=True, help="training steps; each variant is shown at each"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), help="classes, a column for each")
    parser.add_argument("--zoom", type=positive_int, default=5, help="factor by which pictures are enlarged")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write, a .png")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a strip of samples of a study's checkpoints.

    Raises:
        UsageError: the names do not fit the variants.
        DataError: a checkpoint is not there.
    """
    args = make_parser().parse_args(argv)
    rows = read_rows(args.study, Row)
    strip = [pictures(args, checkpoint_of(args, rows, v, step)) for step in args.steps for v in args.variants]
    tiles = torch.cat(strip).repeat_interleave(args.zoom, -2).repeat_interleave(args.zoom, -1)
    called = args.names or args.variants
    if len(called) != len(args.variants):
        raise UsageError(f"{len(called)} --names for {len(args.variants)} --variants: give one for each")
    names = [f"{name}, {step:,} steps" for step in args.steps for name in called]
    width = len(args.classes)
    save_image(
        grid(to_uint8(tiles), [names[i // width] if i % width == 0 else "" for i in range(len(tiles))], width), args.out
    )
    print(f"{len(names)} rows of {width} pictures in {args.out}")


def checkpoint_of(args: argparse.Namespace, rows: Sequence[Row], variant: str, step: int) -> Path:
    """The kept checkpoint of a row of the table.

    Raises:
        DataError: the table or the folder has none.
    """
    words = variant.replace(", ", "-").replace(" ", "-")
    for row in reversed(rows):  # where a learning rate diverged, the next one's rows are below
        if (row.variant, row.seed, row.step) == (variant, args.seed, step):
            for rate in (f"-{row.lr:g}", ""):
                folder = f"*-study-{words}-{row.seed}{rate}-{row.training}"
                if found := sorted(args.results_dir.glob(f"{folder}/checkpoints/{step:07d}.*")):
                    return found[0]
    raise DataError(f"{args.study} and {args.results_dir} have no {variant} of seed {args.seed} at step {step}")


def pictures(args: argparse.Namespace, checkpoint: Path) -> torch.Tensor:
    """Samples of the classes by the Euler SDE, without guidance: (K, C, H, W) in [-1, 1]."""
    settings = unguided("SDE", "--num-sampling-steps", "60", "--ckpt", str(checkpoint))
    precision.setup(settings.precision)
    device = distributed.single().device
    network = kinds.load_network(settings, device, default_vae="ema")
    settings = with_values(settings, network.settings)
    noise = ImageNoise(0, range(len(args.classes)))
    y = torch.tensor(args.classes, device=device)
    return draw(settings, network, noise, y, guided_by(settings, network))[0].cpu()


if __name__ == "__main__":
    run_program(main)
