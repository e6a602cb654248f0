"""Beds: single and double ones, four-posters, bunk beds. The head is at the rear."""

from shapes.furniture.piece import CUSHION, MAX_PARTS, PILLOW, ROUND, Piece

MATTRESS = (0.2, 0.15)


def bed(p: Piece) -> None:
    """A bed of any kind."""
    w, d, low = p.one_of(p.between(0.85, 1.05), p.between(1.4, 1.9)), p.between(1.9, 2.1), p.between(0.22, 0.36)
    post, single = p.between(0.05, 0.09), w < 1.1
    kind = p.one_of("plain", "plain", "plain", "four-poster", "bunk" if single else "plain")
    if kind == "bunk":
        return bunk(p, w, d, low, post)

    frame = kind == "four-poster" or p.chance(0.5)  # or a body down to the ground
    bottom = low - 0.18 if frame else 0
    p.box(0, bottom, 0, w, low + 0.02 - bottom, d)
    if frame and kind == "plain":
        p.legs(w / 2 - 0.08, d / 2 - 0.08, low - 0.15, post, e=p.one_of(ROUND, None))
    top = low + bedding(p, w, d, low, 1 if single else 2)
    head = p.between(0.75, 1.2)
    if kind == "four-poster":
        tall, thin = p.between(1.7, 2.1), post * 0.7
        p.legs(w / 2, d / 2, tall, post, e=p.one_of(ROUND, None))
        for s in (-1, 1):
            p.box(s * w / 2, tall - thin, 0, thin, thin, d)
            p.box(0, tall - thin, s * d / 2, w, thin, thin)
        p.box(0, low - 0.1, -d / 2, w, head - low + 0.1, 0.05)
    else:
        boards(p, w, d, low, top, head, post)


def bedding(p: Piece, w: float, d: float, low: float, pillows: int) -> float:
    """A mattress on the height `low`, pillows, and perhaps a blanket; returns the thickness of the mattress."""
    thick = p.between(0.16, 0.26)
    p.box(0, low, 0, w - 0.04, thick, d - 0.04, MATTRESS)
    for x in p.row(pillows, w - 0.1):
        wide = min((w - 0.1) / pillows - 0.06, 0.7)
        p.box(x, low + thick * 0.9, -d / 2 + 0.3, wide, 0.14, 0.4, PILLOW)
    if p.chance(0.7):
        cover = d * p.between(0.4, 0.65)
        p.box(0, low + thick * 0.45, d / 2 - cover / 2 + 0.01, w + 0.02, thick * 0.65, cover, (0.15, 0.15))
    return thick


def boards(p: Piece, w: float, d: float, low: float, top: float, head: float, post: float) -> None:
    """A board at the head, if any, and perhaps one at the feet."""
    style = p.one_of("board", "padded", "posts", "slats", "none")
    rear, front, bottom = -(d / 2 + 0.01), d / 2 + 0.01, 0.0 if style == "board" else low * 0.5
    shape = p.one_of(ROUND, None)
    posts = style in ("posts", "slats")
    if style == "none":
        return
    if posts:
        p.pair(w / 2, 0, rear, post, head + 0.08, post, shape)
    if style == "board":
        p.box(0, 0, rear, w + p.between(0, 0.1), head, 0.07)
    elif style == "padded":
        p.box(0, bottom, rear - 0.02, w + 0.06, head - bottom, 0.12, CUSHION)
    elif style == "posts":
        p.box(0, bottom, rear, w, head - bottom, 0.06)
    else:
        p.box(0, head - 0.08, rear, w, 0.08, post * 0.8)
        for x in p.row(p.one_of(4, 5) if w < 1.1 else p.one_of(5, 6), w):
            p.box(x, bottom, rear, 0.05, head - 0.05 - bottom, 0.06)
    if len(p.parts) <= MAX_PARTS - 3 and p.chance(0.45):
        tall = top + p.between(0.0, 0.2)
        p.box(0, bottom, front, w, tall - bottom, 0.06)
        if posts:
            p.pair(w / 2, 0, front, post, tall + 0.06, post, shape)


def bunk(p: Piece, w: float, d: float, low: float, post: float) -> None:
    """Two beds on top of each other, with a ladder at the side."""
    high = low + p.between(0.85, 1.0)
    tall, side = high + p.between(0.35, 0.5), p.one_of(-1, 1) * (w / 2 + 0.01)
    p.legs(w / 2 - 0.02, d / 2 - 0.05, tall, post, e=p.one_of(ROUND, None))
    for y in (low, high):
        p.box(0, y - 0.12, 0, w, 0.13, d)
        p.box(0, y, 0, w - 0.06, 0.15, d - 0.06, MATTRESS)
        p.box(0, y + 0.13, -d / 2 + 0.28, w * 0.6, 0.12, 0.35, PILLOW)
    for z in (-(d / 2 - 0.05), d / 2 - 0.05):
        p.box(0, tall - 0.15, z, w, 0.1, post * 0.5)
    ladder, n = d * 0.15, p.one_of(2, 3, 4)
    for z in (ladder, ladder + 0.38):
        p.box(side, 0, z, 0.05, high + 0.25, 0.05)
    for y in p.row(n, high):
        p.box(side, high / 2 + y, ladder + 0.19, 0.035, 0.04, 0.38)
    if p.chance(0.7):  # so that nobody falls out
        p.box(side, tall - 0.2, (ladder - d / 2) / 2, post * 0.5, 0.1, d / 2 + ladder - 0.05)
