"""The names that programs written for SiT import from `transport.transport`."""

from .names import ModelType, WeightType
from .path import PathType
from .sampler import Sampler
from .targets import Transport

__all__ = ["ModelType", "PathType", "Sampler", "Transport", "WeightType"]
