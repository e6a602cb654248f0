"""Tables of measurements as CSV: rows are dataclasses of str, int, float and bool."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from runtime.errors import DataError
from runtime.files import replacing

Row = TypeVar("Row")
KINDS: dict[str, Callable[[str], object]] = {"str": str, "bool": lambda s: s == "True", "float": float, "int": int}


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of an earlier run, [] if there was none.

    Raises:
        DataError: it is another table.
    """
    if not path.is_file():
        return []
    kinds = {f.name: KINDS[getattr(f.type, "__name__", str(f.type))] for f in fields(kind)}  # type: ignore[arg-type]
    with open(path, newline="") as file:
        try:
            return [
                kind(**{name: kinds[name](value) for name, value in entry.items()}) for entry in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a table of this program: {error}") from None


def write_rows(rows: Sequence[Any], path: Path) -> None:
    """Write rows as CSV, fractions with five digits."""
    with replacing(path) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5f}" if isinstance(v, float) else v for k, v in asdict(row).items()})
