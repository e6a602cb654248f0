"""Interpolants x_t = alpha_t x1 + sigma_t x0 between noise x0 (t = 0) and data x1 (t = 1).

Three paths, all elementwise in t, which may be any tensor that `expand_t_like_x` can align with x (SiT, section 2.1):

    path            alpha_t                                              sigma_t
    ICPlan   Linear t                                                    1 - t
    GVPCPlan GVP    sin(pi t / 2)                                        cos(pi t / 2)
    VPCPlan  VP     exp(-(1-t)^2 (b1 - b0) / 4 - (1-t) b0 / 2)           sqrt(1 - alpha_t^2)

The velocity is u_t = d_alpha_t x1 + d_sigma_t x0, the score is -x0 / sigma_t in expectation over x0 given x_t.
"""

import enum
import math

import torch
from torch import Tensor

from .names import DIFFUSION_FORMS


def expand_t_like_x(t: Tensor, x: Tensor) -> Tensor:
    """Append singleton dimensions to t until it broadcasts against x.

    Args:
        t: (N,), or x.ndim dimensions each 1 or equal to x's, or a scalar.
        x: (N, ...).

    Returns:
        A view of t with x.ndim dimensions.

    Raises:
        ValueError: t does not broadcast to x.
    """
    expanded = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
    if len(expanded.shape) != x.ndim or any(a not in (1, b) for a, b in zip(expanded.shape, x.shape, strict=True)):
        raise ValueError(f"timesteps of shape {tuple(t.shape)} do not broadcast to samples of shape {tuple(x.shape)}")
    return expanded


