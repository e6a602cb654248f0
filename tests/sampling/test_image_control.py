"""Maps from what a user says, and the graded samples of sample.py."""

import argparse
import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from models import ComboStoc_models
from runtime.errors import DataError, UsageError
from sampling import image_control as control
from sampling.arguments import preserve_spec
from sampling.network import guided
from tests.forked import run_forked
from transport import create_transport


def maps(text, size=8):
    return control.pixel_maps(preserve_spec(text), ["x.png"], size)[0]


def test_numbers_regions_and_boxes():
    assert (maps("0.75") == 0.75).all() and maps("1").shape == (8, 8)
    m = maps("left:0.9,right:0.1")
    assert (m[:, :4] == 0.9).all() and (m[:, 4:] == 0.1).all()
    m = maps("top:1")
    assert (m[:4] == 1).all() and (m[4:] == 0).all()
    m = maps("all:0.2,0.25,0.5,0.75,1:1")  # later over earlier
    assert (m[4:, 2:6] == 1).all() and (m[:4] == 0.2).all() and (m[:, :2] == 0.2).all()
    m = maps("0,0,0.1875,1:1")  # the share of a pixel that is covered
    torch.testing.assert_close(m[0], torch.tensor([1, 0.5, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.5", r"1.5 is not in \[0, 1\]"),
        ("left:2", r"2 is not in \[0, 1\]"),
        ("0.5,0,0.2,1:1", "box 0.5,0,0.2,1 is not x0,y0,x1,y1 with 0 <= x0 < x1 <= 1"),
    ],
)
def test_specs_that_are_refused(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        preserve_spec(text)


def test_an_unknown_region_is_refused():
    with pytest.raises(UsageError, match="middle:1: unknown region 'middle'; choose from all, left"):
        maps("middle:1")


def test_a_mask_is_cropped_as_its_reference_is(tmp_path):
    reference, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.new("RGB", (12, 8)).save(reference)
    pixels = np.zeros((8, 12), np.uint8)
    pixels[:, :6] = 255
    Image.fromarray(pixels).save(mask)
    m = control.mask_map(str(mask), str(reference), 8)
    assert (m[:, :4] == 1).all() and (m[:, 4:] == 0).all()
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(mask)
    assert (control.mask_map(str(mask), str(reference), 8) == np.float32(0.2)).all()
    Image.new("L", (9, 8)).save(mask)
    with pytest.raises(DataError, match=r"m.png has 9 x 8 pixels; it must have the 12 x 8 of .*a.png, or 8 x 8"):
        control.mask_map(str(mask), str(reference), 8)
    mask.write_text("no picture")
    with pytest.raises(DataError, match=r"neither a number .* nor regions, and as a picture: .*m\.png cannot"):
        control.mask_map(str(mask), str(reference), 8)


PAINTED = np.arange(8) < 4  # the left half


def rgba(grey: int, alpha: int) -> Image.Image:
    """The left half painted so; the right half of the same colour, and transparent."""
    pixels = np.full((8, 8, 4), grey, np.uint8)
    pixels[..., 3] = PAINTED * alpha
    return Image.fromarray(pixels)


def png_bytes(depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8 x 8 of a kind that Pillow does not write; `rows` is each of its rows."""
    blocks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)), *chunks]
    blocks += [(b"IDAT", zlib.compress((b"\0" + rows) * 8)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in blocks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def in_memory(image: Image.Image, **settings) -> bytes:
    image.save(content := io.BytesIO(), "png", **settings)
    return content.getvalue()


GREY = Image.fromarray(np.where(np.tile(PAINTED, (8, 1)), 255, 7).astype(np.uint8))
BLACK_KEY, WHITE_KEY = struct.pack(">H", 0), struct.pack(">H", 0xFFFF)
TRANSPARENT = {
    "RGBA": in_memory(rgba(255, 255)),
    "LA": in_memory(rgba(255, 255).convert("LA")),
    "tRNS of grey": in_memory(GREY, transparency=7),
    "tRNS of colours": in_memory(GREY.convert("RGB"), transparency=(7, 7, 7)),
    "tRNS of a palette": in_memory(GREY.convert("P"), transparency=7),
    "palette, all white": png_bytes(8, 3, bytes(4) + b"\1" * 4, (b"PLTE", b"\xff" * 6), (b"tRNS", b"\xff\0")),
    "1 bit": png_bytes(1, 0, b"\xf0", (b"tRNS", BLACK_KEY)),
    "16 bits": png_bytes(16, 0, b"\xff\xff" * 4 + b"\x80\x80" * 4, (b"tRNS", b"\x80\x80")),
    "16 bits and alpha": png_bytes(16, 4, b"\xff" * 16 + b"\xff\xff\0\0" * 4),
    "16 bits of colours": png_bytes(16, 2, b"\xff" * 24 + b"\x80\x80" * 12, (b"tRNS", b"\x80\x80" * 3)),
    "4 bits": png_bytes(4, 0, b"\xff\xff\x77\x77", (b"tRNS", b"\0\7")),
    "2 bits": png_bytes(2, 0, b"\xff\xaa", (b"tRNS", b"\0\2")),
}


def mask_of(content: bytes, folder) -> torch.Tensor:
    Image.new("L", (8, 8), 90).save(folder / "ref.png")
    (folder / "m.png").write_bytes(content)
    return control.mask_map(str(folder / "m.png"), str(folder / "ref.png"), 8)


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_transparent_part_of_a_mask_keeps_nothing(kind, tmp_path):
    assert torch.equal(mask_of(TRANSPARENT[kind], tmp_path), torch.tensor(PAINTED).float().expand(8, 8))


def test_alpha_weakens_what_a_mask_keeps(tmp_path):
    assert torch.equal(mask_of(in_memory(rgba(255, 102)), tmp_path)[0], torch.tensor(PAINTED) * torch.tensor(0.4))
    assert torch.equal(mask_of(in_memory(rgba(51, 255)), tmp_path)[0], torch.tensor(PAINTED) * torch.tensor(0.2))


@pytest.mark.parametrize(
    "mask",
    [rgba(0, 255), rgba(0, 128), rgba(255, 0), rgba(0, 255).convert("LA"), Image.new("RGBA", (8, 8))],
    ids=["black strokes", "thin black strokes", "no strokes", "LA", "an empty layer"],
)
def test_a_mask_that_says_where_by_its_alpha_alone_is_refused(mask, tmp_path):
    with pytest.raises(DataError, match=r"m.png keeps nothing: it is transparent in parts and black elsewhere"):
        mask_of(in_memory(mask), tmp_path)


def test_an_opaque_black_mask_keeps_nothing(tmp_path):
    for mask in (Image.new("L", (8, 8)), Image.new("RGBA", (8, 8), "black"), Image.new("1", (8, 8))):
        assert not mask_of(in_memory(mask), tmp_path).any()


def network(name="ComboStoc-XS/4", channels=4, factor=2, trained="UNSYNC_ALL"):
    config = SimpleNamespace(name=name, in_channels=channels, input_size=8, num_classes=10)
    autoencoder = SimpleNamespace(factor=factor, channels=channels)
    return SimpleNamespace(config=config, images=autoencoder, transport=create_transport(combostoc_type=trained))


def test_a_latent_keeps_the_mean_of_its_pixels_times_its_channels_factor():
    pixels = torch.zeros(1, 16, 16)
    pixels[0, :, :9] = 1
    m = control.latent_maps(pixels, [0.9, 0.9, 0.2, 0.2], network())
    assert m.shape == (1, 4, 8, 8)
    torch.testing.assert_close(m[0, :, 0, 0], torch.tensor([0.9, 0.9, 0.2, 0.2]))
    torch.testing.assert_close(m[0, 0, 0], 0.9 * torch.tensor([1, 1, 1, 1, 0.5, 0, 0, 0]))
    with pytest.raises(UsageError, match="--preserve-channels has 2 factors; the model has 4 channels"):
        control.latent_maps(pixels, [1, 1], network())


def test_a_sit_takes_one_number():
    assert (control.latent_maps(torch.full((2, 16, 16), 0.5), None, network("SiT-XS/4")) == 0.5).all()
    with pytest.raises(UsageError, match=r"SiT-XS/4 has one time for all of a picture: give --preserve a number"):
        control.latent_maps(torch.rand(1, 16, 16), None, network("SiT-XS/4"))


def test_a_model_that_was_not_trained_for_a_map_is_named():
    rows = torch.rand(1, 1, 8, 8)
    channels = torch.rand(1, 4, 1, 1).expand(1, 4, 8, 8)
    for trained in ("UNSYNC_NONE", "UNSYNC_VEC", "UNSYNC_PATCH", "UNSYNC_ALL"):
        told = [control.untrained_times(m, network(trained=trained)) for m in (rows, channels, rows[:, :, :1, :1])]
        expected = {"UNSYNC_NONE": [1, 1, 0], "UNSYNC_VEC": [1, 0, 0], "UNSYNC_PATCH": [0, 1, 0]}
        assert [t is not None for t in told] == [bool(e) for e in expected.get(trained, [0, 0, 0])]


def test_guidance_by_the_time_of_each_entry():
    torch.manual_seed(0)
    model = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=4, num_classes=10).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, y, t = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.rand(2, 4, 8, 8)
    everywhere, limited = guided(model, 3.0)(x, t, y), guided(model, 3.0, interval=(0.3, 0.6))(x, t, y)
    inside = (t >= 0.3) & (t <= 0.6)
    torch.testing.assert_close(limited, torch.where(inside, everywhere, model(x, t, y)))


# ---- sample.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "ref.png")
    return tmp_path / "ref.png", pixels


FAST = ["--sampling-method", "euler", "--num-sampling-steps", "5"]


def test_reference_map_and_samples_side_by_side(trained, picture, tmp_path):
    path, pixels = picture
    args = ["--reference", path, "--preserve", "left:1,right:0.5", "--variations", "3", "--class-labels", "4"]
    result = run_forked("sample.py", "ODE", "--ckpt", trained / "ckpt.pt", *args, *FAST, cwd=tmp_path)
    assert "3 samples of each of 1 references" in result.stdout
    sheet = np.asarray(Image.open(tmp_path / "sample.png"))
    assert sheet.shape == (64 + 14 + 8, 5 * 68 + 4, 3)
    tiles = [sheet[4:68:8, 4 + 68 * k : 68 + 68 * k : 8, 0] for k in range(5)]
    assert np.array_equal(tiles[0], pixels)
    assert (tiles[1][:, :4] == 255).all() and (tiles[1][:, 4:] == 128).all()
    for k in (2, 3, 4):
        assert np.array_equal(tiles[k][:, :4], pixels[:, :4]) and not np.array_equal(tiles[k][:, 4:], pixels[:, 4:])
    assert not np.array_equal(tiles[2], tiles[3])
    assert sheet[68:82].min() < 128  # labels


def test_without_a_class_by_the_sde_and_pasted_pixels(picture, tmp_path, tiny_vae):
    """An autoencoder loses something of what is kept; --preserve-pixels brings it back."""
    path, pixels = picture
    torch.manual_seed(0)
    state = ComboStoc_models["ComboStoc-XS/4"](input_size=8, in_channels=4, num_classes=10).state_dict()
    torch.save({"ema": state, "args": {"vae": str(tiny_vae), "combostoc_type": "UNSYNC_ALL"}}, tmp_path / "c.pt")
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).convert("RGB").save(path)
    args = ["SDE", "--ckpt", str(tmp_path / "c.pt"), "--reference", str(path), "--preserve", "left:1"]
    args += ["--variations", "1", "--num-sampling-steps", "3", "--out", str(tmp_path / "o.png")]
    tiles = []
    for flags in ([], ["--preserve-pixels"], ["--preserve-channels", "1,1,0.5,0.5"]):
        sample.main([*args, *flags])
        sheet = np.asarray(Image.open(tmp_path / "o.png"))
        tiles.append([sheet[4:68:4, 4 + 68 * k : 68 + 68 * k : 4] for k in range(3)])
    assert not np.array_equal(tiles[0][2][:, :8], tiles[0][0][:, :8])
    assert np.array_equal(tiles[1][2][:, :8], tiles[1][0][:, :8])
    assert {0, 128, 255} == set(np.unique(tiles[2][1]))  # four channels' maps as tiles


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ("--preserve 0.5", UsageError, "--preserve works on a picture: give --reference"),
        ("--preserve-schedule size", UsageError, "--preserve-schedule works on a picture: give --reference"),
        ("--reference {r}", UsageError, "how much is kept of --reference"),
        ("--reference {r} --preserve 0.5 --class-labels 1 2", UsageError, "2 --class-labels for 1 references"),
        ("--reference {r} --preserve 0.5 --cfg-scale 2", UsageError, "guides towards a class: give --class-labels"),
        ("--reference {r} --preserve 0.5 --preserve-pixels", UsageError, "the map and its factors keep none"),
        ("--reference {r} --preserve-channels 1,1", UsageError, "2 factors; the model has 1 channel"),
        ("--reference {r} --preserve 0.5 --preserve-schedule size", UsageError, "ODE by 'euler', not 'dopri5'"),
        ("--reference {r}.no --preserve 0.5", DataError, "ref.png.no does not exist"),
        ("--reference {r} --preserve nothing.png", DataError, "neither a number from 0 to 1 nor regions"),
        ("--reference {r} --preserve 0.5 --class-labels 10", UsageError, "class label 10 is out of range"),
    ],
)
def test_mistakes(flags, error, message, trained, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        sample.main(["ODE", "--ckpt", str(trained / "ckpt.pt"), *flags.format(r=picture[0]).split()])
    assert list(tmp_path.iterdir()) == [picture[0]]


def test_a_sit_checkpoint_is_refused_a_map(random_checkpoint, picture):
    with pytest.raises(UsageError, match="SiT-XS/4 has one time for all of a picture"):
        args = ["--reference", str(picture[0]), "--preserve", "left:0.9"]
        sample.main(["ODE", "--ckpt", str(random_checkpoint), *args])
