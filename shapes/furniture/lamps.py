"""Lamps, from the floor or from a table."""

import math
from itertools import pairwise

from shapes.furniture.piece import BALL, DOME, ROUND, SPINDLE, Exponents, Piece, Point


def lamp(p: Piece) -> None:
    """A lamp of any kind."""
    kind = p.one_of(floor, floor, table_lamp, table_lamp, tripod, desk_lamp, arc, branches)
    kind(p, p.between(0.022, 0.04))


def shade(p: Piece) -> Exponents:
    """The exponents of a lamp's shade."""
    return p.one_of(ROUND, ROUND, DOME, SPINDLE, BALL, p.block)


def foot(p: Piece, wide: float) -> float:
    """A lamp's foot on the ground; returns a height within it."""
    high = p.between(0.03, 0.06)
    p.box(0, 0, 0, wide, high, wide, p.one_of(ROUND, ROUND, None, DOME))
    return high * 0.75


def beads(p: Piece, n: int, low: float, high: float, widest: float) -> None:
    """A stem of n beads between two heights."""
    step = (high - low) / n
    for k in range(n):
        p.box(0, low + k * step, 0, min(step, widest), step, min(step, widest), BALL)


def floor(p: Piece, thin: float) -> None:
    """A floor lamp, perhaps with a small table around its stem."""
    tall, wide, high = p.between(1.2, 1.6), p.between(0.32, 0.54), p.between(0.18, 0.34)
    low = foot(p, p.between(0.26, 0.36))
    p.box(0, low, 0, thin, tall - low + high * 0.4, thin, ROUND)
    if p.chance(0.3):
        beads(p, p.one_of(2, 3, 4), low, tall * 0.95, 0.14)
    p.box(0, tall, 0, wide, high, wide, shade(p))
    if p.chance(0.25):  # a small table around it
        p.box(0, tall * p.between(0.35, 0.45), 0, wide * 0.9, 0.03, wide * 0.9, p.one_of(ROUND, None))


def table_lamp(p: Piece, thin: float) -> None:
    """A table lamp on a stem, a vase, beads or a block."""
    tall, wide, high = p.between(0.32, 0.5), p.between(0.26, 0.42), p.between(0.18, 0.3)
    low = foot(p, p.between(0.16, 0.26))
    p.box(0, low, 0, thin, tall - low + high * 0.4, thin, ROUND)
    body = p.one_of("stem", "vase", "beads", "block")
    if body == "vase":
        p.box(0, low, 0, wide * 0.55, (tall - low) * 0.95, wide * 0.55, p.one_of(BALL, DOME, SPINDLE))
    elif body == "block":
        p.box(0, low, 0, wide * 0.4, (tall - low) * 0.85, wide * 0.4, p.one_of(None, ROUND))
    elif body == "beads":
        beads(p, p.one_of(2, 3, 4), low, tall * 0.92, wide * 0.35)
    p.box(0, tall, 0, wide, high, wide, shade(p))


def tripod(p: Piece, thin: float) -> None:
    """A lamp on three legs."""
    tall, reach, turn = p.between(1.0, 1.4), p.between(0.22, 0.36), p.between(0, math.tau / 3)
    shape = p.one_of(ROUND, None)
    for k in range(3):
        x, z = reach * math.cos(turn + k * math.tau / 3), reach * math.sin(turn + k * math.tau / 3)
        p.bar((x, 0, z), (-x * 0.05, tall, -z * 0.05), thin * 1.2, e=shape)
    wide = p.between(0.4, 0.6)
    p.box(0, tall - 0.08, 0, wide, p.between(0.25, 0.4), wide, shade(p))


def desk_lamp(p: Piece, thin: float) -> None:
    """An arm with an elbow, and a shade that is tilted."""
    low, side = foot(p, p.between(0.18, 0.24)), p.one_of(-1, 1)
    elbow: Point = (-side * p.between(0.06, 0.16), low + p.between(0.28, 0.4), 0.0)
    tip: Point = (side * p.between(0.15, 0.26), elbow[1] + p.between(-0.02, 0.22), 0.0)
    p.bar((0, low, 0), elbow, thin, e=ROUND)
    p.bar(elbow, tip, thin, e=ROUND)
    p.box(elbow[0], elbow[1] - thin, 0, 2 * thin, 2 * thin, 2 * thin, BALL)
    tilt, high = side * p.between(0.1, 0.5), p.between(0.1, 0.16)
    end = (tip[0] + high * math.sin(tilt), tip[1] - high * math.cos(tilt), 0.0)
    p.bar(tip, end, p.between(0.16, 0.24), e=p.one_of(ROUND, DOME, SPINDLE))


def arc(p: Piece, thin: float) -> None:
    """A lamp that hangs from a bent stem."""
    tall, far, n = p.between(1.3, 1.6), p.one_of(-1, 1) * p.between(0.5, 0.9), p.one_of(4, 5, 6)
    low = foot(p, p.between(0.28, 0.38))
    angles = [0.62 * math.pi * k / n for k in range(n + 1)]
    bend = [(far * (1 - math.cos(angle)), low + (tall - low) * math.sin(angle), 0.0) for angle in angles]
    for a, b in pairwise(bend):
        p.bar(a, b, thin, e=ROUND)
    wide, high = p.between(0.26, 0.42), p.between(0.18, 0.28)
    p.box(bend[-1][0], bend[-1][1] - high * 0.85, 0, wide, high, wide, shade(p))


def branches(p: Piece, thin: float) -> None:
    """A lamp with two to five shades on arms around a stem."""
    tall, n, rise = p.between(1.1, 1.5), p.one_of(2, 3, 4, 5), p.between(0.05, 0.25)
    low = foot(p, p.between(0.28, 0.36))
    p.box(0, low, 0, thin, tall - low, thin, ROUND)
    style, wide = shade(p), p.between(0.16, 0.24)
    reach = max(wide * 0.75, wide * 0.62 / math.sin(math.pi / n))
    for k in range(n):
        x, z = reach * math.cos(k * math.tau / n), reach * math.sin(k * math.tau / n)
        p.bar((0, tall - 0.06, 0), (x, tall - 0.05 + rise, z), thin * 0.8, e=ROUND)
        p.box(x, tall - 0.05 + rise - wide * 0.3, z, wide, wide, wide, style)
