"""Draw the four types of timesteps: those of a sample, as a picture, and the x_t that they make of it.

    python experiments/timestep_maps.py --data-path results/colour-digits --image-size 8 --out timesteps.png

Each type has a row. For two images it shows the timesteps (dark is 0, noise, bright is 1, data; a colour where channels
differ) and x_t on the Linear path. Asynchronous times are drawn without half-mixing and blend.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from data.pictures import grid, save_image, to_uint8
from data.sets import load_dataset
from runtime.command_line import Parser, positive_int
from runtime.errors import DataError, run_program
from transport import ComboStocType, create_transport, draw_timesteps, expand_t_like_x

TYPES = (
    *(ComboStocType.UNSYNC_NONE, ComboStocType.UNSYNC_VEC),
    *(ComboStocType.UNSYNC_PATCH, ComboStocType.UNSYNC_ALL),
)


def tiles(x1: Tensor, x0: Tensor, generator_seed: int) -> tuple[list[Tensor], list[str]]:
    """Pictures in [-1, 1] and their captions: a row for each type, two images (2, 3, H, W) side by side."""
    path = create_transport().path_sampler
    pictures, captions = [], []
    for kind in TYPES:
        torch.manual_seed(generator_seed)
        t = draw_timesteps(x1, kind, use_halfmixing=False, use_blend=False)
        _, xt, _ = path.plan(t, x0, x1)
        maps = expand_t_like_x(t, x1).expand_as(x1)
        for k in range(len(x1)):
            pictures += [x1[k], 2 * maps[k] - 1, xt[k]]
            captions += ["x1", f"t: {kind.name.removeprefix('UNSYNC_')}", "x_t"]
    return pictures, captions


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the timesteps of two images, and their x_t.

    Raises:
        DataError: there is no image of a number.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--data-path", required=True, help="folder of images, a sub-folder a class")
    parser.add_argument("--image-size", type=positive_int, default=8, help="side in pixels to which images are cropped")
    parser.add_argument(
        "--images", type=int, nargs=2, default=(2300, 6100), metavar="I", help="numbers of the two images to show"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and timesteps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    args: argparse.Namespace = parser.parse_args(argv)
    dataset = load_dataset(args.data_path, args.image_size, 3)
    for i in args.images:
        if not 0 <= i < len(dataset):
            raise DataError(f"--images {i}: {args.data_path} has {len(dataset)} images")
    x1 = torch.stack([dataset[i, False][0] for i in args.images])
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(args.seed))
    pictures, captions = tiles(x1, x0, args.seed)
    save_image(grid(to_uint8(torch.stack(pictures)), captions, columns=6), args.out)


if __name__ == "__main__":
    run_program(main)
