import pickle

import pytest
import torch
from torch import nn

from evaluation.features import load_extractor
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


def test_weights_are_for_inception_only(weights):
    with pytest.raises(UsageError, match=r"random\.pth are for the features inception"):
        load_extractor("efficientnet-lite0", weights, CPU)
