"""The commands of README and docs/, run as they are written, in a copy of the working tree.

    make docs-check                  # after make demo; minutes on two CPU cores
    python -m tests.docs_check -v    # also what the commands print

Names that stand for a user's own files (FILE, FOLDER, a.png, ...) are replaced, see STAND_INS, and what takes long is
shortened by arguments that are added, see RUNS. Both are printed. What cannot run on any machine is in CANNOT_RUN, with
the reason. test_docs.py holds that every command of the pages is in one of them.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shapes.meshes import write_glb
from shapes.sets import furniture

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("results/ComboStoc-XS-2-demo")
LIMIT = 600  # seconds a command
COPIED = {".py", ".sh", ".toml", ".png", ".txt", ".md"}

# What stands for files of the user: these are made in the copy, or the demo has left them.
STAND_INS = {
    "FILE": f"{DEMO}/ckpt.pt",
    "FOLDER": "pictures",
    "/path/to/pictures": "pictures",
    "a.png": "pictures/0.png",
    "b.png": "pictures/1.png",
    "mask.png": "mask.png",
    "/path/to/meshes": "meshes",
    "samples/NAME.npz": "samples/*.npz",
    "0.9,0.9,0.2,0.2": "0.9",  # the demo's pictures have one channel
    "207": "7",  # and ten classes
    "ComboStoc-S/2": "ComboStoc-XS/2",  # as fast as a check should be
    "Parts-S": "Parts-XS",
}

# How the commands begin that run here, and what is added to them.
EFFICIENTNET = "--features efficientnet-lite0"  # the weights of FID's network would be fetched
RUNS = {
    r"python sample\.py (ODE|SDE) --ckpt ": "",
    r"python train\.py --data-path (digits|shapes|my-shapes\.npz) ": "--max-steps 20 --warmup-steps 0 --lr-decay 0",
    r"python import_shapes\.py ": "",
    r"torchrun --standalone --nproc_per_node=2 sample_ddp\.py ": "",
    r"python evaluate\.py \S+ digits --features efficientnet-lite0": "",
    r"python evaluate\.py /path/to/pictures ": EFFICIENTNET,
    r"python evaluate\.py samples/NAME\.npz mine\.npz": EFFICIENTNET,
    r"python export\.py ": "",
    r"python benchmarks/throughput\.py ": "--rounds 1",
}

# How the others begin, and why they do not run here.
CANNOT_RUN = {
    r"make (demo|test)$": "the one comes before this check, the other is the suite",
    r"make (study|shapes)": "minutes to hours",
    r"\. \.venv/bin/activate": "this check runs with the interpreter that it was started with",
    r"pip install ": "changes the environment",
    r"python app\.py ": "serves until stopped",
    r"python sample\.py ODE --image-size 256 ": "needs the Hub",
    r"torchrun .*--nproc_per_node=8 ": "needs eight GPUs and ImageNet",
    r"#!/bin/bash": "needs SLURM",
    r"python evaluate\.py samples/NAME\.npz VIRTUAL_imagenet": "needs ADM's reference batch",
    r"bash benchmarks/run_gpu\.sh": "needs a GPU",
    r"python experiments/fashion_mnist\.py ": "needs Debian's dataset-fashion-mnist, or fetches it",
    r"python experiments/ablation\.py ": "hours, or days of a GPU",
    r"python experiments/partnet\.py ": "needs PartNet's cuboids",
}


# ---- reading the pages ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `language` is "" where none is said."""

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a shell block without its comment, with the block's variables filled in."""

    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for found in fence.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])


