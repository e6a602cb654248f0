"""What the table says of each solver, against what the solver does."""

import math
from itertools import pairwise, product

import pytest
import torch

from tests.conftest import GaussianModel
from transport import Sampler, create_transport
from transport.integrators import integrate_ode
from transport.settings import OdeSettings
from transport.solvers import FIXED_STEP_METHODS, ODE_METHODS, ODE_SOLVERS, SDE_METHODS, SDE_SOLVERS, SOLVERS

MU, SD = 0.3, 0.5
Z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def solved(method, steps, rtol=1e-9):
    """The end of a smooth field by a solver, and the times that it asked for."""
    asked = []

    def field(t, state):
        asked.append(float(t))
        return (torch.sin(3 * state[0]) - t,)

    settings = OdeSettings(method, steps + 1, rtol, rtol)
    return integrate_ode(field, (torch.linspace(-1, 1, 5, dtype=torch.float64),), 0.0, 1.0, settings)[-1][0], asked


@pytest.mark.parametrize("method", FIXED_STEP_METHODS)
@pytest.mark.filterwarnings("ignore:Functional iteration")
def test_whether_it_asks_for_the_end(method):
    for steps in (1, 2, 3, 6):
        _, asked = solved(method, steps)
        assert (max(asked) == 1) == ODE_SOLVERS[method].reaches_end(steps), steps


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.filterwarnings("ignore:Functional iteration")
def test_whether_tolerances_change_anything(method):
    loose, tight = (solved(method, 8, rtol)[0] for rtol in (0.1, 1e-5))
    assert torch.equal(loose, tight) is not ODE_SOLVERS[method].uses_tolerance


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize(("mode", "method"), [("ode", m) for m in SOLVERS] + [("sde", m) for m in SDE_METHODS])
def test_evaluations_are_those_counted(mode, method):
    """Each is one call of the model, for one time a sample; the count is that of the last call."""
    for prediction, steps in product(("velocity", "data"), (1, 4)):
        transport, asked = create_transport("Linear", prediction), []
        model = GaussianModel(transport.path_sampler, prediction, MU, SD)
        sampler = getattr(Sampler(transport), f"sample_{mode}")(sampling_method=method, num_steps=steps + 1)
        for _ in range(2):
            asked.clear()
            sampler(Z, lambda x, t, model=model, asked=asked: asked.append(t.shape) or model(x, t))
            assert sampler.nfe == len(asked) and set(asked) == {Z.shape[:1]}
        if mode == "sde":
            assert sampler.nfe == steps * SDE_SOLVERS[method].evaluations + 1  # a last step without noise
        else:
            counted = ODE_SOLVERS[method].count(steps, prediction == "data")
            assert counted in (None, sampler.nfe)
            assert (counted is None) == (ODE_SOLVERS[method].adaptive or "adams" in method)


@pytest.mark.parametrize("method", FIXED_STEP_METHODS)
def test_order_where_the_model_predicts_the_data(method):
    """Its own; and two where the last step is Euler's, whose error is of the second order once."""
    transport = create_transport("Linear", "data")
    model, errors = GaussianModel(transport.path_sampler, "data", MU, SD), []
    for steps in (32, 64, 128):
        sampler = Sampler(transport).sample_ode(sampling_method=method, num_steps=steps + 1, atol=1e-9, rtol=1e-9)
        errors.append((sampler(Z, model)[-1] - (MU + SD * Z)).abs().max().item())
    solver = ODE_SOLVERS[method]
    order = min(solver.order, 2) if solver.ends_by_euler(128, predicts_data=True) else solver.order
    for before, after in pairwise(errors):
        assert math.log2(before / after) > order - 0.2, errors


def test_only_steps_that_would_divide_by_zero_are_left_to_eulers_method():
    left = {name for name in ODE_METHODS if ODE_SOLVERS[name].ends_by_euler(16, predicts_data=True)}
    assert left == {"heun2", "rk4", "implicit_adams", "fixed_adams"}
    assert ODE_SOLVERS["explicit_adams"].ends_by_euler(2, predicts_data=True)  # which start by rk4
    assert not any(ODE_SOLVERS[name].ends_by_euler(steps, False) for name in ODE_METHODS for steps in (1, 16))
