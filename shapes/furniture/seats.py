"""Chairs and sofas."""

import math

from shapes.furniture.piece import CUSHION, MAX_PARTS, PILLOW, ROUND, Piece, Point


def chair(p: Piece) -> None:
    """A chair of any kind."""
    w, d, seat, thick = p.between(0.4, 0.56), p.between(0.4, 0.52), p.between(0.4, 0.5), p.between(0.03, 0.08)
    leg = p.between(0.03, 0.055)
    shape = p.one_of(None, None, None, CUSHION, ROUND)
    disc = shape == ROUND
    p.box(0, seat, 0, w, thick, d, shape)

    base = p.one_of("legs", "legs", "splayed", "pedestal", "sled", "sides")
    if disc and base in ("sled", "sides"):
        base = "splayed"
    under = seat + thick * 0.4  # legs end within the seat, whose corners may be round
    x, z = (w * 0.3, d * 0.3) if disc else (w / 2 - leg / 2, d / 2 - leg / 2)
    if base == "pedestal":
        p.pedestal(min(w, d) * p.between(0.42, 0.55), under, leg * 1.5)
    elif base == "sled":
        p.sled(x, z, under, leg)
    elif base == "sides":
        p.pair(x, 0, 0, leg, under, d * 0.96)
    else:
        p.legs(x, z, under, leg, p.between(0.03, 0.08) if base == "splayed" else 0, p.one_of(ROUND, None))
        if base == "legs" and p.chance(0.35):  # stretchers
            height = seat * p.between(0.25, 0.6)
            for side in (-x, x):
                p.bar((side, height, -z), (side, height, z), leg * 0.7)
            p.bar((-x, height, 0), (x, height, 0), leg * 0.7)

    lean, foot, rear = p.between(0.02, 0.28), seat + thick * 0.5, -w * 0.34 if disc else -(d / 2 - 0.025)
    back(p, w * 0.32 if disc else w / 2 - 0.025, foot, rear, lean)
    if base != "pedestal" and not disc and len(p.parts) <= MAX_PARTS - 4 and p.chance(0.4):
        above, front = p.between(0.18, 0.25), d / 2 - leg
        solid = p.chance(0.25)
        for side in (-(w / 2 - 0.01), w / 2 - 0.01):
            if solid:
                p.box(side, seat, 0, leg, above + thick, d)
                continue
            top = foot + above
            p.bar((side, top, rear - above * math.tan(lean)), (side, top, front + leg / 2), leg, leg * 0.7)
            p.box(side, foot, front, leg * 0.8, above, leg * 0.8)


def back(p: Piece, half: float, foot: float, rear: float, lean: float) -> None:
    """A chair's back, `half` to either side; from the height and depth of its foot it leans to the rear."""
    tall = p.between(0.38, 0.62)

    def at(u: float, v: float) -> Point:
        return (u, foot + v * math.cos(lean), rear - v * math.sin(lean))

    kind = p.one_of("solid", "slats", "ladder", "splat", "floating")
    if kind == "solid":
        return p.bar(at(0, 0), at(0, tall), 2 * half, p.between(0.03, 0.07), p.one_of(None, CUSHION))
    post, shape = p.between(0.03, 0.045), p.one_of(ROUND, None)
    for side in (-half, half):
        p.bar(at(side, 0), at(side, tall), post, e=shape)
    if kind == "floating":
        p.bar(at(0, tall * p.between(0.35, 0.6)), at(0, tall), 2 * half + post, post)
    elif kind == "ladder":
        n = p.one_of(2, 3, 4)
        for k in range(n):
            v, wide = tall * (k + 1) / n, tall * 0.5 / n
            p.bar(at(0, v - wide), at(0, v), 2 * half, post * 0.7)
    else:
        p.bar(at(0, tall - 0.09), at(0, tall + 0.01), 2 * half + post, post)
        n, wide = (1, half * p.between(0.5, 0.8)) if kind == "splat" else (p.one_of(3, 4, 5), 0.025)
        for u in p.row(n, 2 * half):
            p.bar(at(u, 0), at(u, tall - 0.07), wide, post * 0.6)


