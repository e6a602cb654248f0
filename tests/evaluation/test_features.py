import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation import features
from evaluation.features import load_extractor, positions
from runtime.errors import DataError, UsageError

CPU = torch.device("cpu")


def images(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the layout of the FID network's, which cannot be fetched everywhere."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        model = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=path)
    torch.save(model.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_and_has_sfids_features(weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = load_extractor("inception", weights, CPU)
    found = extractor.extract(images(2))
    reference = FeatureExtractorInceptionV3(
        "i", ["768", "2048", "logits_unbiased"], feature_extractor_weights_path=weights
    )
    seen = []
    reference.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, pooled, logits = reference(images(2))
    assert torch.equal(found.pooled, pooled) and torch.equal(found.logits, logits)
    assert found.pooled.shape == (2, 2048) and found.logits.shape == (2, 1008)
    # the first of the branches that Mixed_6d joins, its first 7 channels last, as TensorFlow has them
    assert torch.equal(found.spatial.reshape(2, 17, 17, 7).permute(0, 3, 1, 2), seen[0][:, :7])
    assert found.spatial.std() > 0


def test_weights_that_are_none_are_named_and_nothing_in_them_runs(tmp_path, weights):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "alien.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    for name in ("evil", "alien", "cut", "absent"):
        with pytest.raises(DataError, match=rf"weights of inception from .*{name}\.pth cannot be used"):
            load_extractor("inception", tmp_path / f"{name}.pth", CPU)
    assert not ran.exists()


def test_weights_that_cannot_be_fetched_are_asked_for(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-00000000.pth")
    with pytest.raises(DataError, match=r"weights-00000000\.pth cannot be used.*with --weights"):
        load_extractor("inception", None, CPU)


def test_efficientnet_knows_what_a_photograph_shows():
    """Order of the weights and scale of the pixels are right: of ImageNet's thousand classes a flower is a daisy."""
    from sklearn.datasets import load_sample_image

    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    extractor = load_extractor("efficientnet-lite0", None, CPU)
    found = extractor.extract(flower)
    assert found.logits.argmax(1).item() == 985
    assert found.pooled.shape == (1, 1280) and found.spatial is None


def test_weights_are_for_networks_that_bring_none(weights):
    with pytest.raises(UsageError, match=r"random\.pth are for the features inception and dinov2; efficientnet-lite0"):
        load_extractor("efficientnet-lite0", weights, CPU)


# ---- DINOv2 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_dinov2(monkeypatch):
    """A small network in place of the ViT-L/14, with random weights for 518 x 518, as the published ones are."""
    import timm

    for name, value in {"embed_dim": 24, "depth": 1, "num_heads": 2}.items():
        monkeypatch.setitem(features.DINOV2, name, value)
    torch.manual_seed(0)
    model = timm.create_model(**features.DINOV2 | {"img_size": 518})
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def test_dinov2_is_the_class_token_of_resized_pictures(small_dinov2, tmp_path):
    torch.save(small_dinov2.state_dict(), tmp_path / "timm.pth")
    shown = images(2, 40) // torch.tensor([1, 4], dtype=torch.uint8).view(2, 1, 1, 1)  # a light one, a dark one
    found = load_extractor("dinov2", tmp_path / "timm.pth", CPU).extract(shown)
    assert found.pooled.shape == (2, 24) and found.spatial is None and found.logits is None
    pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for i in shown]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    small_dinov2.set_input_size(224)
    small_dinov2.pos_embed = nn.Parameter(positions(torch.load(tmp_path / "timm.pth")["pos_embed"], 16, 16))
    with torch.no_grad():
        expected = small_dinov2.forward_features((pixels - mean) / std)[:, 0]
    torch.testing.assert_close(found.pooled, expected, rtol=0.01, atol=0.01)
    assert (found.pooled[0] - found.pooled[1]).abs().max() > 0.1  # the pictures are seen


@pytest.mark.parametrize("wrapped", [False, True])
def test_dinov2_takes_metas_file_too(wrapped, small_dinov2, tmp_path):
    state = small_dinov2.state_dict()
    torch.save(state, tmp_path / "timm.pth")
    metas = state | {"mask_token": torch.zeros(1, 24)}
    torch.save({"model": metas} if wrapped else metas, tmp_path / "meta.pth")
    a, b = (load_extractor("dinov2", tmp_path / f"{name}.pth", CPU).extract(images(1)) for name in ("timm", "meta"))
    assert torch.equal(a.pooled, b.pooled)


def test_positions_are_interpolated_as_dinov2s_own_code_does():
    """By a scale of (n + 0.1) / 37: of a ramp the values are where it looks, but for what this bicubic kernel adds."""
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1)
    embedding = torch.cat([torch.full((1, 1, 1), 7.0), ramp], 1)
    found = positions(embedding, 16, 16)
    assert found.shape == (1, 257, 1) and found[0, 0, 0] == 7
    looked = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:, 0].reshape(16, 16)[:, 1:-1], looked[1:-1].expand(16, 14), rtol=0, atol=0.09)
    assert positions(embedding, 37, 37) is embedding


def test_weights_that_are_not_dinov2s_are_named(small_dinov2, weights, tmp_path, monkeypatch):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "alien.pth")
    torch.save(small_dinov2.state_dict() | {"norm.weight": torch.zeros(5)}, tmp_path / "other.pth")
    for path, says in (
        (tmp_path / "alien.pth", "it has no 'pos_embed'"),
        (tmp_path / "other.pth", r"norm\.weight is missing, left over or of another shape"),
    ):
        with pytest.raises(DataError, match=rf"weights of dinov2 from .*{path.name} cannot be used: .*({says})"):
            load_extractor("dinov2", path, CPU)
    with pytest.raises(DataError, match=r"weights of dinov2 from .*absent\.pth cannot be used"):
        load_extractor("dinov2", tmp_path / "absent.pth", CPU)

    def offline(*args):
        raise OSError("no network")

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", offline)
    with pytest.raises(
        DataError, match=r"from the Hub's timm/\S+ cannot be used: .*no network \(give a file .*--weights"
    ):
        load_extractor("dinov2", None, CPU)
