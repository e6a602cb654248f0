"""Look-ahead against closed forms, and against Euler's method where no entry runs ahead."""

import pytest
import torch

from tests.conftest import GaussianModel
from transport import Sampler, create_transport
from transport.ahead import look_ahead
from transport.difficulty import easy_entries
from transport.graded import Synchronous
from transport.names import ComboStocType

MU, SD = 0.4, 0.6
METHOD = "look-ahead"
kinds = pytest.mark.parametrize("kind", ["UNSYNC_VEC", "UNSYNC_PATCH", "UNSYNC_ALL"])


class Oracle:
    """The exact velocity of Gaussian data, and a log-variance that is given."""

    def __init__(self, transport, log_variance) -> None:
        self.model = GaussianModel(transport.path_sampler, "velocity", MU, SD)
        self.log_variance = log_variance

    def __call__(self, x, t, log_variance=False):
        velocity = self.model(x, t)
        return torch.cat([velocity, self.log_variance.to(x).expand_as(x)], 1) if log_variance else velocity


def transport_of(kind, path="Linear"):
    return create_transport(path, combostoc_type=kind, difficulty=0.01)


def noise(n=64):
    torch.manual_seed(0)
    return torch.randn(n, 3, 4, 4, dtype=torch.float64)


@kinds
@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
def test_noise_maps_to_the_data_whichever_entries_run_ahead(kind, path):
    """Entries are independent here, so that each must land on mu + sd z, in whatever order they come."""
    transport, z = transport_of(kind, path), noise(8)
    difficulty = torch.randn(3, 4, 4, dtype=torch.float64)

    def error(method, steps):
        sampler = Sampler(transport).sample_ode(sampling_method=method, num_steps=steps + 1)
        return (sampler(z, Oracle(transport, difficulty))[-1] - (MU + SD * z)).abs().max().item()

    bound = error("euler", 150)
    assert error(METHOD, 150) <= bound * (1 + 1e-9) and bound < 0.16


@kinds
def test_at_equal_difficulty_it_is_eulers_method_bit_for_bit(kind):
    transport, z = transport_of(kind), noise()
    model = Oracle(transport, torch.zeros(()))
    expected = Sampler(transport).sample_ode(sampling_method="euler", num_steps=21)(z, model)[-1]
    sampler = Sampler(transport).sample_ode(sampling_method=METHOD, num_steps=21)
    assert torch.equal(sampler(z, model)[-1], expected) and sampler.nfe == 20


def test_looking_no_further_is_eulers_method_bit_for_bit():
    transport, z = transport_of("UNSYNC_ALL"), noise()
    model = Oracle(transport, torch.randn(3, 4, 4))

    def evaluate(x, t):
        return model(x, t, log_variance=True).chunk(2, 1)

    field = look_ahead(evaluate, Synchronous(), transport.combostoc_type, factor=1.0)
    s = torch.full((len(z),), 0.3, dtype=z.dtype)
    assert torch.equal(field(s, z), model(z, s))


@kinds
def test_forty_percent_are_easy_and_share_what_shares_a_time(kind):
    torch.manual_seed(0)
    log_variance = torch.randn(5, 10, 10, 10)
    easy = easy_entries(log_variance, ComboStocType[kind])
    assert easy.shape == {"UNSYNC_VEC": (5, 10, 1, 1), "UNSYNC_PATCH": (5, 1, 10, 10)}.get(kind, (5, 10, 10, 10))
    assert (easy.flatten(1).double().mean(1) == 0.4).all()


def test_the_others_see_easy_entries_where_they_will_be():
    """Times and states that the model is asked about, of two entries of which the first is easy."""
    asked = []

    def evaluate(x, t):
        asked.append((x.flatten().tolist(), t.expand(1, 2).flatten().tolist() if t.ndim > 1 else [t.item()] * 2))
        return torch.ones(1, 2), torch.tensor([[0.0, 1.0]])

    kind = ComboStocType.UNSYNC_ALL
    field = look_ahead(evaluate, Synchronous(), kind)
    field(torch.tensor([0.5]), torch.full((1, 2), 0.5))
    ((_, first), (x, t)) = asked
    assert first == [0.5, 0.5] and x == t == pytest.approx([0.7, 0.5])
    asked.clear()
    field(torch.tensor([0.04]), torch.zeros(1, 2))  # plain
    assert len(asked) == 1


def test_what_is_kept_of_a_reference_stays():
    transport, z = transport_of("UNSYNC_ALL"), noise(4)
    reference = MU + SD * noise(4)
    m = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    m[:, 0] = 1
    difficulty = torch.randn(3, 4, 4, dtype=torch.float64)
    make = Sampler(transport).sample_graded
    model = Oracle(transport, difficulty)
    exact = make(reference, m, sampling_method="rk4", num_steps=401)(z, model)[-1]
    errors = []
    for steps in (200, 400):
        x = make(reference, m, sampling_method=METHOD, num_steps=steps + 1)(z, model)[-1]
        assert torch.equal(x[:, 0], reference[:, 0])
        errors.append((x - exact).abs().max().item())
    assert errors[0] < 0.05 and 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("constant", [False, True])
def test_compensation_is_taken_out_and_the_log_variance_stays(channels, constant):
    """Of one data point both velocities are known: the states are those of a model without compensation, all along."""
    with_it, without = (
        create_transport(combostoc_type="UNSYNC_ALL", difficulty=0.01, use_compensation=on) for on in (True, False)
    )
    torch.manual_seed(0)
    shape = (2, channels, 4, 4)
    point, z, reference, log_variance = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    m = 0.25 if constant else torch.rand(shape, dtype=torch.float64)

    def states(transport):
        def model(x, t, **kwargs):
            t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).expand_as(x).clamp_max(1 - 1e-6)
            x0 = (x - t * point) / (1 - t)
            velocity = point - x0
            if transport.compensates:
                velocity = transport.compensate_offdiagonal_ut(point, x, velocity, t, x0)
            return torch.cat([velocity, log_variance], 1)

        settings = {"sampling_method": METHOD, "num_steps": 21, "trajectory": True}
        sampler = Sampler(transport).sample_graded(reference, m, decompensate=True, **settings)
        return torch.stack(sampler(z, model))

    torch.testing.assert_close(states(with_it), states(without), atol=1e-4, rtol=0)


def test_models_that_cannot():
    for settings, says in (({"difficulty": 0.01}, "UNSYNC_NONE"), ({"combostoc_type": "UNSYNC_ALL"}, "difficulty 0")):
        with pytest.raises(ValueError, match=f"{METHOD} needs a model that was trained with difficulty.*{says}"):
            Sampler(create_transport(**settings)).sample_ode(sampling_method=METHOD)
    with pytest.raises(ValueError, match="it has no reverse"):
        Sampler(transport_of("UNSYNC_ALL")).sample_ode(sampling_method=METHOD, reverse=True)
    with pytest.raises(ValueError, match="unknown ODE method of a likelihood"):
        Sampler(transport_of("UNSYNC_ALL")).sample_ode_likelihood(sampling_method=METHOD)
