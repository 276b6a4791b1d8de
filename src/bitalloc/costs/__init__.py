"""What a choice of bit-widths costs: one file a cost, each gives a :class:`~bitalloc.space.Table`."""

from bitalloc.costs.base import Cost
from bitalloc.costs.bitops import BitOps
from bitalloc.costs.budgets import resolve_budgets, uniform_bits_of
from bitalloc.costs.weight_bytes import WeightBytes

__all__ = ["BitOps", "Cost", "WeightBytes", "resolve_budgets", "uniform_bits_of"]
