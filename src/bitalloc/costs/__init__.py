"""What a choice of bit-widths costs: one file a cost, each gives a :class:`~bitalloc.space.Table`."""

from bitalloc.costs.activation_bytes import ActivationBytes, activation_bytes, peak_activation_bytes
from bitalloc.costs.base import Cost
from bitalloc.costs.bitops import BitOps
from bitalloc.costs.budgets import BudgetSpec, Costs, resolve_budgets, uniform_bits_of
from bitalloc.costs.mean_bits import MeanActBits, MeanBits
from bitalloc.costs.model_bytes import ModelBytes
from bitalloc.costs.table_file import load_table
from bitalloc.costs.weight_bytes import WeightBytes

__all__ = [
    "ActivationBytes",
    "BitOps",
    "BudgetSpec",
    "Cost",
    "Costs",
    "MeanActBits",
    "MeanBits",
    "ModelBytes",
    "WeightBytes",
    "activation_bytes",
    "load_table",
    "peak_activation_bytes",
    "resolve_budgets",
    "uniform_bits_of",
]
