"""Against torch-fidelity on the same features, against closed forms, and what must hold for any features."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

from evaluation.metrics import Moments, frechet_distance, inception_score, kernel_distance, moments, precision_recall


@pytest.fixture(scope="module")
def features():
    """Two sets of correlated, skewed features of different size."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 48, 48, dtype=torch.float64, generator=generator)
    a, b = (torch.randn(n, 48, dtype=torch.float64, generator=generator) for n in (700, 500))
    return (a @ mix[0] / 7).relu(), (b @ (mix[0] + 0.3 * mix[1]) / 7 + 0.2).relu()


# ---- torch-fidelity ------------------------------------------------------------------------------------------------


def test_frechet_distance_is_torch_fidelitys(features):
    statistics = [metric_fid.fid_features_to_statistics(f) for f in features]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*map(moments, features)) == pytest.approx(expected, rel=1e-6)


def test_inception_score_is_torch_fidelitys():
    logits = 2 * torch.randn(333, 20, generator=torch.Generator().manual_seed(1))
    expected = metric_isc.isc_features_to_metric(logits)
    assert inception_score(logits) == pytest.approx(tuple(expected.values()), rel=1e-6)


def test_kernel_distance_is_torch_fidelitys(features):
    settings = {"kid_subsets": 7, "kid_subset_size": 300, "rng_seed": 2020, "verbose": False}
    expected = metric_kid.kid_features_to_metric(*features, **settings)
    assert kernel_distance(*features, subsets=7, size=300) == pytest.approx(tuple(expected.values()), rel=1e-6)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
def test_precision_and_recall_are_torch_fidelitys(features, save_cpu_ram):
    expected = metric_prc.prc_features_to_metric(*features, verbose=False, save_cpu_ram=save_cpu_ram)
    found = precision_recall(*features)
    assert found == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)
    assert min(found) > 0.05 and max(found) < 0.95 and found[0] != found[1]  # says something


# ---- closed forms --------------------------------------------------------------------------------------------------


def exactly(mean: torch.Tensor, cov: torch.Tensor, n: int) -> torch.Tensor:
    """Features whose sample mean and covariance are these, up to rounding."""
    z = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return z @ torch.linalg.cholesky(cov).T + mean


def test_frechet_distance_of_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 where covariances commute; with C2 = A C1 A it is tr (A - 1) C1 (A - 1)."""
    d = 16
    random = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=random))
    s1, s2 = 0.1 + torch.rand(2, d, dtype=torch.float64, generator=random)
    m1, m2 = torch.randn(2, d, dtype=torch.float64, generator=random)
    first = exactly(m1, rotation * s1**2 @ rotation.T, 400)
    second = exactly(m2, rotation * s2**2 @ rotation.T, 300)
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected.item(), rel=1e-9)

    root = torch.randn(d, d, dtype=torch.float64, generator=random)
    c1, a = root @ root.T, torch.eye(d, dtype=torch.float64) + 0.1 * (root + root.T) @ (root + root.T)
    shift = a - torch.eye(d, dtype=torch.float64)
    distance = frechet_distance(Moments(m1, c1), Moments(m1, a @ c1 @ a))
    assert distance == pytest.approx((shift @ c1 @ shift).trace().item(), rel=1e-9)


@pytest.mark.parametrize("n", [10, 700])
def test_a_set_is_at_no_distance_from_itself(n, features):
    """Also with fewer images than features, where the root of a product of covariances may turn complex."""
    few = features[0][:n]
    scale = moments(few).cov.trace().item()
    assert abs(frechet_distance(moments(few), moments(few))) < 1e-6 * max(scale, 1)
    assert precision_recall(few, few) == (1.0, 1.0)
    assert math.isfinite(frechet_distance(moments(few), moments(features[1][:20])))


def test_distances_are_symmetric_and_grow_with_noise(features):
    a, _ = features
    noise = torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    sets = [a + scale * noise for scale in (0.0, 0.1, 0.2, 0.4, 0.8)]
    for distance in (
        lambda x: frechet_distance(moments(a), moments(x)),
        lambda x: kernel_distance(a, x, subsets=5, size=700)[0],
        lambda x: -precision_recall(x, a)[0],
    ):
        values = [distance(x) for x in sets]
        assert values == sorted(values) and values[-1] > values[0] + 0.01
    there, back = (frechet_distance(moments(x), moments(y)) for x, y in ((a, sets[3]), (sets[3], a)))
    assert there == pytest.approx(back, rel=1e-9)


def test_the_kernel_distance_is_unbiased():
    """Around 0 for two sets of one distribution, of any size, where the plain mean of kernels is not."""
    random = torch.Generator().manual_seed(5)
    values = [
        kernel_distance(*torch.randn(2, 30, 8, dtype=torch.float64, generator=random), subsets=1)[0] for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_inception_score_of_a_perfect_and_of_a_blind_classifier():
    sure = 100 * torch.eye(10).repeat(100, 1)
    assert inception_score(sure, splits=1)[0] == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(50, 10)) == pytest.approx((1.0, 0.0), abs=1e-9)
    assert inception_score(sure[:3])[0] == pytest.approx(1)  # a part an image


def test_precision_and_recall_of_modes():
    """Half the samples in one of two modes, the others nowhere: precision 1/2, recall 1/2."""
    random = torch.Generator().manual_seed(6)
    modes = torch.rand(2, 100, 2, generator=random) + torch.tensor([[[0.0, 0.0]], [[50.0, 0.0]]])
    inside = modes[0] + 1e-3 * torch.randn(100, 2, generator=random)
    outside = 1000 + 100 * torch.rand(100, 2, generator=random)
    precision, recall = precision_recall(torch.cat([inside, outside]), modes.flatten(0, 1))
    assert abs(precision - 0.5) < 0.03 and abs(recall - 0.5) < 0.03


def test_too_few_images_are_named():
    with pytest.raises(ValueError, match="two images or more, not 1"):
        moments(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="two images or more, not 1"):
        kernel_distance(torch.zeros(1, 4), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="4 images or more"):
        precision_recall(torch.zeros(3, 4), torch.zeros(9, 4))


def test_moments_in_parts_are_moments(monkeypatch):
    """Float32 features far from zero, whose squares would lose the covariance if it were a difference of sums."""
    monkeypatch.setattr("evaluation.metrics.CHUNK", 7)
    features = 1000 + torch.randn(50, 5, generator=torch.Generator().manual_seed(7))
    found = moments(features)
    np.testing.assert_allclose(found.mean, features.double().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov(features.double(), rowvar=False), rtol=1e-10)
