"""Metrics: each measures how much a layer suffers at a width, one file a published method.

The indicators are plain numbers; PyTorch is loaded only for measuring them.
"""

from typing import TYPE_CHECKING, Any

from bitalloc.sensitivity.indicators import Alpha, Change, Indicators

if TYPE_CHECKING:
    from bitalloc.sensitivity.divergence import output_divergence
    from bitalloc.sensitivity.limpq import JointSettings, JointStep, Measurement, learned_scale_importance, widths_in_float

__all__ = [
    "Alpha",
    "Change",
    "Indicators",
    "JointSettings",
    "JointStep",
    "Measurement",
    "learned_scale_importance",
    "output_divergence",
    "widths_in_float",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bitalloc.sensitivity import divergence, limpq

    return getattr(divergence if name == "output_divergence" else limpq, name)
