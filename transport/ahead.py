"""Look-ahead: Euler steps in which easy entries run ahead of a sample's others, and are seen by them.

Easy are the entries whose velocity the model expects to be least wrong, by its log-variance (`Transport`, difficulty).
At equal log-variance everywhere no entry is easy, and look-ahead is Euler's method, bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .difficulty import easy_entries
from .graded import Graded, Synchronous
from .names import ComboStocType
from .path import expand_t_like_x

FACTOR, PLAIN = 1.4, 0.05  # easy entries are seen at FACTOR t; up to time PLAIN there is no look-ahead

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, t) -> velocity and log-variance, like x
Course = Synchronous | Graded


def look_ahead(
    evaluate: Evaluate, course: Course, combostoc_type: ComboStocType, factor: float = FACTOR
) -> Callable[[Tensor, Tensor], Tensor]:
    """The field dx/ds at (s, x) whose Euler steps are look-ahead (Patch Forcing, arXiv 2604.19141).

    A first evaluation tells the easy entries. A second one sees them at time min(factor t, 1), where their own velocity
    takes them, and gives the velocity of all others.
    """

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
