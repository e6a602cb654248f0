"""The transformers: SiT and ComboStoc over images, Parts over the parts of shapes; and their sizes."""

from functools import partial
from typing import Any

from models.images import ComboStoc, SiT
from models.layers import Conditioning as Conditioning
from models.layers import PatchTimestepEmbedder as PatchTimestepEmbedder
from models.parts import Parts

SIZES = {
    #      depth  hidden_size  num_heads  patch sizes
    "XL": (28, 1152, 16, (2, 4, 8)),
    "L": (24, 1024, 16, (2, 4, 8)),
    "B": (12, 768, 12, (2, 4, 8)),
    "S": (12, 384, 6, (2, 4, 8)),
    "XS": (4, 96, 3, (2, 4)),  # for CPUs and tests
}


def _registry(family: type[SiT]) -> dict[str, Any]:
    """Constructors of a family of images, by name."""

    def constructor(depth: int, hidden_size: int, num_heads: int, patch_size: int) -> Any:
        def build(**kwargs: Any) -> SiT:
            return family(depth=depth, hidden_size=hidden_size, num_heads=num_heads, patch_size=patch_size, **kwargs)

        return build

    return {
        f"{family.__name__}-{size}/{patch_size}": constructor(depth, hidden_size, num_heads, patch_size)
        for size, (depth, hidden_size, num_heads, patch_sizes) in SIZES.items()
        for patch_size in patch_sizes
    }


SiT_models = _registry(SiT)
ComboStoc_models = _registry(ComboStoc)
Parts_models = {
    f"Parts-{size}": partial(Parts, depth=depth, hidden_size=hidden_size, num_heads=num_heads)
    for size, (depth, hidden_size, num_heads, _) in SIZES.items()
    if size in ("B", "S", "XS")
}

# The same by the names of the predecessors' functions.
SiT_XL_2, SiT_XL_4, SiT_XL_8 = (SiT_models[f"SiT-XL/{p}"] for p in (2, 4, 8))
SiT_L_2, SiT_L_4, SiT_L_8 = (SiT_models[f"SiT-L/{p}"] for p in (2, 4, 8))
SiT_B_2, SiT_B_4, SiT_B_8 = (SiT_models[f"SiT-B/{p}"] for p in (2, 4, 8))
SiT_S_2, SiT_S_4, SiT_S_8 = (SiT_models[f"SiT-S/{p}"] for p in (2, 4, 8))
ComboStoc_XL_2, ComboStoc_XL_4, ComboStoc_XL_8 = (ComboStoc_models[f"ComboStoc-XL/{p}"] for p in (2, 4, 8))
ComboStoc_L_2, ComboStoc_L_4, ComboStoc_L_8 = (ComboStoc_models[f"ComboStoc-L/{p}"] for p in (2, 4, 8))
ComboStoc_B_2, ComboStoc_B_4, ComboStoc_B_8 = (ComboStoc_models[f"ComboStoc-B/{p}"] for p in (2, 4, 8))
ComboStoc_S_2, ComboStoc_S_4, ComboStoc_S_8 = (ComboStoc_models[f"ComboStoc-S/{p}"] for p in (2, 4, 8))
