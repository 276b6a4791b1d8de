"""Describing somebody's model and swapping its layers: the only part that knows how to change a model."""

from bitalloc.wrap.batchnorm import SwitchableBatchNorm, branch_of, uniform_passes
from bitalloc.wrap.calibrate import calibrate, run_on_inputs
from bitalloc.wrap.convert import QuantizerSettings
from bitalloc.wrap.float_state import float_state_dict
from bitalloc.wrap.functional import QuantizedParameter
from bitalloc.wrap.inherit import inherit
from bitalloc.wrap.layers import QuantizedLayer
from bitalloc.wrap.quantize import check_policy, prepare_joint, quantize, quantized_layers
from bitalloc.wrap.step_sizes import StepSizeFinding, StepSizes, broken_step_sizes, step_size_report, step_sizes
from bitalloc.wrap.switch import Switch, active_bits, switch

__all__ = [
    "QuantizedLayer",
    "QuantizedParameter",
    "QuantizerSettings",
    "StepSizeFinding",
    "StepSizes",
    "Switch",
    "SwitchableBatchNorm",
    "active_bits",
    "branch_of",
    "broken_step_sizes",
    "calibrate",
    "check_policy",
    "float_state_dict",
    "inherit",
    "prepare_joint",
    "quantize",
    "quantized_layers",
    "run_on_inputs",
    "step_size_report",
    "step_sizes",
    "switch",
    "uniform_passes",
]
