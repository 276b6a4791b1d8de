"""Metrics: each measures how much a layer suffers at a width, one file a published method.

The indicators are plain numbers; PyTorch is loaded only for measuring them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitalloc.sensitivity.indicators import Alpha, Change, Indicators

if TYPE_CHECKING:
    from bitalloc.sensitivity.attribution_rank import attribution_rank_damage
    from bitalloc.sensitivity.divergence import output_divergence
    from bitalloc.sensitivity.joint_settings import JointSettings
    from bitalloc.sensitivity.joint_step import JointStep
    from bitalloc.sensitivity.joint_widths import widths_in_float
    from bitalloc.sensitivity.limpq import Measurement, learned_scale_importance

__all__ = [
    "Alpha",
    "Change",
    "Indicators",
    "JointSettings",
    "JointStep",
    "Measurement",
    "attribution_rank_damage",
    "learned_scale_importance",
    "output_divergence",
    "widths_in_float",
]


_HOME = {
    "attribution_rank_damage": "attribution_rank",
    "JointSettings": "joint_settings",
    "JointStep": "joint_step",
    "Measurement": "limpq",
    "learned_scale_importance": "limpq",
    "output_divergence": "divergence",
    "widths_in_float": "joint_widths",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
