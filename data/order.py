"""The order in which training visits its data: a function of the seed and the epoch, from any step on."""

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from runtime.distributed import seed_for

Key = tuple[int, bool]  # (index of the image, whether to mirror it)


class BatchOrder(Sampler[list[Key]]):
    """This process's share of every global batch, without end, from any step on.

    The order of an epoch is a function of (seed, epoch) alone, so that a continued run sees what an uninterrupted one
    would, on any number of processes. Images that do not fill a last batch are left out of the epoch. The position of a
    run is one number, the images that it is past, those left out included: epoch * length + images past in the epoch's
    order. It keeps its meaning when the batch size changes. A set smaller than a batch fills it by several epochs, one
    behind the other, and the next batch goes on from there.

    Args:
        length: images in the data set, at least 1.
        global_batch_size: images per step, over all processes.
        rank, world_size: this process among them.
        seed: seed of the run.
        start_step: first step to yield.
        start: images that the run is past at start_step; by default, those that start_step steps of this batch size
            take.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        length: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start_step: int = 0,
        start: int | None = None,
        flip: bool = True,
    ) -> None:
        self.length = length
        self.global_batch_size = global_batch_size
        self.local_batch_size = global_batch_size // world_size
        self.rank = rank
        self.seed = seed
        self.flip = flip
        self.steps_per_epoch = length // global_batch_size  # 0: a batch takes several epochs
        self.start_step = start_step
        self.start = steps_to_images(start_step, length, global_batch_size) if start is None else start
        self.epoch, offset = divmod(self.start, length)
        self.steps_left = (length - offset) // global_batch_size  # of the epoch that is begun

    @property
    def pace(self) -> str:
        """The steps in an epoch, or epochs in a step, in words for the log."""
        if self.steps_per_epoch:
            return f"{self.steps_per_epoch} steps an epoch"
        epochs = self.global_batch_size / self.length
        return f"fewer than a batch of {self.global_batch_size}: {epochs:.1f} epochs a step"

    def images(self, step: int) -> int:
        """The images that the run is past before a step, counted from the run's beginning."""
        steps = step - self.start_step
        if steps < self.steps_left or not self.steps_per_epoch:
            return self.start + steps * self.global_batch_size
        later = steps_to_images(steps - self.steps_left, self.length, self.global_batch_size)
        return (self.epoch + 1) * self.length + later

    def last_step(self, epochs: int) -> int:
        """The step at which `epochs` passes over the data are done; it lies before start_step if they are done then."""
        if not self.steps_per_epoch:
            return self.start_step - (self.start - epochs * self.length) // self.global_batch_size  # rounded up
        return self.start_step + self.steps_left + (epochs - self.epoch - 1) * self.steps_per_epoch

    def __iter__(self) -> Iterator[list[Key]]:
        current = -1
        for step in itertools.count(self.start_step):
            place = self.images(step) + self.rank * self.local_batch_size
            keys: list[Key] = []
            while (missing := self.local_batch_size - len(keys)) > 0:
                epoch, offset = divmod(place + len(keys), self.length)
                if epoch != current:
                    current = epoch
                    generator = torch.Generator().manual_seed(seed_for(self.seed, "epoch", epoch))
                    order = torch.randperm(self.length, generator=generator)
                    mirror = torch.randint(2, (self.length,), generator=generator).bool() & self.flip
                mine = slice(offset, offset + missing)  # or as far as the epoch goes
                keys += zip(order[mine].tolist(), mirror[mine].tolist(), strict=True)
            yield keys


def steps_to_images(steps: int, length: int, global_batch_size: int) -> int:
    """The images that a run is past after `steps` steps from the beginning of an epoch, see `BatchOrder`."""
    if length < global_batch_size:
        return steps * global_batch_size
    epochs, rest = divmod(steps, length // global_batch_size)
    return epochs * length + rest * global_batch_size
