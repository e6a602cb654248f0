"""app.py with a model of shapes: what is ticked and chosen, without a page; and the page in a headless Chromium."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from page.shape_studio import COLOURS, ShapeChoices, ShapeStudio
from runtime.errors import DataError, UsageError
from shapes import control as parts
from shapes.meshes import PALETTE
from shapes.network import Parts_models
from shapes.sets import Layout, ShapeSet, furniture, save_shapes
from tests.test_app import Visit, serving, studio_of

FEW = 60
STEPS = ("--sampling-method", "euler", "--num-sampling-steps", "3")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A checkpoint whose output depends on everything, and sets, good and bad."""
    folder = tmp_path_factory.mktemp("app")
    few = furniture(count=FEW)
    save_shapes(few, folder / "few.npz")
    save_shapes(replace(few, attributes={n: v for n, v in few.attributes.items() if "code" not in n}), folder / "b.npz")
    (folder / "text.npz").write_text("this is no set")
    write_checkpoint(folder / "ckpt.pt", few, "UNSYNC_ATT_PART")
    return folder


def write_checkpoint(path: Path, shapes: ShapeSet, kind: str) -> None:
    layout = Layout.of(shapes)
    torch.manual_seed(0)
    model = Parts_models["Parts-XS"](in_channels=layout.shape[1], num_classes=6)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    args = {"combostoc_type": kind, "prediction": "data", "path_type": "Linear"}
    content = {"ema": model.state_dict(), "args": args, "class_names": shapes.class_names}
    torch.save({**content, "layout": layout.content()}, path)


@pytest.fixture(scope="module")
def studio(files) -> ShapeStudio:
    return shape_studio_of(files / "ckpt.pt", files)


def shape_studio_of(ckpt: Path, folder: Path) -> ShapeStudio:
    plain = studio_of(ckpt)
    return ShapeStudio(plain.network, plain.device, plain.precision, folder)


def choices(files: Path, **changes) -> ShapeChoices:
    settings = {"path": str(files / "few.npz"), "number": 1, "parts": [0, 1], "kept": 0.9, "label": None}
    settings |= {"attributes": ["exists", "box.center", "box.size", "box.axes", "code.exponents"]}
    settings |= {"sampler": "ODE euler", "points": 3, "schedule": "number", "variations": 2, "seed": 0}
    return ShapeChoices(**(settings | changes))


# ---- without a page ------------------------------------------------------------------------------------------------


def test_what_is_ticked_both_ways_is_kept(studio):
    layout, shape = studio.layout, furniture(count=2)[1]
    every = list(layout.attributes)
    count = len(shape["box.center"])
    m = parts.ticked_map([0, 2], count, every, 0.9, layout)
    assert torch.equal(m, parts.keep_map("parts:0,2:0.9", shape, layout))
    m = parts.ticked_map(range(count), count, ["box.size", "code.exponents"], 0.7, layout)
    assert torch.equal(m, parts.keep_map("box.size:0.7,code:0.7", shape, layout))
    m = parts.ticked_map([0, 2], count, [name for name in every if name != "box.center"], 1.0, layout)
    assert torch.equal(m, parts.keep_map("parts:0,2:1,box.center:0", shape, layout))
    assert not parts.ticked_map([], count, every, 1.0, layout).any()
    assert not parts.ticked_map([0], count, [], 1.0, layout).any()
    m = parts.ticked_map(range(count), count, ["exists", "box.size"], 0.7, layout)  # and there are no others
    assert torch.equal(m, parts.keep_map("exists:0.7,box.size:0.7", shape, layout))
    assert (m[:, 0] == torch.tensor(0.7)).all() and layout.max_parts > count and not m[count:, 1:].any()


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ["ODE", "--preserve", "parts:0,1:0.9"]),
        (
            {"sampler": "SDE Heun", "label": 2, "seed": 5, "attributes": ["exists", "box.size"]},
            ["SDE", "--preserve", "parts:0,1:0.9,box.center:0,box.axes:0,code:0", "--class-labels", "2", "--seed", "5"],
        ),
    ],
)
def test_the_samples_are_those_of_sample(changes, flags, files, studio, tmp_path, monkeypatch):
    found, original = [], parts.ShapeControl.sheet
    monkeypatch.setattr(parts.ShapeControl, "sheet", lambda *args: found.append(args) or original(*args))
    studio.generate(choices(files, **changes), lambda *_: None)
    words = ["--ckpt", str(files / "ckpt.pt"), "--reference", f"{files / 'few.npz'}:1", "--variations", "2"]
    steps = ("--sampling-method", changes.get("sampler", "ODE euler").split()[1], *STEPS[2:])
    sample.main([flags[0], *words, *flags[1:], *steps, "--out", str(tmp_path / "a.png")])
    (page, page_samples, page_captions, *_), (program, samples, captions, *_) = found
    assert torch.equal(page.keep, program.keep) and page_captions == captions
    assert len(samples) == len(page_samples) == 2 and np.array_equal(page_samples, samples)


