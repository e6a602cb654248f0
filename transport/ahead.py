"""Samplers of an ODE in which some entries run ahead, and are seen by the others: those whose velocity the model takes
to be least wrong, which it says by a log-variance (`Transport`, difficulty).

Both take Euler steps on the courses of `graded.py`. At equal log-variance everywhere no entry runs ahead, and they are
Euler's method, bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .difficulty import easy_entries
from .graded import Graded, Synchronous
from .path import expand_t_like_x
from .timesteps import ComboStocType

AHEAD_METHODS = ("look-ahead", "dual-loop")
FACTOR, PLAIN = 1.4, 0.05  # how far they look ahead, and up to which time they do not
QUARTERS = 4  # steps of the others in a step of theirs

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, t) -> velocity and log-variance, like x
Course = Synchronous | Graded


def look_ahead(
    evaluate: Evaluate, course: Course, combostoc_type: ComboStocType, factor: float = FACTOR
) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/ds at (s, x), for Euler steps (Patch Forcing, arXiv 2604.19141): the others' velocity is that of a second
    evaluation, in which the easy entries are at min(factor t, 1), where their own velocity takes them."""

    def field(s: Tensor, x: Tensor) -> Tensor:
        t = course.times(s)
        velocity, log_variance = evaluate(x, t)
        now = expand_t_like_x(t, x)
        easy = easy_entries(log_variance, combostoc_type) & (now > PLAIN)
        if easy.any():
            ahead = torch.where(easy, (factor * now).clamp_max(1), now)
            in_context, _ = evaluate(x + (ahead - now) * velocity, ahead)
            velocity = torch.where(easy, velocity, in_context)
        return velocity * course.rate(s)

    return field


def dual_loop(
    evaluate: Evaluate, course: Course, combostoc_type: ComboStocType, s0: float, s1: float, num_steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/ds at (s, x), for Euler steps on a grid of num_steps points from s0 to s1 (Patch Forcing): in every fourth the
    easy entries take all four, and then wait, seen by the others."""
    steps, size = num_steps - 1, (s1 - s0) / (num_steps - 1)
    easy, arrival = torch.zeros(()), torch.zeros(())

    def field(s: Tensor, x: Tensor) -> Tensor:
        nonlocal easy, arrival
        k = round((float(s[0]) - s0) / size)
        t = course.times(s)
        if k % QUARTERS:
            t = torch.where(easy, arrival, expand_t_like_x(t, x))
            velocity, _ = evaluate(x, t)
            return torch.where(easy, 0, velocity * course.rate(s))
        velocity, log_variance = evaluate(x, t)
        easy = easy_entries(log_variance, combostoc_type)
        at_once = min(QUARTERS, steps - k)
        arrival = expand_t_like_x(course.times(s + at_once * size), x)
        return torch.where(easy, at_once, 1) * velocity * course.rate(s)

    return field
