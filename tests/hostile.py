"""Mutated files: each is loaded right, or refused with one line that names it; no code runs, nothing hangs.

    python -m tests.hostile                  # 10,000 files, a table; minutes
    python -m tests.hostile --count 500

Half of the mutations of checkpoints are made inside an archive whose checksums fit, so that they reach the loader.
"""

import argparse
import contextlib
import io
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import extract_latents
import kinds
import sample
import train
from data import latents
from data.images import read_image
from kinds import model_config
from models import ComboStoc_models
from runtime import checkpoint
from runtime.distributed import single
from runtime.errors import run_program
from training.bookkeeping import Bookkeeping
from training.resume import find_start, restore_state
from training.step import build_optimizer

SECONDS = 20  # a case that takes longer hangs
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")


# ---- mutations -----------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes: flipped bits, extreme numbers, holes, repetitions, a cut."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(content) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64)), len(content) - at)
        kind = rng.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            content[at : at + 4] = struct.pack("<i", rng.choice((-1, 0, 1, 2**31 - 1, -(2**31), 2**16)))
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length] * rng.choice((1, 3))
        elif kind == 5:
            content[at : at + length] = bytes([rng.choice((0, 255))]) * length
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def mutated_record(data: bytes, rng: random.Random) -> bytes:
    """An archive in which one record, most often the pickle, is mutated, with checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    pickle = next(name for name in records if name.endswith("data.pkl"))
    name = pickle if rng.random() < 0.8 else rng.choice(list(records))
    records[name] = mutated(records[name], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, value in records.items():
            archive.writestr(key, value)
    return out.getvalue()


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """JSON in which one value anywhere is another one."""
    content = json.loads(data)
    parent, key = None, None
    node: Any = content
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    others = [None, -1, 0, 2**70, 1.5, "", "../../etc/passwd", "\0", [], {}, [[]], True, float("nan"), ["a"], {"a": 1}]
    assert parent is not None
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = rng.choice(others)
    return json.dumps(content).encode()


# ---- files and what reads them -------------------------------------------------------------------------------------


def good_checkpoint(path: Path) -> None:
    """A training checkpoint whose tensors take little room: all begin at the same place in memory."""
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    numbers = torch.linspace(-0.1, 0.1, max(p.numel() for p in model.parameters()))
    state = {k: numbers[: v.numel()].view(v.shape) for k, v in model.state_dict().items()}
    opt = build_optimizer(model, 1e-4)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    moments = opt.state_dict()
    for entry in moments["state"].values():
        size = entry["exp_avg"].shape
        entry["exp_avg"] = entry["exp_avg_sq"] = numbers[: size.numel()].view(size)
    args = {"model": "ComboStoc-XS/4", "image_size": 8, "num_classes": 10, "vae": "none", "path_type": "Linear"}
    args |= {"prediction": "velocity", "lr": 1e-4, "combostoc_type": "UNSYNC_ALL", "sample_eps": None}
    progress = {"window": [[0.5, 1.0]], "bad_steps": [0, 1], "unreadable": [3]}
    about = {"step": 1, "args": args, "class_names": [str(k) for k in range(10)], "progress": progress}
    checkpoint.save(path, {"model": state, "ema": state, "opt": moments, **about})


class Digit:
    """Stands in for a data set."""

    class_names = tuple(str(k) for k in range(10))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, bool]) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 8, 8), 0


def continue_training(path: Path) -> None:
    """What train.py does with a checkpoint before its first step, which may then be taken."""
    parser = train.make_parser()
    argv = ["--data-path", "digits", "--ckpt", str(path), "--results-dir", str(path.parent / "none")]
    args = parser.parse_args(argv)
    args, start = find_start(args, parser, {"data_path", "ckpt", "results_dir"})
    args = train.resolve_arguments(args, 1, kinds.of_data(args.data_path))
    config = model_config(checkpoint.weights(start.saved, start.source), start.source)
    model = config.build()
    opt = build_optimizer(model, args.lr)
    restore_state(start, model, config.build(), opt)
    Bookkeeping(single(), Digit(), max_bad_steps=1, saved=start.saved.get("progress", {}), source=start.source)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()


def sample_once(path: Path) -> None:
    flags = ["--sampling-method", "euler", "--num-sampling-steps", "2", "--out", str(path.parent / "out.png")]
    sample.main(["ODE", "--ckpt", str(path), *flags])


def good_latents(folder: Path) -> None:
    moments = np.zeros((3, 2, 2, 4, 4, 4), dtype=np.float32)
    settings = {
        "autoencoder": {"name": "none", "encoder_sha256": "", "scale": 1.0, "shift": 0.0},
        "image_size": 32,
        "latent_shape": [4, 4, 4],
        "precision": "tf32",
        "class_names": ["a", "b"],
        "source": {"images": 3, "listing_sha256": ""},
    }
    (folder / "records").mkdir(parents=True)
    (folder / "extraction.json").write_text(json.dumps(settings))
    extract_latents.write_shard(folder, 0, [moments], [0, 1, 1], [])
    extract_latents.write_manifest(folder, settings, 1, max_bad_images=0)


def read_latents(folder: Path) -> None:
    data = latents.CachedLatents(folder)
    data.check_fits(32, "none", None)
    data.verify()
    for k in range(len(data)):
        data[k, True]


def good_images(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    image, exif = Image.fromarray(pixels[..., :3]), Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "a.jpg", exif=exif)
    image.save(folder / "a.png", exif=exif)
    for name in ("a.bmp", "a.ppm", "a.gif", "a.webp", "a.tif"):
        image.save(folder / name)
    image.save(folder / "lzw.tif", compression="tiff_lzw")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).save(folder / "rgba.png")
    Image.fromarray(pixels).save(folder / "rgba.webp")
    image.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    return sorted(folder.iterdir())


# ---- the trial -----------------------------------------------------------------------------------------------------


def same(path: Path, good: Path) -> bool:
    """Whether a file that was loaded holds what it should."""
    a, b = checkpoint.load(path), checkpoint.load(good)
    tensors = [{f"{part}.{k}": v for part in ("model", "ema") for k, v in c.get(part, {}).items()} for c in (a, b)]
    if tensors[0].keys() != tensors[1].keys() or any(not torch.equal(v, tensors[1][k]) for k, v in tensors[0].items()):
        return False
    return all(a.get(name) == b.get(name) for name in ("step", "args", "class_names", "progress"))


def outcome(read: Callable[[], Any], names: tuple[str, ...], is_right: Callable[[], bool] | None = None) -> str:
    """What came of a file: "loaded", "refused", or what is wrong.

    Args:
        read: reads the file.
        names: one of them must be in the line of a refusal.
        is_right: whether what was loaded is what it should be, where that can be told.
    """
    errors = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            run_program(read)
        return "loaded" if is_right is None or is_right() else "loaded, but other than it was"
    except SystemExit as end:
        text = errors.getvalue()
        if end.code not in (1, 2) or text.count("\n") != 1 or not any(name in text for name in names):
            return f"exit {end.code}: {text!r}"
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def trials(root: Path, rng: random.Random) -> dict[str, Callable[[], str]]:
    """For each kind of file a function that mutates one and reads it."""
    good_checkpoint(root / "good.pt")
    content = checkpoint.load(root / "good.pt")
    content["ema"] = {k: v.clone() for k, v in content["ema"].items()}
    checkpoint.export(root / "good.safetensors", content)
    good_latents(root / "latents")
    (root / "images").mkdir()
    pictures = {path: path.read_bytes() for path in good_images(root / "images")}
    pt, st = (root / "good.pt").read_bytes(), (root / "good.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", st[:8])[0]
    manifest = latents.read_json(root / "latents" / "manifest.json")
    folder = {p.name: p.read_bytes() for p in (root / "latents").iterdir() if p.is_file()}

    def try_checkpoint() -> str:
        path = root / "a.pt"
        is_raw = rng.random() < 0.5
        path.write_bytes((mutated if is_raw else mutated_record)(pt, rng))
        read = rng.choice((continue_training, sample_once))
        return outcome(lambda: read(path), ("a.pt",), (lambda: same(path, root / "good.pt")) if is_raw else None)

    def try_safetensors() -> str:
        path = root / "a.safetensors"
        is_header = rng.random() < 0.7
        path.write_bytes(mutated(st[:header], rng) + st[header:] if is_header else mutated(st, rng))
        return outcome(lambda: sample_once(path), ("a.safetensors",), lambda: same(path, root / "good.safetensors"))

    def try_image() -> str:
        path = rng.choice(list(pictures))
        changed = path.with_name("m" + path.name)
        changed.write_bytes(mutated(pictures[path], rng))

        def read() -> None:
            image = read_image(str(changed), "RGB")
            assert image.mode == "RGB"

        try:
            return outcome(read, (changed.name,))
        finally:
            changed.unlink()

    def try_manifest() -> str:
        name = rng.choice(["manifest.json"] * 3 + ["00000.npy"])
        change = mutated_json if name.endswith("json") and rng.random() < 0.7 else mutated
        (root / "latents" / name).write_bytes(change(folder[name], rng))
        try:
            is_same = lambda: latents.read_json(root / "latents" / "manifest.json") == manifest  # noqa: E731
            return outcome(lambda: read_latents(root / "latents"), ("manifest.json", "latents"), is_same)
        finally:
            (root / "latents" / name).write_bytes(folder[name])

    return {"checkpoint": try_checkpoint, "safetensors": try_safetensors, "image": try_image, "manifest": try_manifest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    executed: list[str] = []
    armed = False

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if armed and event.startswith(FORBIDDEN):
            executed.append(f"{event} {details}")

    def hang(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, hang)
    sys.argv = ["program.py"]
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'mutated file':14}{'tried':>8}{'loaded':>8}{'refused':>8}{'wrong':>8}{'s':>8}")
        for kind, trial in trials(Path(folder), rng).items():
            trial()  # what is imported when it is first needed
            armed, start_time, counts = True, time.monotonic(), Counter[str]()
            for _ in range(args.count // 4):
                result = trial()
                counts[result if result in ("loaded", "refused") else "wrong"] += 1
                wrong += [f"{kind}: {result}"] * (result not in ("loaded", "refused"))
            armed = False
            columns = "".join(f"{counts[name]:8}" for name in ("loaded", "refused", "wrong"))
            print(f"{kind:14}{args.count // 4:8}{columns}{time.monotonic() - start_time:8.0f}", flush=True)
    print(f"processes or connections started: {len(executed)}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    for line in [*Counter(wrong).items(), *executed][:40]:
        print(line)
    sys.exit(bool(wrong or executed))


if __name__ == "__main__":
    main()
