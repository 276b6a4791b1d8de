"""Putting modules in the place of others."""

from collections.abc import Mapping

from torch import nn

from bitalloc.wrap import SwitchableBatchNorm


def without_switches(model: nn.Module) -> nn.Module:
    """Replaces every switchable batch norm in ``model`` by its active branch; returns the model."""
    switches = {module: module.branches[module.active] for module in model.modules() if isinstance(module, SwitchableBatchNorm)}
    return replace_modules(model, dict(switches.items()))


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts new modules in the place of old ones, wherever they occur; returns the model, which may itself be a replacement."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)
