"""The solvers that the samplers offer, each described once. Imports no torch, for the command line to read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Solver:
    """One way to step along an ODE or an SDE.

    Attributes:
        name: its name, torchdiffeq's where the solver is one of those.
        order: order of convergence; weak order for an SDE solver.
        evaluations: evaluations of the field per step; None where steps differ.
        evaluates_end: whether a step evaluates the field at its end.
        starting_steps: number of first steps that a multistep method takes by rk4, which evaluates their ends.
        adaptive: whether it chooses its own step sizes, in place of those of a grid.
        uses_tolerance: whether atol and rtol change what it does.
    """

    name: str
    order: int
    evaluations: int | None
    evaluates_end: bool
    starting_steps: int = 0
    adaptive: bool = False
    uses_tolerance: bool = False

    def reaches_end(self, steps: int) -> bool:
        """Whether the last of `steps` steps evaluates the field at its end."""
        return self.evaluates_end or steps <= self.starting_steps

    def ends_by_euler(self, steps: int, predicts_data: bool) -> bool:
        """Whether the last of `steps` steps towards the data is Euler's.

        It is where the model predicts x1 and the solver's own step would evaluate its end, dividing x1 by sigma = 0.
        """
        return predicts_data and not self.adaptive and self.reaches_end(steps)

    def count(self, steps: int, predicts_data: bool) -> int | None:
        """Evaluations of a model in `steps` steps towards the data; None where they are not known beforehand."""
        if self.evaluations is None:
            return None
        last = self.ends_by_euler(steps, predicts_data)
        return (steps - last) * self.evaluations + last


_ODE = (
    Solver("dopri5", 5, None, True, adaptive=True, uses_tolerance=True),
    Solver("dopri8", 8, None, True, adaptive=True, uses_tolerance=True),
    Solver("bosh3", 3, None, True, adaptive=True, uses_tolerance=True),
    Solver("fehlberg2", 2, None, True, adaptive=True, uses_tolerance=True),
    Solver("adaptive_heun", 2, None, True, adaptive=True, uses_tolerance=True),
    Solver("euler", 1, 1, False),
    Solver("midpoint", 2, 2, False),
    Solver("heun2", 2, 2, True),
    Solver("heun3", 3, 3, False),  # at 0, 1/3 and 2/3 of the step
    Solver("rk4", 4, 4, True),
    Solver("explicit_adams", 3, None, False, starting_steps=2),
    Solver("implicit_adams", 4, None, True, uses_tolerance=True),  # each step is corrected up to the tolerance
    Solver("fixed_adams", 4, None, True, uses_tolerance=True),  # torchdiffeq's older name for it
    Solver("look-ahead", 1, None, False),  # Euler's steps; one evaluation or two, see `transport.ahead`
)
_SDE = (Solver("Euler", 1, 1, False), Solver("Heun", 1, 2, True))

ODE_SOLVERS = {solver.name: solver for solver in _ODE}
SDE_SOLVERS = {solver.name: solver for solver in _SDE}

AHEAD_METHODS = ("look-ahead",)  # entries run ahead of others, which needs the model's own estimate of its error
ADAPTIVE_METHODS = tuple(s.name for s in _ODE if s.adaptive)
FIXED_STEP_METHODS = tuple(s.name for s in _ODE if not s.adaptive and s.name not in AHEAD_METHODS)
SOLVERS = ADAPTIVE_METHODS + FIXED_STEP_METHODS  # of any field
ODE_METHODS = SOLVERS + AHEAD_METHODS
SDE_METHODS = tuple(SDE_SOLVERS)
