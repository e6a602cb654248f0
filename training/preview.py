"""Sample pictures during training."""

import argparse

import torch
from PIL import Image

from data.feed import Data
from data.pictures import columns_for, grid
from models import SiT
from sampling.kind import Kind
from sampling.network import ImageNoise, guided
from transport import Sampler, Transport

COUNT = 16  # in a preview


def preview(
    args: argparse.Namespace, kind: Kind, ema: SiT, transport: Transport, data: Data, device: torch.device
) -> Image.Image:
    """A grid of samples of the averaged weights by the default ODE, from the same noise every time.

    Raises:
        FloatingPointError: they are not finite.
    """
    assert data.autoencoder is not None
    class_names = data.dataset.class_names
    z = ImageNoise(args.global_seed, range(COUNT)).randn(data.input_shape, device)
    spread = [k * len(class_names) // COUNT for k in range(COUNT)]  # of many classes, evenly spaced ones
    labels = spread if len(class_names) > COUNT else [k % len(class_names) for k in range(COUNT)]
    model = guided(ema, args.cfg_scale, precision_name=args.precision)
    x = Sampler(transport).sample_ode()(z, model, y=torch.tensor(labels, device=device))[-1]
    return grid(
        kind.pictures(data.autoencoder.decode(x), data.autoencoder),
        [class_names[k] for k in labels],
        columns_for(labels),
    )
