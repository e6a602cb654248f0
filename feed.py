"""Batches on their way to the model: from the loader to the device, and from images or moments to latents."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def feed(
    batches: Iterator[tuple[Tensor, Tensor]], to_latents: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents and labels of each batch, on the device.

    On a GPU, copies and encoder run on a stream of their own. The host runs ahead of the GPU, so that they are at work
    beside the step before, and the step that needs them finds them done.

    Args:
        batches: pairs of tensors on the CPU, best in pinned memory.
        to_latents: encodes what was loaded, on the device.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for data, y in batches:
        with torch.cuda.stream(stream):  # does nothing for None
            x1 = to_latents(data.to(device, non_blocking=True))
            y = y.to(device, non_blocking=True)
        if stream is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_stream(stream)
            for tensor in (x1, y):
                tensor.record_stream(consumer)  # its memory is not reused before the consumer is done
        yield x1, y
