"""Shelves and other storage: bookcases, racks, chests of drawers, cabinets, wardrobes."""

from itertools import pairwise

from shapes.furniture.piece import MAX_PARTS, ROUND, Piece


def shelf(p: Piece) -> None:
    """A shelf or another piece of storage."""
    kind = p.one_of(bookcase, bookcase, grid_shelf, rack, chest, cabinet, wardrobe)
    kind(p, p.between(0.02, 0.045), p.one_of(0.0, 0.0, p.between(0.06, 0.16)))


def stand(p: Piece, w: float, d: float, feet: float) -> None:
    """Four feet for a body on the height `feet`."""
    if feet:
        p.legs(w * 0.46 - 0.025, d * 0.46 - 0.025, feet + 0.03, 0.045, e=p.one_of(ROUND, None))


def case(p: Piece, w: float, d: float, h: float, n: int, board: float, feet: float) -> list[float]:
    """Two sides with n + 1 boards between them, perhaps a rear; returns the boards' heights."""
    stand(p, w, d, feet)
    p.pair(w / 2 - board / 2, feet, 0, board, h - feet, d)
    levels = [feet + (h - feet - board) * k / n for k in range(n + 1)]
    for y in levels:
        p.box(0, y, 0, w - 1.8 * board, board, d * 0.98)
    if p.chance(0.5):
        p.box(0, feet, -d / 2 + 0.008, w - board, h - feet, 0.015)
    return levels


def bookcase(p: Piece, board: float, feet: float) -> None:
    """A bookcase, perhaps with things on its boards."""
    w, d, h = p.between(0.6, 1.1), p.between(0.28, 0.42), p.between(1.2, 1.9)
    for y, above in pairwise(case(p, w, d, h, p.one_of(3, 4, 5), board, feet)):
        if len(p.parts) < MAX_PARTS and p.chance(0.5):  # something stands there
            wide, room = w * p.between(0.25, 0.6), above - y - board
            x = p.one_of(-1, 1) * (w / 2 - board - wide / 2 - 0.01)
            p.box(x, y + board * 0.9, 0, wide, room * p.between(0.6, 0.85), d * 0.7)


def grid_shelf(p: Piece, board: float, feet: float) -> None:
    """A case divided into rows and columns."""
    w, h = p.one_of((p.between(1.0, 1.5), p.between(0.7, 1.1)), (p.between(0.8, 1.1), p.between(1.2, 1.6)))
    d, n, columns = p.between(0.28, 0.42), p.one_of(2, 3, 4), p.one_of(2, 3)
    case(p, w, d, h, n, board, feet)
    for k in range(1, columns):
        p.box(w * (k / columns - 0.5), feet, 0, board, h - feet - board / 2, d * 0.95)


def rack(p: Piece, board: float, feet: float) -> None:
    """Boards between four posts, perhaps with a cross behind them."""
    w, d, h = p.between(0.6, 1.1), p.between(0.28, 0.42), p.between(1.2, 1.9)
    n, post, low = p.one_of(3, 4, 5), p.between(0.025, 0.045), feet + p.between(0.06, 0.12)
    p.legs(w / 2 - post / 2, d / 2 - post / 2, h, post, e=p.one_of(ROUND, None))
    for k in range(n):
        p.box(0, low + (h - low - board - 0.03) * k / (n - 1), 0, w, board, d)
    if p.chance(0.4):
        rear = -d / 2 + 0.01
        for x in (-w / 2, w / 2):
            p.bar((x, low, rear), (-x, h, rear), 0.02)


def chest(p: Piece, board: float, feet: float) -> None:
    """A chest of drawers."""
    w, d, h = p.between(0.7, 1.3), p.between(0.4, 0.5), p.between(0.7, 1.1)
    columns = p.one_of(1, 1, 2)
    n = p.one_of(3, 4, 5) if columns == 1 else p.one_of(2, 3)
    stand(p, w, d, feet)
    p.drawers(0, feet, w, h - feet - board, d, n, columns, spare=1)
    p.box(0, h - board * 1.1, 0, w + 0.04, board * 1.1, d + 0.05)


def cabinet(p: Piece, board: float, feet: float) -> None:
    """A low cabinet with doors."""
    w, d, h = p.between(0.9, 1.7), p.between(0.38, 0.48), p.between(0.6, 0.9)
    body(p, w, d, h, board, feet)
    doors(p, w, d, feet + 0.02, h - feet - board - 0.04)


def wardrobe(p: Piece, board: float, feet: float) -> None:
    """A wardrobe with doors, perhaps with a drawer below them."""
    w, d, h = p.between(0.8, 1.3), p.between(0.5, 0.6), p.between(1.7, 2.1)
    body(p, w, d, h, board, feet)
    drawer = p.one_of(0.0, 0.28)
    if drawer:
        p.box(0, feet + 0.02, d / 2, w - 0.03, drawer - 0.02, 0.03)
        p.box(0, feet + drawer / 2, d / 2 + 0.03, w * 0.3, 0.025, 0.04)
    doors(p, w, d, feet + drawer + 0.02, h - feet - drawer - board - 0.04)


def body(p: Piece, w: float, d: float, h: float, board: float, feet: float) -> None:
    """The body of a cabinet on its feet, and the board on top of it."""
    stand(p, w, d, feet)
    p.box(0, feet, 0, w, h - feet - board, d)
    p.box(0, h - board * 1.1, 0, w + 0.03, board * 1.1, d + 0.04)


def doors(p: Piece, w: float, d: float, y: float, h: float) -> None:
    """One to three doors with handles, beside each other on the front of a body."""
    n = p.one_of(2, 2, 3) if w > 1.05 else p.one_of(1, 2)
    wide = (w - 0.02) / n
    for k, x in enumerate(p.row(n, w - 0.02)):
        p.box(x, y, d / 2, wide - 0.02, h, 0.03)
        side = 1 if k % 2 == 0 else -1
        p.box(x + side * (wide / 2 - 0.06), y + h / 2 - 0.07, d / 2 + 0.03, 0.03, 0.14, 0.04)