def sofa(p: Piece) -> None:
    """A sofa of one to three seats."""
    n = p.one_of(1, 2, 2, 3, 3)
    place, d = p.between(0.6, 0.72), p.between(0.8, 0.95)
    w = n * place
    feet, base = p.one_of(0.0, 0.08, p.between(0.1, 0.18)), p.between(0.16, 0.26)
    seat, tall = feet + base, p.between(0.32, 0.55)
    thick, deep = p.between(0.12, 0.2), p.between(0.18, 0.26)  # of the cushions, and of the back
    arms, arm = p.one_of("block", "block", "rolled", "low", "frame", "none"), p.between(0.12, 0.24)
    outer = w if arms in ("none", "frame") else w + 2 * arm
    p.box(0, feet, 0, w, base, d, (0.15, 0.15))
    if feet and arms != "frame":
        p.legs(outer / 2 - 0.08, d / 2 - 0.08, feet + 0.03, 0.05, e=p.one_of(ROUND, None))

    rear, lean = -d / 2 + deep / 2, p.between(0.0, 0.2)
    p.bar((0, feet, rear), (0, seat + tall, rear - tall * math.tan(lean) * 0.7), outer, deep * 0.8)
    front = deep * 0.45  # the middle of the seats
    for x in p.row(n, w):
        p.box(x, seat - 0.01, front, place - 0.02, thick, d - deep * 0.9, CUSHION)
    if p.chance(0.6):
        for x in p.row(n, w):
            z = rear + deep * 0.55
            p.bar((x, seat + thick * 0.8, z), (x, seat + tall + 0.04, z - tall * lean), place - 0.04, 0.16, CUSHION)
    if n > 1 and p.chance(0.35):  # one seat goes on to the front
        x, far = p.one_of(-1, 1) * (w / 2 - place / 2), p.between(0.5, 0.75)
        z = d / 2 + far / 2 - 0.03
        p.box(x, feet, z, place, base, far, (0.15, 0.15))
        p.box(x, seat - 0.01, z, place - 0.02, thick, far, CUSHION)
        if feet:
            p.box(x, 0, z + far / 2 - 0.1, 0.05, feet + 0.03, 0.05)
    armrests(p, arms, w / 2, arm, d, feet, seat + thick + p.between(0.08, 0.2), seat + thick * 0.9)
    if arms not in ("none", "frame") and len(p.parts) < MAX_PARTS and p.chance(0.4):
        side = p.one_of(-1, 1)
        x, low, z = side * (w / 2 - 0.16), seat + thick * 0.85, rear + deep * 0.5 + 0.17
        p.bar((x, low, z + 0.06), (x - side * 0.04, low + 0.34, z - 0.06), 0.36, 0.14, PILLOW)


def armrests(p: Piece, kind: str, half: float, arm: float, d: float, feet: float, high: float, low: float) -> None:
    """The armrests of a sofa, on both sides of its seats, which reach to `half`."""
    x = half + arm / 2 - 0.01
    if kind == "block":
        p.pair(x, feet, 0, arm, high - feet, d, p.one_of(p.block, (0.25, 0.25)))
    elif kind == "low":
        p.pair(x, feet, 0, arm, low - feet, d)
    elif kind == "rolled":
        p.pair(x, feet, 0, arm * 0.85, high - feet, d)
        for side in (-x, x):
            p.bar((side, high, -d / 2), (side, high, d / 2 + 0.01), arm * 1.15, e=ROUND)
    elif kind == "frame":
        for z in (-(d / 2 - 0.08), d / 2 - 0.08):
            p.pair(half + 0.015, 0, z, 0.05, high, 0.05)
        p.pair(half + 0.015, high - 0.03, 0, 0.07, 0.05, d - 0.06)
