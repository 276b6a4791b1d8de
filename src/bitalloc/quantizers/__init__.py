"""Quantizers: one file a published method, and the rounding primitive they share."""

from bitalloc.quantizers.base import Quantizer
from bitalloc.quantizers.choice import FakeQuantizeMode, use_fake_quantize
from bitalloc.quantizers.grid import InputGrid
from bitalloc.quantizers.lsq import LSQ, ActGradient, InputLSQ, WeightLSQ, is_step_size
from bitalloc.quantizers.pact import InputPACT, WeightPACT, is_clip_range, straight_through
from bitalloc.quantizers.recompute import computed_again
from bitalloc.quantizers.rounding import MIN_STEP, bounds, fake_quantize, positive
from bitalloc.quantizers.weight_cache import cached_weights

__all__ = [
    "LSQ",
    "MIN_STEP",
    "ActGradient",
    "FakeQuantizeMode",
    "InputGrid",
    "InputLSQ",
    "InputPACT",
    "Quantizer",
    "WeightLSQ",
    "WeightPACT",
    "bounds",
    "cached_weights",
    "computed_again",
    "fake_quantize",
    "is_clip_range",
    "is_step_size",
    "positive",
    "straight_through",
    "use_fake_quantize",
]
