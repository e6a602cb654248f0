"""Write the embedded digits in colour, as a folder of pictures that train.py reads.

    python experiments/colour_digits.py --out results/colour-digits

Ink and paper have a random colour each, at least CONTRAST apart in every channel, so that one channel shows which digit
it is and says little of the colours: keeping one and generating the others keeps structure and changes colour.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from data.pictures import save_image
from data.sets import Digits
from runtime.command_line import Parser, positive_int
from runtime.errors import run_program

CONTRAST = 0.5


def colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random colours of ink and paper, (3,) each, in [0, 1]."""
    while True:
        ink, paper = rng.random((2, 3))
        if abs(ink - paper).min() >= CONTRAST:
            return ink, paper


def write(out: Path, copies: int, seed: int) -> int:
    """Write every digit in `copies` colourings, a sub-folder for each class; returns the number of pictures."""
    rng = np.random.default_rng(seed)
    digits = Digits(8, 1)
    for name in digits.class_names:
        (out / name).mkdir(parents=True, exist_ok=True)
    for i in range(len(digits)):
        image, label = digits[i, False]
        grey = (image[0].numpy()[:, :, None] + 1) / 2
        for copy in range(copies):
            ink, paper = colours(rng)
            pixels = np.round(255 * (paper + (ink - paper) * grey)).astype(np.uint8)
            save_image(Image.fromarray(pixels), out / digits.class_names[label] / f"{i:04d}-{copy}.png")
    return copies * len(digits)


def main(argv: Sequence[str] | None = None) -> None:
    """Write coloured digits as a folder of pictures."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--copies", type=positive_int, default=4, help="colourings of every digit")
    parser.add_argument("--seed", type=int, default=0, help="seed of the colours")
    args: argparse.Namespace = parser.parse_args(argv)
    print(f"{write(args.out, args.copies, args.seed)} pictures in {args.out}")


if __name__ == "__main__":
    run_program(main)