def commands(block: Block) -> Iterator[Command]:
    """Those of a shell block; a script (#!) is one command. Assignments and `export` hold for the lines below them."""
    if block.text.startswith("#!"):
        yield Command(block.page, block.line, block.text)
        return
    variables: dict[str, str] = {}
    for number, line in logical_lines(block.text):
        line = fill_in(without_comment(line), variables)
        if assigned := re.fullmatch(r"(\w+)=(\S+|\"[^\"]*\"|'[^']*')", line):
            variables[assigned[1]] = assigned[2].strip("\"'")
        elif line and not line.startswith("export "):
            yield Command(block.page, block.line + number, line)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with those that continue them, and their number from 0."""
    first, parts = 0, []
    for number, line in enumerate(text.splitlines()):
        first = first if parts else number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            yield first, " ".join(parts)
            parts = []


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#(?!!).*", "", line).strip()


def fill_in(line: str, variables: dict[str, str]) -> str:
    """Variables of the block; others stay as they are."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), line)


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a line or a script, cut at `&&`, `|`, `;` and the like."""
    for _, line in logical_lines(text):
        reader = shlex.shlex(without_comment(line), posix=True, punctuation_chars=True)
        reader.whitespace_split, reader.commenters = True, ""
        words: list[str] = []
        for word in reader:
            if set(word) <= set("();<>|&"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def entries(command: Command) -> list[str]:
    """What RUNS and CANNOT_RUN have for a command; there should be one."""
    return [start for start in (*RUNS, *CANNOT_RUN) if re.match(start, command.text)]


def all_commands() -> list[Command]:
    """Each once, in the order of the pages."""
    found = [c for page in pages() for block in blocks(page) if block.language == "bash" for c in commands(block)]
    return list({c.text: c for c in reversed(found)}.values())[::-1]


# ---- running them --------------------------------------------------------------------------------------------------


def stand_in(text: str) -> str:
    names = "|".join(re.escape(name) for name in sorted(STAND_INS, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])({names})(?![\w./-])", lambda found: STAND_INS[found[1]], text)


def as_run(command: Command, added: str) -> str:
    """The command with stand-ins and what is added."""
    return f"{stand_in(command.text)} {added}".strip()


def copy_tree(to: Path) -> None:
    """The code as it stands in the working tree, new modules included, and what the demo has left."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    tracked = set(subprocess.run(listed[:4], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"))
    for name in map(Path, filter(None, names)):
        wanted = name.suffix in COPIED if str(name) in tracked else name.suffix == ".py"
        if wanted and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / DEMO, to / DEMO)


def make_files(folder: Path) -> None:
    """Eight pictures of 16 x 16 in grey, a mask whose left half keeps, and six meshes."""
    (folder / "pictures").mkdir()
    for k in range(8):
        picture = Image.radial_gradient("L").rotate(45 * k).crop((16 * k, 0, 16 * k + 128, 128))
        picture.resize((16, 16)).save(folder / "pictures" / f"{k}.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(folder / "mask.png")
    (folder / "meshes").mkdir()
    pieces = furniture(count=6)
    for k in range(6):
        write_glb([pieces[k]], folder / "meshes" / f"{k}.glb")


def python_blocks() -> str:
    """The blocks of Python of all pages as one program, library.md's first, with what they take for granted; without
    those of a SOURCE, which tests/data/test_recipes.py runs."""
    found = [block.text for page in pages() for block in blocks(page) if block.language == "python"]
    texts = [text for text in found if "SOURCE" not in text]
    texts.sort(key=lambda text: "import" not in text)  # stable: the others go on from those that import
    given = "import torch\nx1, z, y = torch.randn(1, 4, 32, 32), torch.randn(1, 4, 32, 32), torch.tensor([207])\n"
    return f"{given}preserve = torch.rand(1, 1, 32, 32)\n" + stand_in("\n".join(texts))


def run(text: str | list[str], folder: Path, verbose: bool) -> bool:
    """Run a shell command, or a program with arguments, and say how it went."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = ["bash", "-c", text] if isinstance(text, str) else text
    start = time.monotonic()
    options: dict[str, Any] = {"cwd": folder, "env": environment, "text": True, "stdin": subprocess.DEVNULL}
    try:
        ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT, **options)
        said, code = ran.stdout, ran.returncode
    except subprocess.TimeoutExpired:
        said, code = f"still running after {LIMIT} s", 124
    print(f"    {time.monotonic() - start:.1f} s  {'ok' if code == 0 else f'failed with {code}'}", flush=True)
    if code or verbose:
        print("".join(f"    | {line}\n" for line in said.splitlines()[-20:]), end="", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the commands print")
    args = parser.parse_args()
    if not (ROOT / DEMO / "ckpt.pt").is_file() or not list((ROOT / DEMO).glob("samples-500/*.npz")):
        sys.exit(f"docs_check: {DEMO} has no ckpt.pt and samples-500; run `make demo` first")
    start, failed, skipped = time.monotonic(), 0, []
    with tempfile.TemporaryDirectory(prefix="docs-check-") as name:
        folder = Path(name)
        copy_tree(folder)
        make_files(folder)
        for command in all_commands():
            (entry,) = entries(command) or [""]
            if entry not in RUNS:
                skipped.append((command, CANNOT_RUN.get(entry, "it is in no table of tests/docs_check.py")))
                failed += not entry
                continue
            text = as_run(command, RUNS[entry])
            print(f"{command.place}: {text}", flush=True)
            if RUNS[entry]:
                print(f"    (added here: {RUNS[entry]})")
            failed += not run(text, folder, args.verbose)
        print("the blocks of Python, with x1, y, z and preserve", flush=True)
        failed += not run([sys.executable, "-c", python_blocks()], folder, args.verbose)
    print("\nNot run:")
    for command, reason in skipped:
        print(f"{command.place}: {command.text.splitlines()[0]}\n    {reason}")
    print(f"\n{failed} failed, {len(skipped)} not run, {time.monotonic() - start:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