class ICPlan:
    """Linear path: alpha_t = t, sigma_t = 1 - t. The other paths override its four coefficients."""

    def compute_alpha_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and its derivative in t."""
        return t, torch.ones_like(t)

    def compute_sigma_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma_t and its derivative in t."""
        return 1 - t, -torch.ones_like(t)

    def compute_d_alpha_alpha_ratio_t(self, t: Tensor) -> Tensor:
        """alpha'_t / alpha_t, infinite at t = 0 where alpha_0 = 0."""
        return 1 / t

    # ---- conversions between what a model may predict ----------------------------------------------------------

    def get_noise_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise x0, solved from x = alpha x1 + sigma x0 and velocity = alpha' x1 + sigma' x0."""
        t = expand_t_like_x(t, x)
        alpha_t, d_alpha_t = self.compute_alpha_t(t)
        sigma_t, d_sigma_t = self.compute_sigma_t(t)
        return (d_alpha_t * x - alpha_t * velocity) / (d_alpha_t * sigma_t - alpha_t * d_sigma_t)

    def get_velocity_from_noise(self, noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity alpha' x1 + sigma' x0 with x1 = (x - sigma x0) / alpha. Singular at t = 0 for Linear and GVP."""
        t = expand_t_like_x(t, x)
        sigma_t, d_sigma_t = self.compute_sigma_t(t)
        return self.compute_d_alpha_alpha_ratio_t(t) * (x - sigma_t * noise) + d_sigma_t * noise

    def get_score_from_noise(self, noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score -x0 / sigma. Singular at t = 1."""
        return -noise / self.compute_sigma_t(expand_t_like_x(t, x))[0]

    def get_score_from_velocity(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score of the marginal whose probability-flow velocity is given (SiT, equation 9). Singular at t = 1."""
        return self.get_score_from_noise(self.get_noise_from_velocity(velocity, x, t), x, t)

    def get_velocity_from_score(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity of a score, the inverse of `get_score_from_velocity`. Singular at t = 0 for Linear and GVP."""
        mean, var = self.compute_drift(x, t)
        return var * score - mean

    def get_noise_from_data(self, data: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise x0 = (x - alpha x1) / sigma. Singular at t = 1."""
        t = expand_t_like_x(t, x)
        return (x - self.compute_alpha_t(t)[0] * data) / self.compute_sigma_t(t)[0]

    def get_velocity_from_data(self, data: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity alpha' x1 + sigma' x0, which is (x1 - x) / (1 - t) on the Linear path. Singular at t = 1."""
        noise = self.get_noise_from_data(data, x, t)
        t = expand_t_like_x(t, x)
        return self.compute_alpha_t(t)[1] * data + self.compute_sigma_t(t)[1] * noise

    def get_score_from_data(self, data: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score -x0 / sigma with x0 = (x - alpha x1) / sigma. Singular at t = 1."""
        return self.get_score_from_noise(self.get_noise_from_data(data, x, t), x, t)

    # ---- coefficients of the SDE -------------------------------------------------------------------------------

    def compute_drift(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The pair (mean, var) with velocity = var * score - mean, the score parametrisation of the path.

        mean = -(alpha'/alpha) x, var = (alpha'/alpha) sigma^2 - sigma sigma'.
        """
        t = expand_t_like_x(t, x)
        ratio = self.compute_d_alpha_alpha_ratio_t(t)
        sigma_t, d_sigma_t = self.compute_sigma_t(t)
        return -ratio * x, ratio * sigma_t**2 - sigma_t * d_sigma_t

    def compute_diffusion(self, x: Tensor, t: Tensor, form: str = "constant", norm: float = 1.0) -> Tensor:
        """Diffusion coefficient w_t of dx = [velocity + w_t score] dt + sqrt(2 w_t) dW (SiT, equation 10).

        Args:
            x: (N, ...), gives the number of dimensions.
            t: (N,) or x.ndim dimensions.
            form: one of `DIFFUSION_FORMS`.
            norm: scale of the coefficient.

        Raises:
            ValueError: another form.
        """
        t = expand_t_like_x(t, x)
        if form == "constant":
            return torch.full_like(t, norm)
        if form == "SBDM":
            return norm * self.compute_drift(x, t)[1]
        if form == "sigma":
            return norm * self.compute_sigma_t(t)[0]
        if form == "linear":
            return norm * (1 - t)
        if form == "decreasing":
            return 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2
        if form == "increasing-decreasing":
            return norm * torch.sin(math.pi * t) ** 2
        raise ValueError(f"unknown diffusion form {form!r}; choose from {', '.join(DIFFUSION_FORMS)}")

    # ---- points on the path ------------------------------------------------------------------------------------

    def compute_mu_t(self, t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """Mean of x_t given its end points; the path adds no noise of its own, so it is x_t itself."""
        t = expand_t_like_x(t, x1)
        return self.compute_alpha_t(t)[0] * x1 + self.compute_sigma_t(t)[0] * x0

    def compute_xt(self, t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """x_t = alpha_t x1 + sigma_t x0."""
        return self.compute_mu_t(t, x0, x1)

    def compute_ut(self, t: Tensor, x0: Tensor, x1: Tensor, xt: Tensor | None = None) -> Tensor:
        """u_t = alpha'_t x1 + sigma'_t x0. `xt` is accepted for SiT's signature and not needed."""
        t = expand_t_like_x(t, x1)
        return self.compute_alpha_t(t)[1] * x1 + self.compute_sigma_t(t)[1] * x0

    def plan(self, t: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, x_t, u_t) for one training batch."""
        xt = self.compute_xt(t, x0, x1)
        return t, xt, self.compute_ut(t, x0, x1, xt)


class GVPCPlan(ICPlan):
    """Generalised variance-preserving path: alpha_t = sin(pi t / 2), sigma_t = cos(pi t / 2)."""

    def compute_alpha_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t = sin(pi t / 2) and its derivative in t."""
        return torch.sin(t * math.pi / 2), math.pi / 2 * torch.cos(t * math.pi / 2)

    def compute_sigma_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma_t = cos(pi t / 2) and its derivative in t."""
        return torch.cos(t * math.pi / 2), -math.pi / 2 * torch.sin(t * math.pi / 2)

    def compute_d_alpha_alpha_ratio_t(self, t: Tensor) -> Tensor:
        """alpha'_t / alpha_t = pi / (2 tan(pi t / 2)), infinite at t = 0."""
        return math.pi / (2 * torch.tan(t * math.pi / 2))


class VPCPlan(ICPlan):
    """Variance-preserving path of score-based models, beta running from b1 = 20 at t = 0 down to b0 = 0.1 at t = 1."""

    def __init__(self, sigma_min: float = 0.1, sigma_max: float = 20.0) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t."""
        return -0.25 * (1 - t) ** 2 * (self.sigma_max - self.sigma_min) - 0.5 * (1 - t) * self.sigma_min

    def d_log_alpha(self, t: Tensor) -> Tensor:
        """Derivative of log alpha_t, which is beta_t / 2."""
        return 0.5 * (1 - t) * (self.sigma_max - self.sigma_min) + 0.5 * self.sigma_min

    def compute_alpha_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and its derivative in t."""
        alpha_t = torch.exp(self.log_alpha(t))
        return alpha_t, alpha_t * self.d_log_alpha(t)

    def compute_sigma_t(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sigma_t = sqrt(1 - alpha_t^2) and its derivative in t, infinite at t = 1."""
        log_alpha = self.log_alpha(t)
        sigma_t = torch.sqrt(-torch.expm1(2 * log_alpha))  # expm1 keeps digits near t = 1, where sigma is small
        return sigma_t, -torch.exp(2 * log_alpha) * self.d_log_alpha(t) / sigma_t

    def compute_d_alpha_alpha_ratio_t(self, t: Tensor) -> Tensor:
        """alpha'_t / alpha_t = beta_t / 2, finite everywhere."""
        return self.d_log_alpha(t)

    def compute_drift(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """mean = -beta_t x / 2, var = beta_t / 2: the general form, with sigma' (infinite at t = 1) cancelled."""
        half_beta = self.d_log_alpha(expand_t_like_x(t, x))
        return -half_beta * x, half_beta


class PathType(enum.Enum):
    """The interpolant between noise and data."""

    LINEAR = enum.auto()
    GVP = enum.auto()
    VP = enum.auto()


PATHS = {"Linear": PathType.LINEAR, "GVP": PathType.GVP, "VP": PathType.VP}
PLANS: dict[PathType, type[ICPlan]] = {PathType.LINEAR: ICPlan, PathType.GVP: GVPCPlan, PathType.VP: VPCPlan}
