"""The pages of app.py over HTTP, in this process and without a browser: what is typed, and what handlers raise."""

import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest

if not importlib.util.find_spec("gradio"):  # not imported here: three seconds in every worker of pytest-xdist
    pytest.skip("there is no Gradio", allow_module_level=True)

from starlette.testclient import TestClient

import app
from page import shapes as shape_page
from page.hosts import LOOPBACK
from page.server import Latest, application
from page.shape_studio import ShapeStudio
from shapes.sets import furniture
from tests.page_client import API, Client, picture
from tests.test_app import files, studio_of  # noqa: F401
from tests.test_app_shapes import write_checkpoint

FAST = {"Sampler": "ODE euler", "Time points": 3, "Variations": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of uploads and pictures."""
    path = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(path))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        yield path


def serve(page, folder: Path):
    answers, _ = application(page, "", folder, LOOPBACK)
    return TestClient(answers, base_url="http://localhost:7860")


@pytest.fixture(scope="module")
def studio(files):  # noqa: F811
    return studio_of(files / "ckpt.pt")


@pytest.fixture(scope="module")
def images(studio, folder):
    with serve(app.build_page(studio), folder) as http:
        client = Client(http, "images")
        assert client.choose("Picture", "a.png", picture())[0] == 200
        yield client


@pytest.fixture(scope="module")
def shapes(folder, tmp_path_factory):
    ckpt = tmp_path_factory.mktemp("shapes") / "ckpt.pt"
    write_checkpoint(ckpt, furniture(count=30), "UNSYNC_ATT_PART")
    plain = studio_of(ckpt)
    studio = ShapeStudio(plain.network, plain.device, plain.precision, folder)
    with serve(shape_page.build_page(studio), folder) as http:
        client = Client(http, "shapes")
        (load,) = [e for e in client.config["dependencies"] if any(name == "load" for _, name in e["targets"])]
        assert http.post(f"{API}/run/predict", **client.body(load, {})).status_code == 200
        yield client


def test_a_click_generates(images, shapes):
    assert images.generate(**FAST) == "ODE euler: 2 model evaluations"
    assert images.generate(**FAST | {"Time points": 3.0, "Variations": 1.0, "Seed": -2.0, "Class": 3.0}).startswith(
        "ODE"
    )
    assert shapes.generate(**FAST) == "ODE euler: 2 model evaluations"


def every_third(*values, start: int = 0):
    """Of cases that are alike those that are in the suite; the others: make drill."""
    return [pytest.param(v, marks=() if k % 3 == start else pytest.mark.drill) for k, v in enumerate(values)]


ODD = [2.5, math.nan, math.inf, -math.inf, -1, 10**30, 1e300, None, "", "abc", "3", True, [3], {"a": 3}, []]


BOXES = ["Time points", "Variations", "Class", "Guidance", "Kept where nothing is painted"]


@pytest.mark.parametrize(  # every kind of value, every box; all of both: make drill
    ("box", "value"),
    [
        pytest.param(box, value, marks=() if j == k % len(BOXES) else pytest.mark.drill)
        for (j, box), (k, value) in itertools.product(enumerate(BOXES), enumerate(ODD))
    ],
    ids=repr,
)
def test_what_no_box_can_hold_is_a_line_on_the_page(box, value, images):
    if [box, value] in (["Guidance", 2.5], ["Class", -1]):  # these can be
        value = 99
    said = images.generate(**FAST | {"Class": 3, box: value})
    assert (box in said or "setting is empty" in said or "list of choices" in said) and "\n" not in said


@pytest.mark.parametrize("value", every_third(*(v for v in ODD if v != -1)), ids=repr)
def test_a_seed_is_a_whole_number(value, images, shapes):
    for page in (images, shapes):
        said = page.generate(**FAST | {"Seed": value})
        assert ("Seed" in said or "setting is empty" in said) and "\n" not in said


@pytest.mark.parametrize("value", every_third(*(v for v in ODD if v is not None), start=1), ids=repr)
def test_a_shape_has_a_whole_number(value, shapes):
    status, answer = shapes.direct("Number", "input", Number=value)
    assert status == 200 and "Number: " in answer["data"][-1]
    assert shapes.generate(**FAST | {"How much is kept": value if value != 1 else 2}).count("How much is kept: ") == 1
    assert (
        not shapes.generate(**FAST | {"Parts that are kept": [value]}).startswith("ODE") or value is True
    )  # 1 == True


@pytest.mark.parametrize("error", every_third(SystemExit(2), KeyError("a"), SystemExit(), RuntimeError("two\nlines")))
def test_whatever_a_handler_raises_the_page_lives(error, images, shapes, studio, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(studio, "generate", fail)
    said = images.generate(**FAST)
    assert said.startswith(type(error).__name__) and "\n" not in said
    monkeypatch.setattr(studio, "canvas", fail)
    status, answer = images.choose("Picture", "a.png", picture())
    assert status == 500 and answer["error"].startswith(type(error).__name__)
    monkeypatch.undo()
    assert images.generate(**FAST).startswith("ODE euler")


def test_pictures_that_cannot_be_read_are_named(images, folder):
    for name, content, says in (
        ("text.png", b"this is no picture", "it is text that begins with 'this is no picture'"),
        ("cut.png", picture()[:45], "cannot be read"),
    ):
        status, answer = images.choose("Picture", name, content)
        said = json.dumps(answer)
        assert status == 200 and f"image {name} cannot be read" in said and says in said and str(folder) not in said
    assert images.choose("Picture", "a.png", picture())[0] == 200


def test_a_model_with_one_time_and_three_channels_says_so(random_checkpoint, folder):
    with serve(app.build_page(studio_of(random_checkpoint)), folder) as http:
        client = Client(http, "one time")
        assert client.choose("Picture", "a.png", picture())[0] == 200
        typed = {"Kept where nothing is painted": 0.5, "Channel 2, times the map": 0.5}
        assert "SiT-XS/4 has one time for all of a picture" in client.generate(**FAST | typed)


def test_every_handler_is_guarded(images, shapes):
    for client in (images, shapes):
        (mounted,) = client.http.app.app.app.routes
        handlers = [event.fn for event in mounted.app.get_blocks().fns.values()]
        assert len(handlers) > 5 and all(handler.__wrapped__ for handler in handlers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/config", "/absent", f"{API}/info", f"{API}/heartbeat/x", f"{API}/file=x")),
        *(("POST", f"{API}/{path}") for path in ("upload", "queue/join", "run/predict", "cancel")),
        ("OPTIONS", f"{API}/upload"),
        ("GET", f"{API}/queue/data?session_hash=x"),
    ],
)
def test_other_sites_get_403_on_every_route(method, path, images, folder):
    before = set(folder.rglob("*"))
    sent = {"files": ("a.png", picture())} if method == "POST" and "upload" in path else None
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        answer = images.http.request(method, path, headers=headers, files=sent)
        assert answer.status_code == 403 and not any(name.startswith("access-control") for name in answer.headers)
        assert set(folder.rglob("*")) == before


def test_its_own_pages_are_answered(images):
    for headers in ({"origin": "http://localhost:7860"}, {"host": "127.0.0.1:9000", "origin": "http://127.0.0.1:9000"}):
        assert images.http.get("/config", headers=headers).status_code == 200


def test_only_the_latest_stay():
    latest = Latest(2)
    latest["a"] = latest["b"] = latest["a"] = latest["c"] = 1
    assert list(latest) == ["b", "c"]
