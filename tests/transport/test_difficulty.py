"""What a model learns of its own error, and that learning it leaves the velocity alone."""

import pytest
import torch
from torch import nn

from models import ComboStoc
from transport import create_transport
from transport.difficulty import gaussian_nll

SIGMA = torch.linspace(0.1, 1.5, 16)  # of each entry of the data


class Entrywise(nn.Module):
    """Velocity and log-variance of each entry from its state, its time and its number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t, log_variance=False):
        where = torch.linspace(-1, 1, x.shape[2]).expand_as(x)
        out = self.layers(torch.stack([x, t.expand_as(x), where], -1))  # (N, 1, L, 2)
        return torch.cat([out[..., 0], out[..., 1]], 1) if log_variance else out[..., 0]


def test_predicted_variance_is_that_of_the_error_on_data_of_known_noise():
    """Of entries N(0, sigma^2) on the Linear path, given x_t, it is sigma^2 / (t^2 sigma^2 + (1 - t)^2)."""
    torch.manual_seed(0)
    transport = create_transport(
        combostoc_type="UNSYNC_PATCH", times="diffusion-forcing", use_compensation=False, difficulty=1.0
    )
    model = Entrywise()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        loss = transport.training_losses(model, SIGMA * torch.randn(128, 1, 16))["loss"].mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    t = torch.linspace(0.05, 0.95, 19)[:, None, None]
    true = (SIGMA**2 / (t**2 * SIGMA**2 + (1 - t) ** 2)).log()
    sd = (t**2 * SIGMA**2 + (1 - t) ** 2).sqrt()
    with torch.no_grad():
        predicted = model((sd * torch.randn(64, 1, 16)[:, None]).reshape(-1, 1, 16), t.repeat(64, 1, 1), True)[:, 1:]
    found = predicted.reshape(64, 19, 1, 16).mean(0)
    correlation = torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1]
    assert correlation > 0.95


def test_the_loss_is_least_at_the_error_itself():
    mean, target = torch.zeros(1, 4), torch.tensor([[0.5, 1.0, 2.0, 3.0]])
    log_variance = (target**2).log().requires_grad_()
    gaussian_nll(mean, log_variance, target).sum().backward()
    assert log_variance.grad.abs().max() < 1e-6
    normal = torch.distributions.Normal(mean, 2.0)
    difference = -normal.log_prob(target).mean() - gaussian_nll(mean, torch.full((1, 4), 4.0).log(), target)
    assert difference.item() == pytest.approx(0.918939, abs=1e-5)  # log(2 pi) / 2


def test_learning_it_leaves_the_velocitys_gradients_alone():
    """The head's rows of the velocity get the gradient that they had without it, bit for bit."""

    def gradients(difficulty: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = ComboStoc(
            input_size=4, patch_size=2, in_channels=1, hidden_size=12, depth=1, num_heads=2, num_classes=3
        )
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
        transport = create_transport(combostoc_type="UNSYNC_ALL", difficulty=difficulty)
        torch.manual_seed(1)
        kwargs = {"y": torch.tensor([0, 1, 2, 0])}
        transport.training_losses(model.eval(), torch.randn(4, 1, 4, 4), kwargs)["loss"].mean().backward()
        return model.final_layer.linear.weight.grad.reshape(2, 2, 2, 12)  # (p, p, channels, D)

    without, with_it = gradients(0.0), gradients(0.01)
    assert torch.equal(without[:, :, 0], with_it[:, :, 0]) and (without[:, :, 1] == 0).all()
    assert (with_it[:, :, 1] != 0).all()


def test_bad_settings():
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="difficulty must be a finite weight, not negative, got"):
            create_transport(difficulty=value)
    with pytest.raises(ValueError, match=r"difficulty 0\.01 is for prediction velocity, not for prediction noise"):
        create_transport(prediction="noise", difficulty=0.01)
    model = ComboStoc(
        input_size=4, in_channels=1, hidden_size=12, depth=1, num_heads=2, num_classes=3, learn_sigma=False
    )
    with pytest.raises(ValueError, match="without learn_sigma predicts no log-variance"):
        create_transport(difficulty=0.01).training_losses(model, torch.zeros(2, 1, 4, 4), {"y": torch.zeros(2).long()})