def test_evaluations_are_told_and_a_seed_reproduces(files, studio):
    told = []
    sheet, scenes, said = studio.generate(choices(files), lambda n, total: told.append((n, total)))
    assert told == [(1, 2), (2, 2)] and said == ["ODE euler: 2 model evaluations"]
    again, others, _ = studio.generate(choices(files), lambda *_: None)
    assert np.array_equal(sheet, again) and [p.read_bytes() for p in scenes] == [p.read_bytes() for p in others]
    assert not np.array_equal(sheet, studio.generate(choices(files, seed=1), lambda *_: None)[0])
    assert [p.name for p in scenes] == ["samples.glb", "sample-1.glb", "sample-2.glb"]


def test_kept_parts_have_their_colours_and_new_ones_are_pale(files, studio):
    """In pictures and scenes, also where a part before them is gone."""
    every = furniture(count=2)[1]
    _, scenes, _ = studio.generate(choices(files, parts=[1, 2], kept=1.0), lambda *_: None)
    for scene in scenes[1:]:
        colours = {int(name.split()[-1]): colour for name, colour in materials(scene).items()}
        assert len(set(colours)) >= 2 and colours[1][0] > colours[1][2] and colours[2][1] > colours[2][0]
        new = [colour for k, colour in colours.items() if k not in (1, 2)]
        assert all(np.ptp(colour) < 0.03 for colour in new)
    _, scenes, _ = studio.generate(choices(files, parts=[]), lambda *_: None)
    assert any(np.ptp(colour) > 0.1 for colour in materials(scenes[0]).values())  # nothing to tell apart
    assert len(COLOURS) == len(PALETTE) and len(every["box.center"]) > 2


def materials(scene: Path) -> dict[str, list[float]]:
    """The colours of a .glb's meshes by name, without trimesh."""
    content = scene.read_bytes()
    (length,) = struct.unpack("<I", content[12:16])
    tree = json.loads(content[20 : 20 + length])
    used = {mesh["name"]: mesh["primitives"][0]["material"] for mesh in tree["meshes"]}
    return {name: tree["materials"][k]["pbrMetallicRoughness"]["baseColorFactor"][:3] for name, k in used.items()}


def test_a_reference_is_shown_with_what_is_ticked(studio):
    embedded = studio.embedded
    assert list(embedded)[:2] == ["chair", "table"] and all(len(numbers) > 50 for numbers in embedded.values())
    found = studio.reference("shapes", int(embedded["table"][3]))
    assert (
        found.said.startswith(f"shapes:{embedded['table'][3]}, table, ")
        and studio.scene(found).read_bytes()[:4] == b"glTF"
    )
    whole, none = found.picture(found.parts), found.picture([])
    assert np.ptp(whole.astype(int), axis=2).max() > 50 > np.ptp(none.astype(int), axis=2).max()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"number": FEW}, "few.npz has 60 shapes, 0 to 59"),
        ({"number": -1}, "few.npz has 60 shapes, 0 to 59"),
        ({"path": "b.npz"}, "a shape has the attributes "),
        ({"path": "text.npz"}, "is not an .npz of shapes"),
        ({"path": "absent.npz"}, "does not exist"),
        ({"parts": [0, 19]}, "other parts are ticked than the reference has"),
        ({"sampler": "ODE heun2", "schedule": "size"}, "size"),
    ],
)
def test_mistakes_are_sentences(changes, says, files, studio):
    if "path" in changes:
        changes = {**changes, "path": str(files / changes["path"])}
    with pytest.raises((UsageError, DataError), match=says):
        studio.generate(choices(files, **changes), print)


