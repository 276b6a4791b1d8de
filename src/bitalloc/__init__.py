"""Mixed-precision quantization of PyTorch models.

Describe a model, set a space of bit-widths, score and cost each choice, solve under a budget, apply the policy, train,
export and report. The names below are loaded when they are first used, so that importing bitalloc is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitalloc.budget import Budget
    from bitalloc.choices import first_last_pins, search_space
    from bitalloc.costs import BitOps, Costs, WeightBytes, load_table, resolve_budgets
    from bitalloc.coupling import couple, requantizations
    from bitalloc.errors import BitallocError
    from bitalloc.export import export_onnx, load_checkpoint, save_checkpoint, verify_onnx
    from bitalloc.export.deploy import deploy
    from bitalloc.layers import Description, LayerInfo
    from bitalloc.pipeline.allocate import Allocation, allocate
    from bitalloc.pipeline.finetune import Finetuned, FinetuneSettings, finetune
    from bitalloc.pipeline.recipe import load_recipe
    from bitalloc.pipeline.run import run_recipe
    from bitalloc.policy import Bits, Policy
    from bitalloc.quantizers import is_step_size
    from bitalloc.search import Problem, Solution, explain, frontier, solve, surface
    from bitalloc.sensitivity import Indicators, JointSettings, learned_scale_importance
    from bitalloc.space import Candidates, SearchSpace, Table
    from bitalloc.training import sgd_with_scales
    from bitalloc.wrap import QuantizerSettings, calibrate, float_state_dict, quantize
    from bitalloc.wrap.describe import describe
    from bitalloc.wrap.exported import describe_exported
    from bitalloc.wrap.fold import fold_batch_norms

__version__ = "0.1.0"

_HOMES = {
    "bitalloc.budget": ("Budget",),
    "bitalloc.choices": ("first_last_pins", "search_space"),
    "bitalloc.coupling": ("couple", "requantizations"),
    "bitalloc.costs": ("BitOps", "Costs", "WeightBytes", "load_table", "resolve_budgets"),
    "bitalloc.errors": ("BitallocError",),
    "bitalloc.export": ("deploy", "export_onnx", "load_checkpoint", "save_checkpoint", "verify_onnx"),
    "bitalloc.layers": ("Description", "LayerInfo"),
    "bitalloc.pipeline.allocate": ("Allocation", "allocate"),
    "bitalloc.pipeline.finetune": ("FinetuneSettings", "Finetuned", "finetune"),
    "bitalloc.pipeline.recipe": ("load_recipe",),
    "bitalloc.pipeline.run": ("run_recipe",),
    "bitalloc.policy": ("Bits", "Policy"),
    "bitalloc.quantizers": ("is_step_size",),
    "bitalloc.search": ("Problem", "Solution", "explain", "frontier", "solve", "surface"),
    "bitalloc.sensitivity": ("Indicators", "JointSettings", "learned_scale_importance"),
    "bitalloc.space": ("Candidates", "SearchSpace", "Table"),
    "bitalloc.training": ("sgd_with_scales",),
    "bitalloc.wrap": ("QuantizerSettings", "calibrate", "float_state_dict", "quantize"),
    "bitalloc.wrap.describe": ("describe",),
    "bitalloc.wrap.exported": ("describe_exported",),
    "bitalloc.wrap.fold": ("fold_batch_norms",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Allocation",
    "BitOps",
    "BitallocError",
    "Bits",
    "Budget",
    "Candidates",
    "Costs",
    "Description",
    "FinetuneSettings",
    "Finetuned",
    "Indicators",
    "JointSettings",
    "LayerInfo",
    "Policy",
    "Problem",
    "QuantizerSettings",
    "SearchSpace",
    "Solution",
    "Table",
    "WeightBytes",
    "__version__",
    "allocate",
    "calibrate",
    "couple",
    "deploy",
    "describe",
    "describe_exported",
    "explain",
    "export_onnx",
    "finetune",
    "first_last_pins",
    "float_state_dict",
    "fold_batch_norms",
    "frontier",
    "is_step_size",
    "learned_scale_importance",
    "load_checkpoint",
    "load_recipe",
    "load_table",
    "quantize",
    "requantizations",
    "resolve_budgets",
    "run_recipe",
    "save_checkpoint",
    "search_space",
    "sgd_with_scales",
    "solve",
    "surface",
    "verify_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
