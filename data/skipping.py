"""Images that cannot be read: the next readable one takes their place, up to an allowed number."""

from collections.abc import Collection

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.images import UnreadableImage
from data.order import Key
from data.sets import Items
from runtime.errors import DataError


class Skipping(Dataset[tuple[Tensor, int, dict[int, str]]]):
    """A data set in which the next readable item takes the place of one that cannot be read.

    An item comes with the reasons of those that could not be read in its place, by index. Which item takes the place
    depends on the files alone, so that a continued run sees the same.

    Raises:
        DataError: none of `LONGEST` items in a row can be read.
    """

    LONGEST = 1000

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, key: Key) -> tuple[Tensor, int, dict[int, str]]:
        start, mirror = key
        reasons: dict[int, str] = {}
        for k in range(min(len(self.items), self.LONGEST)):
            index = (start + k) % len(self.items)
            try:
                return *self.items[index, mirror], reasons
            except UnreadableImage as error:
                reasons[index] = str(error)
        raise DataError(f"{len(reasons)} images in a row cannot be read; the last: {reasons[index]}")


def collate(items: list[tuple[Tensor, int, dict[int, str]]]) -> tuple[Tensor, Tensor, dict[int, str]]:
    """A batch of items and labels, and the reasons of all that were skipped."""
    x, y = default_collate([item[:2] for item in items])
    return x, y, {k: v for *_, reasons in items for k, v in reasons.items()}


def allowed_bad_images(total: int, max_bad_images: float) -> int:
    """The number of images in a set of `total` that may be unreadable.

    That share of it; but one in a small set, unless the share is 0.
    """
    return max(int(max_bad_images * total), int(max_bad_images > 0))


def check_readable(
    reasons: Collection[str],
    total: int,
    max_bad_images: float,
    what: str = "images",
    flag: str = "--max-bad-images",
) -> None:
    """See that no more than the allowed share of images, or of what `what` names, are unreadable.

    Raises:
        DataError: more are.
    """
    if len(reasons) > allowed_bad_images(total, max_bad_images):
        *_, last = reasons
        raise DataError(
            f"{len(reasons):,} of {total:,} {what} cannot be read, more than {flag} {max_bad_images:g} allows; "
            f"the last: {last}"
        )
