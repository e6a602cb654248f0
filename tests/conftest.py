"""Fixtures shared by the tests: the golden arrays, exact models of Gaussian data, and small files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, torch.Tensor]:
    """The arrays of one golden file as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind != "U"}


def golden_model_config() -> dict:
    with np.load(GOLDEN / "models.npz") as arrays:
        return json.loads(str(arrays["config"]))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


class GaussianModel:
    """The exact prediction for data distributed as N(mu, sd^2), for any path.

    x_t ~ N(alpha mu, alpha^2 sd^2 + sigma^2); with r = (x - alpha mu) / variance the score is -r and the expected
    noise sigma r.
    """

    def __init__(self, path, prediction: str, mu, sd) -> None:
        self.path, self.prediction, self.mu, self.sd = path, prediction, mu, sd

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **kwargs) -> torch.Tensor:
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        alpha, d_alpha = self.path.compute_alpha_t(t)
        sigma, d_sigma = self.path.compute_sigma_t(t)
        r = (x - alpha * self.mu) / (alpha**2 * self.sd**2 + sigma**2)
        if self.prediction == "score":
            return -r
        if self.prediction == "noise":
            return sigma * r
        # at t = 1 the VP path has sigma = 0 and d_sigma infinite, their product is finite
        return d_alpha * (self.mu + alpha * self.sd**2 * r) + d_sigma * sigma * r


@pytest.fixture
def seeded():
    torch.manual_seed(0)
