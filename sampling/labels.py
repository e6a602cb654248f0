"""Class labels of samples: as they are given on the command line, or chosen."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

from runtime.errors import UsageError
from sampling.arguments import NULL
from sampling.network import Network

# The classes that SiT's sample.py shows: golden retriever, otter, red panda, geyser, ...
IMAGENET_LABELS = [207, 360, 387, 974, 88, 979, 417, 279]


def class_labels(words: Iterable[str], network: Network) -> list[int]:
    """The labels that words of the command line name: numbers, names of classes, or the word for no class.

    Raises:
        UsageError: the model has no such class.
    """
    names = {unicodedata.normalize("NFC", name): k for k, name in enumerate(network.class_names or [])}
    null = network.config.num_classes
    accepted = f"the model has 0 to {null - 1}, {NULL}"
    labels = []
    for word in words:
        name = unicodedata.normalize("NFC", word)
        if word == NULL:
            k = null
        elif re.fullmatch(r"[+-]?\d+", word):  # also where a class that has this name is another
            k = int(word)
            if not 0 <= k < null:
                raise UsageError(f"class label {k} is out of range: {accepted}")
        elif name in names:
            k = names[name]
        else:
            near = difflib.get_close_matches(name, names, n=3) or list(names)[:3]
            known = f", {len(names)} names such as {', '.join(near)}" if names else " and no names"
            raise UsageError(f"class label {word} is unknown: {accepted}{known}")
        labels.append(k)
    return labels


def default_labels(num_classes: int) -> list[int]:
    """The labels of a grid when none are given.

    SiT's eight ImageNet classes; otherwise up to ten classes spread over all, four times each.
    """
    if num_classes == 1000:
        return IMAGENET_LABELS
    spread = sorted({round(k * (num_classes - 1) / 9) for k in range(10)})
    return spread * 4
