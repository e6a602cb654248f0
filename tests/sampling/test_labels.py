import re
from types import SimpleNamespace

import pytest

from runtime.errors import UsageError
from sampling.labels import class_labels, default_labels


def test_default_labels():
    assert default_labels(1000) == [207, 360, 387, 974, 88, 979, 417, 279]
    assert default_labels(10) == list(range(10)) * 4
    assert default_labels(3) == [0, 1, 2] * 4
    assert default_labels(1) == [0] * 4
    assert len(default_labels(100)) == 40 and max(default_labels(100)) == 99


def network_of(num_classes: int, names: list[str] | None) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(num_classes=num_classes), class_names=names)


def test_class_labels_are_numbers_or_names():
    network = network_of(12, ["ant", "7", "chien e\u0301pagneul", "bee"])  # as macOS hands over é
    assert class_labels(["bee", "0", "chien épagneul", "ant", "11"], network) == [3, 0, 2, 0, 11]
    assert class_labels(["7"], network) == [7]  # a number is a label
    assert class_labels(["null"], network) == [12]
    assert class_labels(["3"], network_of(5, None)) == [3]
    for word, names, says in (
        ("bea", network.class_names, "bea is unknown: the model has 0 to 11, null, 4 names such as bee"),
        ("zzz", network.class_names, "zzz is unknown: the model has 0 to 11, null, 4 names such as ant, 7"),
        ("bee", None, "bee is unknown: the model has 0 to 11, null and no names"),
        ("-1", network.class_names, "-1 is out of range: the model has 0 to 11"),
        ("2.0", None, "2.0 is unknown"),
    ):
        with pytest.raises(UsageError, match=f"^class label {re.escape(says)}"):
            class_labels([word], network_of(12, names))
