"""Taking out what only training needs."""

from torch import nn

from bitalloc.wrap import SwitchableBatchNorm
from bitalloc.wrap.fold import replace_modules


def without_switches(model: nn.Module) -> nn.Module:
    """Replaces every switchable batch norm in ``model`` by its active branch; returns the model."""
    switches = {module: module.branches[module.active] for module in model.modules() if isinstance(module, SwitchableBatchNorm)}
    return replace_modules(model, dict(switches.items()))
