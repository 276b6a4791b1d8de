"""Quantizers: one file a published method, and the rounding primitive they share."""

from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.choice import FakeQuantizeMode, use_fake_quantize
from bitalloc.quantizers.grid import InputGrid
from bitalloc.quantizers.lsq import LSQ, ActGradient, InputLSQ, WeightLSQ, is_step_size
from bitalloc.quantizers.rounding import MIN_STEP, bounds, fake_quantize, positive

__all__ = [
    "LSQ",
    "MIN_STEP",
    "ActGradient",
    "FakeQuantizeMode",
    "InputGrid",
    "InputLSQ",
    "Quantizer",
    "WeightLSQ",
    "bounds",
    "fake_quantize",
    "is_step_size",
    "positive",
    "use_fake_quantize",
]
