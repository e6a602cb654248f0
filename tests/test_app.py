"""app.py: what is painted and chosen, without a page; its command line; and the page in a headless Chromium.

The page needs Gradio and a browser; without either its tests are skipped.
"""

import importlib.util
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw
from sklearn.datasets import load_digits

import app
from kinds import load_network
from models import ComboStoc_models
from page.studio import TILE, Choices, Studio, brush_colour, enlarged, paint_over
from runtime.command_line import Parser
from runtime.errors import DataError, UsageError, run_program
from tests.conftest import ROOT
from train_utils import parse_transport_args

SIDE = 384


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A checkpoint whose output depends on everything, unlike a fresh model's; and pictures, good and bad."""
    folder = tmp_path_factory.mktemp("app")
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=1, num_classes=10)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    names = [f"digit {k}" for k in range(10)]
    args = {"combostoc_type": "UNSYNC_ALL", "vae": "none"}
    torch.save({"ema": model.state_dict(), "args": args, "class_names": names}, folder / "ckpt.pt")
    digit = np.round(load_digits().images[3] * (255 / 16)).astype(np.uint8)
    Image.fromarray(digit).save(folder / "digit.png")
    (folder / "text.png").write_text("this is no picture")
    (folder / "cut.png").write_bytes((folder / "digit.png").read_bytes()[:60])
    (folder / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(11 * 2**20))
    return folder


# ---- without a page ------------------------------------------------------------------------------------------------


def layer(*strokes: tuple[tuple[int, int, int, int], float], side: int = SIDE) -> Image.Image:
    """What the editor hands over: boxes painted with a strength each."""
    image = Image.new("RGBA", (side, side))
    for box, strength in strokes:
        red, green, blue, alpha = ImageColor.getrgb(in_hex(brush_colour(strength)))
        ImageDraw.Draw(image).rectangle(box, fill=(red, green, blue, alpha))
    return image


def in_hex(css: str) -> str:
    """rgba(r, g, b, alpha) as Pillow reads it."""
    red, green, blue, alpha = css.removeprefix("rgba(").removesuffix(")").split(",")
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}{round(255 * float(alpha)):02x}"


def test_a_colour_is_a_strength():
    for percent in range(101):
        everywhere = layer(((0, 0, SIDE, SIDE), percent / 100))
        assert (paint_over(torch.full((8, 8), 0.33), [everywhere]) == np.float32(percent / 100)).all()


def test_paint_is_averaged_over_the_area_of_a_pixel():
    # the left half of the first pixel at 1, its neighbour whole at 0.4, the rest as it was
    painted = layer(((0, 0, 23, 47), 1.0), ((48, 0, 95, 47), 0.4))
    m = paint_over(torch.full((8, 8), 0.2), [painted])
    expected = torch.full((8, 8), 0.2)
    expected[0, 0], expected[0, 1] = 0.6, 0.4
    assert torch.allclose(m, expected, rtol=0, atol=1e-7)
    assert (m[1:] == 0.2).all()


@pytest.mark.parametrize("side", [30, 256, 300])
def test_a_canvas_of_another_size_and_no_paint(side):
    assert (paint_over(torch.full((8, 8), 0.2), [layer(side=side)]) == 0.2).all()
    assert (paint_over(torch.zeros(8, 8), [layer(((0, 0, side, side), 1.0), side=side)]) == 1).all()
    assert (paint_over(torch.full((8, 8), 0.2), []) == 0.2).all()


def test_strokes_without_opacity_do_not_count():
    faint = np.array(layer(((0, 0, SIDE, SIDE), 1.0)))
    faint[..., 3] = 20  # as at the rim of an eraser
    assert (paint_over(torch.zeros(8, 8), [Image.fromarray(faint)]) == 0).all()


