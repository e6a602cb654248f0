"""Tables: to dine at, to work at, low ones, and small ones."""

from shapes.furniture.piece import MAX_PARTS, ROUND, Piece


def table(p: Piece) -> None:
    """A table of any kind."""
    use = p.one_of("dining", "dining", "desk", "coffee", "side")
    w, d, h = {
        "dining": (p.between(1.1, 1.9), p.between(0.75, 1.0), p.between(0.7, 0.78)),
        "desk": (p.between(1.1, 1.6), p.between(0.55, 0.75), p.between(0.7, 0.78)),
        "coffee": (p.between(0.8, 1.2), p.between(0.5, 0.75), p.between(0.34, 0.46)),
        "side": (p.between(0.4, 0.6), p.between(0.4, 0.6), p.between(0.5, 0.75)),
    }[use]
    disc = use != "desk" and p.chance(0.4)
    if disc:
        w = min(w, 1.2) if p.chance(0.7) else w
        d = w * p.one_of(1.0, 1.0, 0.7)
    top, leg = p.between(0.025, 0.07), p.between(0.04, 0.09) * (0.65 if use == "side" else 1)
    under = h - top * 0.7  # legs end within the top
    p.box(0, h - top, 0, w, top, d, ROUND if disc else None)
    inset = p.between(0.0, 0.06) + leg / 2
    x, z = (w * 0.31, d * 0.31) if disc else (w / 2 - inset, d / 2 - inset)
    if use == "desk":
        return desk(p, w, d, under, leg, x, z)

    base = p.one_of("legs", "legs", "splayed", "pedestal", "trestle", "sled", "sides", "cross")
    if disc and base in ("trestle", "sled", "sides"):
        base = "pedestal"
    if base == "legs":
        p.legs(x, z, under, leg, e=p.one_of(ROUND, None))
        if not disc and p.chance(0.5):  # an apron
            tall = p.between(0.06, 0.12)
            for s in (-1, 1):
                p.box(0, under - tall, s * z, 2 * x, tall, leg * 0.5)
                p.box(s * x, under - tall, 0, leg * 0.5, tall, 2 * z)
        if p.chance(0.35):  # a board below
            p.box(0, under * p.between(0.2, 0.4), 0, 2 * x + leg, top * 0.7, 2 * z + leg)
    elif base == "splayed":
        p.legs(x, z, under, leg, p.between(0.04, 0.1), p.one_of(ROUND, None))
    elif base == "pedestal" and w > 1.4 and d < w * 0.8 and p.chance(0.4):
        p.pair(w * 0.25, 0, 0, leg * 1.5, under, leg * 1.5, ROUND)
        p.pair(w * 0.25, 0, 0, d * 0.6, leg * 0.6, d * 0.6, ROUND)
    elif base == "pedestal":
        p.pedestal(min(w, d) * p.between(0.28, 0.42), under, leg * p.between(1.2, 2.2))
    elif base == "trestle":
        trestles(p, x * 0.85, z, under, leg)
    elif base == "sled":
        p.sled(x, z, under, leg)
    elif base == "sides":
        p.pair(x, 0, 0, leg, under, d * 0.9)
        p.box(0, under * p.between(0.2, 0.55), 0, 2 * x, leg * 0.6, d * 0.85)
    else:
        for sx in (-1, 1):
            for sz in (-1, 1):
                p.bar((sx * x, 0, sz * z), (-sx * x * 0.2, under, -sz * z * 0.2), leg * 0.9)


def trestles(p: Piece, x: float, z: float, under: float, leg: float) -> None:
    """Two frames across the table, and a bar between them."""
    crossed = p.chance(0.5)
    for side in (-x, x):
        p.box(side, 0, 0, leg, leg, 2 * z)
        p.box(side, under - leg, 0, leg, leg, 2 * z)
        if crossed:
            for s in (-1, 1):
                p.bar((side, leg * 0.8, s * z * 0.8), (side, under - leg * 0.8, -s * z * 0.8), leg * 0.8)
        else:
            p.box(side, leg * 0.9, 0, leg, under - 1.8 * leg, leg * 1.6)
    p.box(0, (under - leg * 1.2) / 2, 0, 2 * x, leg * 1.2, leg * 0.6)


def desk(p: Piece, w: float, d: float, under: float, leg: float, x: float, z: float) -> None:
    """The support of a desk's top: drawers on both sides, or on one, and on the other a board or legs."""
    sides = p.one_of((1,), (-1,), (-1, 1))
    wide = w * p.between(0.25, 0.32)
    low = 0.0 if len(sides) == 2 else p.one_of(0.0, 0.08, 0.3)
    n = p.one_of(2, 3) if len(sides) == 2 else p.one_of(2, 3, 4)
    for side in sides:
        p.drawers(side * (w / 2 - wide / 2 - 0.02), low, wide, under - low, d - 0.06, n)
    if low:
        p.legs(x, z, under, min(leg, 0.05))
    elif len(sides) == 1 and p.chance(0.5):
        p.box(-sides[0] * (w / 2 - 0.03), 0, 0, 0.04, under, d - 0.06)
    elif len(sides) == 1:
        for s in (-1, 1):
            p.box(-sides[0] * x, 0, s * z, leg, under, leg)
    if len(p.parts) < MAX_PARTS and p.chance(0.5):  # a board at the rear
        p.box(0, under - 0.35, -d / 2 + 0.06, w - 0.06, 0.35, 0.02)
