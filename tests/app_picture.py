"""Makes visuals/app.png, the page of app.py with the right half of a 3 becoming an 8.

.venv/bin/python -m tests.app_picture results/ComboStoc-XS-2-demo/ckpt.pt
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from tests.conftest import ROOT, chromium
from tests.test_app import Visit, serving


def main(ckpt: Path) -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as p:
        folder = Path(name)
        three = np.round(load_digits().images[3] * (255 / 16)).astype(np.uint8)
        Image.fromarray(three).save(folder / "three.png")
        with serving(ckpt, folder / "log.txt") as (port, _):
            visit = Visit(chromium(p), port)
            visit.load(folder / "three.png")
            visit.paint("#map", *((5, y, 8, y) for y in range(9)))
            visit.strength(0.5)
            visit.paint("#map", (3.9, 1, 3.9, 7))
            visit.page.get_by_label("Class").click()
            visit.page.get_by_role("option", name="8").click()
            visit.set("Guidance", 2)
            visit.generate()
            visit.settle()
            visit.page.mouse.move(0, 0)
            visit.page.screenshot(path=ROOT / "visuals" / "app.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
