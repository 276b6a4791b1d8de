"""Describing somebody's model and swapping its layers: the only part that knows how to change a model."""

from bitalloc.wrap.batchnorm import SwitchableBatchNorm, branch_of, uniform_passes
from bitalloc.wrap.calibrate import calibrate, run_on_inputs
from bitalloc.wrap.convert import QuantizerSettings
from bitalloc.wrap.float_state import float_state_dict
from bitalloc.wrap.functional import QuantizedParameter
from bitalloc.wrap.inherit import inherit
from bitalloc.wrap.layers import QuantizedLayer
from bitalloc.wrap.quantize import check_policy, prepare_joint, quantize, quantized_layers
from bitalloc.wrap.switch import active_bits, switch

__all__ = [
    "QuantizedLayer",
    "QuantizedParameter",
    "QuantizerSettings",
    "SwitchableBatchNorm",
    "active_bits",
    "branch_of",
    "calibrate",
    "check_policy",
    "float_state_dict",
    "inherit",
    "prepare_joint",
    "quantize",
    "quantized_layers",
    "run_on_inputs",
    "switch",
    "uniform_passes",
]
