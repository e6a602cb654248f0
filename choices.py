"""What the command line lets one choose, by name.

Parsers read it here: what the names stand for imports torch, which takes seconds, and a mistake on the command line is
to be told at once. `tests/test_choices.py` holds this to what there is.
"""

MODELS = tuple(
    f"{family}-{size}/{patch}"
    for family in ("ComboStoc", "SiT")
    for size, patches in (("XL", (2, 4, 8)), ("L", (2, 4, 8)), ("B", (2, 4, 8)), ("S", (2, 4, 8)), ("XS", (2, 4)))
    for patch in patches
)
COMBOSTOC_TYPES = ("UNSYNC_NONE", "UNSYNC_VEC", "UNSYNC_PATCH", "UNSYNC_ALL")
PATHS = ("Linear", "GVP", "VP")
PREDICTIONS = ("velocity", "score", "noise")
WEIGHTS = (None, "velocity", "likelihood")
BLENDS = ("batch", "sample", "off")
ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ODE_METHODS = (
    *ADAPTIVE_METHODS,
    *("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"),
)
SDE_METHODS = ("Euler", "Heun")
DIFFUSION_FORMS = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing")
LAST_STEPS = (None, "Mean", "Tweedie", "Euler")
SCHEDULES = ("number", "size")
EXTRACTORS = ("inception", "efficientnet-lite0")