def test_a_model_of_other_attributes_does_not_offer_the_embedded_set(files, tmp_path):
    few = furniture(count=20)
    other = replace(few, attributes={n: v for n, v in few.attributes.items() if "code" not in n})
    write_checkpoint(tmp_path / "other.pt", other, "UNSYNC_NONE")
    studio = shape_studio_of(tmp_path / "other.pt", tmp_path)
    assert studio.embedded == {}
    chosen = choices(files, path=str(files / "b.npz"), attributes=["box.size"])
    *_, said = studio.generate(chosen, lambda *_: None)
    assert "trained with UNSYNC_NONE, never with times that differ between parts and attributes" in said[1]


# ---- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(files):
    with serving(files / "ckpt.pt", files / "log.txt") as address:
        yield address


class ShapeVisit(Visit):
    """A page of shapes, and what a user does with it."""

    ready = "#parts .wrap label"

    def label(self) -> str:
        return self.page.locator("#model label").first.inner_text()

    def tick(self, group: str, name: str) -> None:
        self.page.locator(f"{group} .wrap label").filter(has_text=name).click()

    def quick(self) -> None:
        """Few steps."""
        self.page.get_by_text("Sampler and seed", exact=True).click()
        self.page.get_by_label("Sampler", exact=True).click()
        self.page.get_by_role("option", name="ODE euler").click()
        self.set("Time points", 3)


@pytest.fixture
def visit(server, browser) -> Iterator[ShapeVisit]:
    visit = ShapeVisit(browser, server[0])
    yield visit
    visit.page.close()
    strangers = {url for url in visit.requests if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))}
    assert visit.requests and not strangers


def test_parts_are_ticked_and_the_rest_is_generated(visit, files):
    from playwright.sync_api import expect

    page = visit.page
    page.wait_for_selector("#model canvas")
    assert visit.label().strip().startswith("shapes:") and "chair" in visit.label()
    picture = page.locator("#picture img").get_attribute("src")
    visit.quick()
    visit.tick("#parts", "0 blue")
    expect(page.locator("#picture img")).not_to_have_attribute("src", picture)
    visit.tick("#attributes", "box.center")
    visit.set("How much is kept", 1)
    visit.set("Variations", 2)
    with page.expect_response("**/sample-1.glb"):  # what is seen in 3D
        sheet = visit.generate()
    assert sheet.width == 4 * 196 + 4
    expect(page.locator("#said")).to_have_text("ODE euler: 2 model evaluations")
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "sample-1.glb"
    assert Path(download.value.path()).read_bytes()[:4] == b"glTF"
    page.get_by_label("all, side by side").click()
    expect(page.locator("#download")).to_contain_text("samples.glb")


@pytest.mark.drill
def test_sets_of_ones_own_and_mistakes(visit, files):
    from playwright.sync_api import expect

    page, trouble = visit.page, visit.page.locator("#trouble")
    page.get_by_role("tab", name="Another set").click()
    for name, says in (("text", "is not an .npz of shapes"), ("b", "a shape has the attributes")):
        visit.choose(files / f"{name}.npz")
        expect(trouble).to_contain_text(says)
        expect(trouble).not_to_contain_text(str(files))
    visit.choose(files / "few.npz")
    expect(page.locator("#model label").first).to_contain_text("few.npz:0")
    expect(trouble).to_have_text("")
    page.get_by_label("Number in the set").fill("99")
    expect(trouble).to_contain_text("few.npz has 60 shapes, 0 to 59")
    page.get_by_label("Number in the set").fill("3")
    expect(page.locator("#model label").first).to_contain_text("few.npz:3")
    page.get_by_role("tab", name="Embedded set").click()
    expect(page.locator("#model label").first).to_contain_text("shapes:")
    page.get_by_label("Kind").click()
    page.get_by_role("option", name="lamp").click()
    expect(page.locator("#model label").first).to_contain_text("lamp")
    assert "Traceback" not in (files / "log.txt").read_text()


@pytest.mark.drill
def test_on_a_phone_nothing_is_wider_than_the_page(server, browser):
    visit = ShapeVisit(browser, server[0], width=390)
    visit.quick()
    assert isinstance(visit.generate(), Image.Image)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    image, sheet = (visit.page.locator(f"#sheet{part}").first.bounding_box() for part in (" img", ""))
    assert image["height"] > 100 and image["x"] >= sheet["x"]
    visit.page.close()
