"""Each class of autoencoders of diffusers that is read, small and with random weights."""

import json

import pytest
import torch

from data.autoencoder import class_of, draw_posterior, load_autoencoder
from data.tokenizers import AUTOENCODERS
from runtime.errors import DataError
from tests import tokenizers
from tests.tokenizers import SIZE, SMALL

CPU = torch.device("cpu")


@pytest.fixture(params=SMALL)
def space(request, tmp_path, monkeypatch):
    tokenizers.without_transformers(monkeypatch)
    return load_autoencoder(tokenizers.save(request.param, tmp_path / "vae"), CPU)


@pytest.fixture
def images(seeded):
    return torch.rand(3, 3, SIZE, SIZE) * 2 - 1


def test_every_class_is_among_them():
    assert {kind for kind, *_ in SMALL.values()} == AUTOENCODERS.keys()


def test_sizes_and_kinds(space, images, request):
    """Factor, channels, float32, and a posterior where there is one; decoding gives pictures of that size back."""
    kind, _, factor, channels = SMALL[request.node.callspec.params["space"]]
    assert (space.factor, space.channels, space.class_name) == (factor, channels, kind)
    moments = space.moments(images)
    side = SIZE // factor
    assert moments.shape == (3, 2 if space.has_posterior else 1, channels, side, side)
    assert moments.dtype == torch.float32 and moments.is_contiguous() and moments.isfinite().all()
    latents = space.encode(images, sample=False)
    assert torch.equal(latents, moments[:, 0])
    pictures = space.decode(latents)
    assert pictures.shape == images.shape and pictures.dtype == torch.float32
    assert not any(p.requires_grad for p in space.vae.parameters())
    if not space.has_posterior:
        assert torch.equal(space.encode(images), latents)


def test_decoding_undoes_scale_and_shift(space, images):
    """What goes into the decoder is what came out of the encoder."""
    own = space.encoded(space.vae, images)[0]
    expected = torch.cat([space.decoded(space.vae, part) for part in own.split(1)])
    torch.testing.assert_close(space.decode(space.encode(images, sample=False)), expected, rtol=1e-3, atol=1e-4)


def test_one_image_does_not_depend_on_the_others(space, images):
    alone = torch.cat([space.moments(image[None]) for image in images])
    torch.testing.assert_close(space.moments(images), alone, rtol=1e-3, atol=1e-5)


def test_weights_in_half_precision_compute_in_float32(space, images, tmp_path):
    space.vae.half().save_pretrained(tmp_path / "half")
    half = load_autoencoder(str(tmp_path / "half"), CPU)
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    assert half.moments(images).dtype == torch.float32
    half.encode_precision = "bf16"
    assert half.moments(images).dtype == torch.float32


def test_the_encoder_has_a_digest_that_the_decoder_does_not_change(space, tmp_path):
    before = space.encoder_digest()
    with torch.no_grad():
        next(space.vae.decoder.parameters()).add_(1)
    assert space.encoder_digest() == before
    with torch.no_grad():
        next(space.vae.encoder.parameters()).add_(1)
    assert space.encoder_digest() != before


# ---- conventions -----------------------------------------------------------------------------------------------------


def test_flux_2_packs_and_standardises_as_its_pipeline(tmp_path, images):
    space = load_autoencoder(tokenizers.save("Flux2", tmp_path / "vae"), CPU)
    mean = space.vae.encode(images).latent_dist.mode()  # (3, 4, 8, 8)
    squares = mean.view(3, 4, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(3, 16, 4, 4)
    latents = space.vae.bn(squares)
    torch.testing.assert_close(space.encode(images, sample=False), latents)
    torch.testing.assert_close(space.decode(latents), space.vae.decode(mean).sample, rtol=1e-3, atol=1e-4)
    assert len(set(space.scale)) == len(set(space.shift)) == 16


def test_rae_takes_pixels_in_0_1_and_normalises_by_itself(tmp_path, images, monkeypatch):
    tokenizers.without_transformers(monkeypatch)
    folder = tokenizers.save("RAE", tmp_path / "vae")
    from diffusers.models import AutoencoderRAE

    space, vae = load_autoencoder(folder, CPU), AutoencoderRAE.from_pretrained(folder).eval()
    latents = vae.encode((images + 1) / 2).latent
    torch.testing.assert_close(space.encode(images), latents)
    torch.testing.assert_close(space.decode(latents), vae.decode(latents).sample * 2 - 1)
    assert (space.scale, space.is_scaled, space.size) == (0.5, True, SIZE)


@pytest.mark.parametrize(("values", "is_scaled"), [({}, True), ({"scaling_factor": 1.0}, False)])
def test_whether_there_is_a_scale(values, is_scaled, tmp_path):
    assert load_autoencoder(tokenizers.save("DC", tmp_path / "vae", **values), CPU).is_scaled == is_scaled


def test_rae_without_statistics_has_no_scale(tmp_path, monkeypatch):
    tokenizers.without_transformers(monkeypatch)
    values = {"latents_mean": None, "latents_std": None, "scaling_factor": 1.0}
    assert not load_autoencoder(tokenizers.save("RAE", tmp_path / "vae", **values), CPU).is_scaled


def test_latents_without_a_posterior_take_no_noise(seeded):
    state, latents = torch.get_rng_state(), torch.randn(2, 1, 4, 3, 3)
    torch.set_rng_state(state)
    assert torch.equal(draw_posterior(latents), latents[:, 0]) and torch.equal(torch.get_rng_state(), state)


# ---- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AutoencoderKLWan", "AutoencoderKLCogVideoX", "AutoencoderOobleck", "UNet2DModel"])
def test_videos_and_what_is_unknown_are_named(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    accepted = "AutoencoderKL, .*AutoencoderDC, AutoencoderRAE, AutoencoderTiny"
    with pytest.raises(DataError, match=f"is of the class {kind}; the image autoencoders .* read are {accepted}"):
        load_autoencoder(str(tmp_path), CPU)


def test_what_the_installed_packages_lack_is_said(tmp_path, monkeypatch):
    import diffusers.models

    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderRAE"}))
    assert class_of(tmp_path) == "AutoencoderRAE"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="AutoencoderRAE needs the package transformers"):
        load_autoencoder(str(tmp_path), CPU)
    monkeypatch.setitem(AUTOENCODERS, "AutoencoderNew", AUTOENCODERS["AutoencoderDC"])
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderNew"}))
    with pytest.raises(DataError, match=f"diffusers {diffusers.__version__} has no AutoencoderNew"):
        load_autoencoder(str(tmp_path), CPU)


def test_an_asymmetric_autoencoder_that_enlarges_is_refused(tmp_path):
    values = {"up_block_types": ("UpDecoderBlock2D",) * 3, "up_block_out_channels": (8, 8, 8)}
    with pytest.raises(DataError, match=r"encodes by 2 blocks and decodes by 3"):
        load_autoencoder(tokenizers.save("Asymmetric", tmp_path / "vae", **values), CPU)
