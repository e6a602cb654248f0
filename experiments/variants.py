"""The variants that the study compares: for each the model's family, and train.py's arguments.

A variant that stands in two tables has the same name in both, and is trained once. Variants keep the names that they
have in tables and folders of earlier runs, and so call draws by the names of that time (`transport.names.OLD_NAMES`).
"""

from transport.timesteps import times_of_today

STUDIED_DRAWS = ("uniform", "blend", "blend-lognormal", "blend-lognormal-async", "mean", "spread", "below", "two")


def variant_of(
    times: str, kind: str, compensation: bool = True, halfmixing: bool = False
) -> dict[str, tuple[str, str]]:
    """The variant of one draw of times: {name: (family, arguments)}."""
    name = f"{times}, {kind}" + ("" if compensation else ", no compensation") + (", half-mixed" if halfmixing else "")
    flags = f"--combostoc-type UNSYNC_{kind} --times {times_of_today(times)}" + (
        "" if compensation else " --compensation off"
    )
    return {name: ("ComboStoc", flags + (" --halfmixing on" if halfmixing else ""))}


PUBLISHED = {
    "SiT": ("SiT", ""),
    **{f"UNSYNC_{kind}": ("ComboStoc", f"--combostoc-type UNSYNC_{kind}") for kind in ("NONE", "VEC", "PATCH", "ALL")},
}
ALL = PUBLISHED["UNSYNC_ALL"][1]
LOGNORMAL = {"SiT, lognormal": ("SiT", "--times logit-normal")}

PARTS = {  # of structured shapes: the paper's Table 4
    f"UNSYNC_{kind}": ("Parts", f"--combostoc-type UNSYNC_{kind}")
    for kind in ("NONE", "PART", "ATT", "ATT_PART", "VEC", "ALL")
}

TABLES = {
    "types": PUBLISHED,
    "methods": {  # the paper's and its baseline; SiT with a better draw; the best draws per sample and per entry
        "SiT": PUBLISHED["SiT"],
        **LOGNORMAL,
        "UNSYNC_ALL": PUBLISHED["UNSYNC_ALL"],
        **variant_of("blend-lognormal", "NONE"),
        **variant_of("blend-lognormal-async", "ALL"),
    },
    "choices": {  # of UNSYNC_ALL; the paper has the first
        "UNSYNC_ALL": ("ComboStoc", ALL),
        "no compensation": ("ComboStoc", f"{ALL} --compensation off"),
        "blend a sample": ("ComboStoc", f"{ALL} --blend sample"),
        "no blend": ("ComboStoc", f"{ALL} --blend off"),
        "no half-mixing": ("ComboStoc", f"{ALL} --halfmixing off"),
        "no half-mixing, blend a sample": ("ComboStoc", f"{ALL} --halfmixing off --blend sample"),
        "no half-mixing, no blend": ("ComboStoc", f"{ALL} --halfmixing off --blend off"),
    },
    "parts": PARTS,
    "parts-blend": {f"{name}, blend": (family, f"{flags} --times blend") for name, (family, flags) in PARTS.items()},
    "times": {  # every draw
        **{name: variant for name, variant in PUBLISHED.items() if name != "UNSYNC_NONE"},
        **LOGNORMAL,
        **variant_of("blend-lognormal", "VEC"),
        **{
            name: variant
            for compensation in (True, False)
            for kind in ("ALL", "PATCH")
            for draw in STUDIED_DRAWS
            for name, variant in variant_of(draw, kind, compensation).items()
        },
    },
    "marginals": {  # one distribution of an entry's time, drawn once per sample, per position, and per entry
        "UNSYNC_NONE": PUBLISHED["UNSYNC_NONE"],  # uniform, as an entry's is by the draws uniform and two
        **variant_of("lognormal", "NONE"),
        **{
            name: variant
            for draw in ("uniform", "two", "blend", "blend-lognormal", "blend-lognormal-async", "spread", "below")
            for kind in ("NONE", "PATCH", "ALL")
            if kind != "NONE" or draw not in ("uniform", "two")
            for name, variant in variant_of(draw, kind, compensation=kind == "NONE").items()
        },
    },
    "best": {  # for other data
        "SiT": PUBLISHED["SiT"],
        **LOGNORMAL,
        "UNSYNC_ALL": PUBLISHED["UNSYNC_ALL"],
        **variant_of("lognormal", "NONE"),
        **variant_of("blend-lognormal", "NONE"),
        **variant_of("blend-lognormal", "ALL"),
        **variant_of("blend-lognormal-async", "ALL"),
        **variant_of("blend-lognormal", "ALL", halfmixing=True),
        **variant_of("blend-lognormal-async", "ALL", halfmixing=True),
    },
    "difficulty": {  # for look-ahead, experiments/samplers.py
        f"{name}, difficulty": (family, f"{flags} --difficulty 0.01")
        for name, (family, flags) in {
            "UNSYNC_ALL": PUBLISHED["UNSYNC_ALL"],
            **variant_of("blend-lognormal-async", "ALL"),
            **variant_of("blend-lognormal-async", "PATCH"),
        }.items()
    },
}