def test_pixels_stay_squares():
    images = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert enlarged(images, 3)[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert torch.equal(enlarged(images, 1), images)


def studio_of(ckpt: Path) -> Studio:
    args = SimpleNamespace(ckpt=str(ckpt), model=None, vae="none", image_size=None, num_classes=None)
    parser = Parser()
    parse_transport_args(parser, from_checkpoint=True)
    settings = vars(parser.parse_args([])) | {"compile": False, "precision": "fp32", "guidance_interval": (0.0, 1.0)}
    vars(args).update(settings)
    return Studio(load_network(args, torch.device("cpu"), default_vae="mse"), torch.device("cpu"), "fp32")


def choices(reference: Path, layers: list[Image.Image], **changes) -> Choices:
    settings = {"elsewhere": 0.0, "label": None, "guidance": 4.0, "sampler": "ODE euler", "points": 3}
    settings |= {"schedule": "number", "variations": 2, "seed": 0}
    return Choices(str(reference), layers, **(settings | changes))


def test_the_choices_reach_sample(files):
    studio = studio_of(files / "ckpt.pt")
    chosen = choices(files / "digit.png", [], label=7, sampler="SDE Heun", schedule="size", factors=[1.0, 0.5])
    args = studio.parser().parse_args(chosen.as_arguments())
    assert (args.mode, args.sampling_method, args.class_labels, args.cfg_scale) == ("SDE", "Heun", ["7"], 4)
    assert (args.num_sampling_steps, args.variations, args.preserve_schedule) == (3, 2, "size")
    assert args.preserve_channels == [1, 0.5] and args.reference == [str(files / "digit.png")]
    assert studio.parser().parse_args(choices(files / "digit.png", []).as_arguments()).cfg_scale == 1


def test_evaluations_are_told_and_the_sheet_is_of_the_samples(files):
    told = []
    painted = layer(((0, 0, SIDE, SIDE // 2 - 1), 1.0))
    chosen = choices(files / "digit.png", [painted], label=7)
    sheet, said = studio_of(files / "ckpt.pt").generate(chosen, lambda n, total: told.append((n, total)))
    assert told == [(1, 2), (2, 2)] and said == ["ODE euler: 2 model evaluations"]
    reference, m, *samples = tiles(sheet)
    assert (m[:4] == 255).all() and (m[4:] == 0).all()
    assert len(samples) == 2 and all((s[:4] == reference[:4]).all() for s in samples)
    assert not (samples[0][4:] == samples[1][4:]).all()


@pytest.mark.parametrize(("prediction", "total"), [("velocity", 4), ("data", 3)])
def test_the_total_told_is_of_what_the_checkpoint_predicts(files, tmp_path, prediction, total):
    content = torch.load(files / "ckpt.pt")
    torch.save(content | {"args": content["args"] | {"prediction": prediction}}, tmp_path / "ckpt.pt")
    told = []
    chosen = choices(files / "digit.png", [], sampler="ODE heun2")
    studio_of(tmp_path / "ckpt.pt").generate(chosen, lambda n, total: told.append((n, total)))
    assert told == [(n, total) for n in range(1, total + 1)]


def test_samples_that_are_not_finite_are_not_shown(files, tmp_path):
    content = torch.load(files / "ckpt.pt", weights_only=True)
    content["ema"]["final_layer.linear.bias"] += torch.nan
    torch.save(content, tmp_path / "nan.pt")
    for sampler, says in (("ODE dopri5", "cannot take its step"), ("SDE Euler", "not finite")):
        with pytest.raises(FloatingPointError, match=says):
            studio_of(tmp_path / "nan.pt").generate(choices(files / "digit.png", [], sampler=sampler), lambda *_: None)


def test_a_model_with_one_time_says_so(files, random_checkpoint):
    painted = layer(((0, 0, SIDE, SIDE // 2 - 1), 1.0))
    with pytest.raises(UsageError, match="SiT-XS/4 has one time for all of a picture"):
        studio_of(random_checkpoint).generate(choices(files / "digit.png", [painted]), print)


def test_a_strip_is_too_long_to_be_cropped(files):
    studio = studio_of(files / "ckpt.pt")
    studio.network = replace(studio.network, image_size=512)
    Image.new("L", (60_000, 2)).save(files / "strip.png")
    with pytest.raises(DataError, match=r"strip.png cannot be read: 60000 x 2 pixels are too long"):
        studio.canvas(str(files / "strip.png"))


def tiles(sheet: Image.Image) -> list[np.ndarray]:
    """Reference, map and samples of a sheet, 8 x 8 grey levels each."""
    side = TILE // 8 * 8
    found = []
    for x in range(4, sheet.width - side, side + 4):
        tile = np.asarray(sheet.convert("L").crop((x, 4, x + side, 4 + side))).astype(int)
        found.append(tile[7 :: side // 8, 7 :: side // 8])
    return found


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("--model ComboStoc-XL/2", 2, "ComboStoc-XL/2 has no published weights: give --ckpt FILE"),
        ("--ckpt absent.pt", 1, "absent.pt"),
        ("--ckpt {ckpt} --port 0", 2, "argument --port: 0 is not a port"),
        (
            "--ckpt {ckpt} --port {taken}",
            1,
            "--host 127.0.0.1 --port {taken}: cannot listen there: Address already in use",
        ),
        ("--ckpt {ckpt} --host nowhere.invalid", 1, "--host nowhere.invalid --port 7860: cannot listen there: "),
        ("--ckpt {ckpt} --vae absent", 1, "--vae absent is neither"),
        ("--ckpt {ckpt} --image-size 16", 2, "--image-size 16 contradicts"),
        ("--ckpt {ckpt} --seed 1", 2, "unrecognized arguments: --seed 1"),
    ],
)
def test_mistakes_are_one_line(args, code, says, files, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = {"ckpt": files / "ckpt.pt", "taken": server.getsockname()[1]}
        assert run(args.format(**words), ModuleType("gradio"), monkeypatch) == code  # empty: not used before the page
    out, err = capsys.readouterr()
    assert says.format(**words) in err and err.startswith("app.py: error: ")
    assert err.count("\n") == 1 and not out


def test_without_gradio(files, monkeypatch, capsys):
    assert run(f"--ckpt {files / 'ckpt.pt'}", None, monkeypatch) == 2
    assert capsys.readouterr().err == "app.py: error: app.py needs Gradio: pip install -r requirements-app.txt\n"


def run(args: str, gradio: ModuleType | None, monkeypatch) -> int:
    """The exit code of the program with so many words, where `import gradio` finds this."""
    monkeypatch.setattr(sys, "argv", ["app.py", *args.split()])
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # and back, after the program has set it
    with pytest.raises(SystemExit) as ended:
        run_program(app.main)
    return ended.value.code


def test_help(monkeypatch, capsys):
    assert run("--help", None, monkeypatch) == 0
    text = capsys.readouterr().out
    assert "127.0.0.1" in text and "7860" in text and "--ckpt" in text


# ---- the page ------------------------------------------------------------------------------------------------------


@contextmanager
def serving(ckpt: Path, log: Path) -> Iterator[tuple[int, int]]:
    """The program on a free port: (port, process id)."""
    if not importlib.util.find_spec("gradio"):
        pytest.skip("there is no Gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--ckpt", str(ckpt), "--vae", "none", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(files):
    with serving(files / "ckpt.pt", files / "log.txt") as address:
        yield address


class Visit:
    """A page, and what a user does with it."""

    ready = "#map canvas"  # there as soon as one can use it

    def __init__(self, browser, port: int, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(30_000)
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"http://127.0.0.1:{port}")
        self.page.wait_for_selector(self.ready, timeout=60_000)

    def load(self, file: Path) -> None:
        with self.page.expect_response("**/run/predict"):
            self.choose(file)
        self.settle()

    def choose(self, file: Path) -> None:
        """Give a file to the page, in the place of the one that is there."""
        entry = self.page.locator("#file input[type=file]")
        if not entry.count():
            self.page.locator("#file button[aria-label=Clear]").first.click()
        entry.set_input_files(file)

    def settle(self) -> None:
        """The editors draw what has arrived, or upload what was painted."""
        self.page.wait_for_timeout(1000)

    def set(self, name: str, value: float) -> None:
        self.page.get_by_label(f"number input for {name}").fill(str(value))

    def strength(self, value: float) -> None:
        from playwright.sync_api import expect

        with self.page.expect_response("**/run/predict"):
            self.set("Strength of the brush", value)
        expect(self.page.locator("#map").get_by_label("Color", exact=True)).to_have_css(
            "color", brush_colour(value), timeout=30_000
        )
        self.settle()

    def paint(self, editor: str, *strokes: tuple[float, float, float, float]) -> None:
        """Strokes x0, y0, x1, y1 in pixels of the model."""
        zoom = float(
            self.page.locator(f"{editor} .toolbar-wrap-wrap, {editor}").first.inner_text().split("%")[0].split()[-1]
        )
        box = self.page.locator(f"{editor} canvas").first.bounding_box()
        pixel = SIDE * zoom / 100 / 8
        left, top = (box[a] + (box[b] - SIDE * zoom / 100) / 2 for a, b in (("x", "width"), ("y", "height")))
        for x0, y0, x1, y1 in strokes:
            self.page.mouse.move(left + x0 * pixel, top + y0 * pixel)
            self.page.mouse.down()
            self.page.mouse.move(left + x1 * pixel, top + y1 * pixel, steps=3)
            self.page.mouse.up()
        self.settle()

    def generate(self) -> Image.Image:
        """The sheet that appears."""
        before = self.shown()
        self.page.locator("#generate").click()
        deadline = time.monotonic() + 30
        while self.shown() == before:
            assert time.monotonic() < deadline, self.page.locator("#said").inner_text()
            self.page.wait_for_timeout(100)
        self.page.wait_for_function(
            "() => { const sheet = document.querySelector('#sheet img');"
            " return sheet && sheet.complete && sheet.getBoundingClientRect().height > 0 }"
        )
        return Image.open(io.BytesIO(urllib.request.urlopen(self.shown()).read()))

    def shown(self) -> str | None:
        """Where the sheet in the page is."""
        image = self.page.locator("#sheet img")
        return image.first.get_attribute("src") if image.count() else None


@pytest.fixture
def visit(server, browser) -> Iterator[Visit]:
    visit = Visit(browser, server[0])
    yield visit
    visit.page.close()
    strangers = {url for url in visit.requests if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))}
    assert visit.requests and not strangers


def test_painted_strokes_are_kept_and_a_drawing_is_a_reference(visit, files):
    digit = np.asarray(Image.open(files / "digit.png")).astype(int)
    visit.load(files / "digit.png")
    visit.paint("#map", (0.5, 2.6, 4.5, 2.6), (4.5, 3.4, 0.5, 3.4))
    visit.strength(0.4)
    visit.paint("#map", (0.5, 6.6, 4.5, 6.6), (4.5, 7.4, 0.5, 7.4))
    visit.set("Kept where nothing is painted", 0.2)
    visit.page.get_by_label("Class").click()
    visit.page.get_by_role("option", name="digit 3").click()
    sheet = visit.generate()
    reference, m, *samples = tiles(sheet)
    assert sheet.format == "PNG" and (reference == digit).all()
    kept, half, unpainted = np.s_[2:4, 1:4], np.s_[6:8, 1:4], np.s_[:, 6:]
    assert (m[kept] == 255).all() and (m[half] == 102).all() and (m[unpainted] == 51).all()
    assert len(samples) == 4 and all((s[kept] == digit[kept]).all() for s in samples)
    assert not (samples[0][unpainted] == samples[1][unpainted]).all()

    # the editor's bin takes away what is painted and leaves the reference
    visit.page.locator("#map").get_by_label("Clear canvas").click()
    visit.settle()
    reference, m, *_ = tiles(visit.generate())
    assert (reference == digit).all() and (m == 51).all()

    # a drawing is a reference, too
    visit.page.get_by_role("tab", name="Draw one").click()
    visit.page.wait_for_selector("#drawing canvas")
    visit.settle()
    visit.paint("#drawing", (2, 0.5, 2, 7.5))
    with visit.page.expect_response("**/run/predict"):
        visit.page.locator("#use").click()
    visit.settle()
    reference, *_ = tiles(visit.generate())
    assert (reference[1:7, 1:3] > 200).all() and (reference[:, 4:] == 0).all()


@pytest.mark.drill
def test_on_a_phone_the_samples_are_large_enough_and_beside_their_label(server, browser, files):
    visit = Visit(browser, server[0], width=390)
    visit.load(files / "digit.png")
    assert len(tiles(visit.generate())) == 6
    visit.settle()
    page, frame = visit.page, visit.page.locator("#sheet .image-frame").first
    sheet, image, label = (page.locator(f"#sheet {part}").first.bounding_box() for part in ("", "img", "label"))
    assert image["height"] > 100 and image["x"] >= sheet["x"]
    assert image["y"] >= label["y"] + label["height"] and image["y"] + image["height"] <= sheet["y"] + sheet["height"]
    button = page.get_by_label("Download").first.bounding_box()
    assert image["y"] >= button["y"] + button["height"]
    frame.evaluate("frame => frame.scrollLeft = 10_000")  # to the last of them
    image = page.locator("#sheet img").first.bounding_box()
    assert image["x"] + image["width"] <= sheet["x"] + sheet["width"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.drill
def test_pictures_that_cannot_be_read(visit, files):
    page = visit.page
    page.locator("#generate").click()
    page.get_by_text("Load or draw a picture first", exact=True).wait_for()
    for name, says in (("text", "it is text that begins with 'this is no picture'"), ("cut", "cannot be read")):
        visit.load(files / f"{name}.png")
        shown = page.locator("#trouble").inner_text()
        assert f"image {name}.png cannot be read" in shown and says in shown and str(files) not in shown
    visit.choose(files / "large.png")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    visit.load(files / "digit.png")
    assert page.locator("#trouble").inner_text() == ""
    assert len(tiles(visit.generate())) == 6
    assert "Traceback" not in (files / "log.txt").read_text()


def test_a_browser_that_goes_away_is_no_error_of_the_program():
    """Of an upload that is too large it depends on the moment whether the server is still reading."""
    from starlette.requests import ClientDisconnect

    def logged(error: Exception) -> bool:
        exc_info = (type(error), error, None)
        return app.is_of_the_program(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "", (), exc_info))

    assert not logged(ClientDisconnect()) and logged(ValueError())
    assert app.is_of_the_program(logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "no exception", (), None))


def test_it_listens_on_the_loopback_only(server):
    listening = [c.laddr for c in psutil.Process(server[1]).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server[0])]


@pytest.mark.drill
def test_a_model_with_one_time_and_three_channels_has_a_page(browser, files, random_checkpoint, tmp_path):
    from playwright.sync_api import TimeoutError as NotShown

    with serving(random_checkpoint, tmp_path / "log.txt") as (port, _):
        visit = Visit(browser, port)
        visit.page.get_by_text("Channels", exact=True).click()
        visit.settle()
        visit.load(files / "digit.png")
        refusal = visit.page.get_by_text("SiT-XS/4 has one time for all of a picture")
        for attempt in range(6):  # a number that is typed before the page listens is lost
            visit.set("Channel 2, times the map", 0.5 - attempt / 20)
            visit.set("Kept where nothing is painted", 0.5 - attempt / 20)
            visit.settle()
            visit.page.locator("#generate").click()
            with suppress(NotShown):
                refusal.wait_for(timeout=5000)
                break
        else:
            pytest.fail("a SiT model has drawn with a map that differs between channels")
