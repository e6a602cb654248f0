"""The interface of a kind of data. Images are one (`sampling/images.py`), structured shapes another (`shapes/kind.py`).

A kind is a module that has all of these names; `kinds.py` lists the kinds, and nothing else knows how many there are.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.feed import Data, Space
from models import SiT
from runtime.distributed import Process
from runtime.state_dicts import StateDict
from sampling.control import Control
from sampling.files import Files
from sampling.monitor import Evaluator
from sampling.network import Network
from train_utils import ModelConfig
from transport import Attributes, Method


@dataclass
class Output:
    """The form of a model's output, and the way from it to files."""

    space: Space
    input_shape: tuple[int, ...]  # of the model: (C, H, W), or (L, F) for shapes
    image_size: int  # side of a picture in pixels
    vae: str | None  # value of --vae; None for shapes
    attributes: Attributes | None = None  # see `Transport`


@dataclass
class Trained:
    """A checkpoint that has been read."""

    source: str  # its name
    kind: "Kind"
    config: ModelConfig
    content: dict[str, Any]
    state: StateDict  # the weights
    args: dict[str, Any]  # what it says of its training


class Kind(Protocol):
    """One kind of data, from --data-path to files of samples and their measures."""

    # ---- names ----
    THINGS: str  # plural, for messages: images
    MODELS: Mapping[str, Callable[..., SiT]]  # constructors by name
    MODEL_NAMES: str  # for --help
    CFG_SCALE: float  # default guidance of pictures
    WITHOUT_EFFECT: frozenset[str]  # arguments of train.py that change nothing
    KEPT: tuple[str, ...]  # names beside the weights that sampling needs in a checkpoint
    EVALUATION_COLUMNS: tuple[str, ...]  # of evaluations.csv

    # ---- models and the method ----
    def usual_method(self, model: str, times: str | None = None) -> Method:
        """The default method of a model.

        Args:
            model: its name.
            times: the draw of times that is asked for, if one is.
        """
        ...

    def is_model(self, state: StateDict) -> bool:
        """Whether a state dict is that of a model of this kind."""
        ...

    def model_config(self, state: StateDict, source: str) -> ModelConfig:
        """The model of a state dict.

        Raises:
            DataError: it is none of `MODELS`.
        """
        ...

    def config_for(self, model: str, input_shape: tuple[int, ...], num_classes: int) -> ModelConfig:
        """The model of a name, to be trained on inputs of a shape."""
        ...

    # ---- training ----
    def is_data(self, data_path: str) -> bool:
        """Whether --data-path is of this kind, by its name."""
        ...

    def check_path(self, data_path: str) -> None:
        """See quickly that --data-path can be read.

        Raises:
            DataError: it does not exist, or holds something else.
        """
        ...

    def supply(self, args: argparse.Namespace, typed: set[str]) -> dict[str, Any]:
        """The arguments of train.py that the data bring, by name, unless they were typed."""
        ...

    def training_defaults(self, args: argparse.Namespace) -> dict[str, Any]:
        """The defaults of train.py's arguments that depend on the kind, by name.

        Raises:
            UsageError: an argument is not for this kind.
        """
        ...

    def check_start(self, found: ModelConfig, args: argparse.Namespace, source: str) -> None:
        """See that the arguments fit the model of the checkpoint that is continued.

        Raises:
            UsageError: they do not.
        """
        ...

    def load_data(
        self, args: argparse.Namespace, process: Process, found: ModelConfig | None, saved: dict[str, Any], source: str
    ) -> Data:
        """The training set of --data-path.

        Args:
            found, saved, source: model, content and name of the checkpoint that is continued; None, {} and "" without.
        """
        ...

    def evaluator(self, args: argparse.Namespace, process: Process, data: Data) -> Evaluator:
        """The judge of samples during training (--eval-every)."""
        ...

    # ---- sampling ----
    def load_output(self, args: argparse.Namespace, trained: Trained, default_vae: str, device: torch.device) -> Output:
        """The output of a checkpoint's model.

        Raises:
            UsageError: an argument contradicts the checkpoint.
            DataError: something is missing in it, or cannot be loaded.
        """
        ...

    def check_sampling(self, args: argparse.Namespace, network: Network) -> None:
        """See that the arguments of sample.py are for this kind.

        Raises:
            UsageError: one is for another.
        """
        ...

    def without_effect_in_sampling(self, args: argparse.Namespace) -> Iterable[tuple[bool, str, tuple[str, ...]]]:
        """Rules of `ignore_what_has_no_effect`: whether one applies, why, and to which arguments."""
        ...

    def pictures(self, x: Tensor, space: Space, size: int | None = None) -> np.ndarray:
        """Decoded samples as pictures: (N, S, S, 3) uint8.

        Raises:
            FloatingPointError: a sample is not finite.
        """
        ...

    def write_besides(self, args: argparse.Namespace, x: np.ndarray | Tensor, network: Network) -> None:
        """Write the files that the arguments of sample.py ask for beside the picture, and print their names."""
        ...

    def files(self, network: Network) -> Files:
        """The way in which sample_ddp.py writes, checks and packs samples."""
        ...

    # ---- graded control ----
    def is_reference(self, word: str) -> bool:
        """Whether a word of --reference names something of this kind that exists."""
        ...

    def load_control(self, args: argparse.Namespace, network: Network) -> Control:
        """The references of graded control, and how much of them is kept.

        Raises:
            UsageError, DataError: a reference or a map cannot be used.
        """
        ...

    # ---- evaluate.py ----
    def is_set(self, name: str) -> bool:
        """Whether a SAMPLES or REFERENCE of evaluate.py is of this kind, by its content."""
        ...

    def evaluate(self, args: argparse.Namespace, process: Process) -> None:
        """Print the numbers of samples against a reference."""
        ...
