"""Narrowing one layer at a time: what the metrics share that compare a network with itself.

Where several layers share a quantizer, it is narrowed for all of them at once, and each gets an equal share of the damage.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitalloc.errors import SpaceError, TrainingError
from bitalloc.policy import Bits
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.space import SearchSpace
from bitalloc.training import Progress, evaluating
from bitalloc.wrap import active_bits, quantized_layers, switch

Seen = TypeVar("Seen")


def damage_of_narrowing(
    model: nn.Module,
    space: SearchSpace,
    look: Callable[[], Seen],
    damage: Callable[[Seen, Seen], float],
    provenance: dict[str, Any],
    progress: Progress,
) -> Indicators:
    """For every free layer, side and width: how far what ``look`` gives is from what it gives at the widest candidates.

    Batch norms stay at the branch of the widest candidates and normalise by each batch's own statistics, so a shift that
    fine-tuning would take back does not count as damage, nor do the statistics of other widths. All else is in evaluation mode.

    Args:
        model: calibrated. Layers without a choice stay at their active widths. Its widths, modes and state are put back.
        space: the candidates of every layer.
        look: looks at the model as it is now.
        damage: ``damage(widest, narrowed)`` of two looks, 0 for equal ones.
        provenance: of the indicators; ``method`` names them in the progress.
        progress: advances by probes.

    Raises:
        SpaceError: no layer has a choice.
        TrainingError: a damage is not finite.
    """
    if not space.free:
        raise SpaceError("every layer has one candidate only: there is nothing to measure. Give at least two bit-widths.")
    before = active_bits(model)
    widest = {name: _widest(space, name) for name in space.free}
    weight: dict[str, dict[int, float]] = {name: {bits.weight: 0.0} for name, bits in widest.items()}
    act: dict[str, dict[int, float]] = {name: {bits.act: 0.0} for name, bits in widest.items()}
    probes = list(_probes(model, space))
    try:
        with evaluating(model), _batch_statistics(model), progress.task(provenance["method"], len(probes)):
            switch(model, widest)
            reference = look()
            for names, bits in probes:
                switch(model, {names[0]: bits}, branches=widest)
                found = look()
                switch(model, {names[0]: widest[names[0]]}, branches=widest)
                share = _finite(damage(reference, found), names[0], bits) / len(names)
                narrowed_weight = bits.weight != widest[names[0]].weight
                for name in names:
                    (weight if narrowed_weight else act)[name][bits.weight if narrowed_weight else bits.act] = share
                progress.advance(1)
    finally:
        switch(model, before)
    return Indicators(weight, act, provenance)


def _probes(model: nn.Module, space: SearchSpace) -> Iterator[tuple[tuple[str, ...], Bits]]:
    """The layers that share a quantizer, and widths with that quantizer alone narrowed."""
    for group in _sharing(model, space, "weight"):
        widest = _widest(space, group[0])
        yield from ((group, replace(widest, weight=width)) for width in space.candidates[group[0]].weight[1:])
    for group in _sharing(model, space, "act"):
        widest = _widest(space, group[0])
        yield from ((group, replace(widest, act=width)) for width in space.candidates[group[0]].act[1:])


def _widest(space: SearchSpace, name: str) -> Bits:
    return Bits(space.candidates[name].weight[0], space.candidates[name].act[0])


def _sharing(model: nn.Module, space: SearchSpace, side: str) -> list[tuple[str, ...]]:
    layers = quantized_layers(model)
    groups: dict[int, list[str]] = {}
    for name in space.free:
        if len(getattr(space.candidates[name], side)) > 1:
            quantizer = layers[name].weight_quantizer if side == "weight" else layers[name].input_quantizer
            groups.setdefault(id(quantizer), []).append(name)
    return [tuple(group) for group in groups.values()]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            # With momentum 0 the running statistics stay as they are; the counter is left out.
            norm.momentum, norm.num_batches_tracked = 0.0, None
            norm.train()
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def _finite(value: float, name: str, bits: Bits) -> float:
    if not math.isfinite(value):
        raise TrainingError(f"the output is not finite with layer {name} at {bits}: check the model and the data.")
    # Rounding can make the distance of equal outputs a hair negative.
    return max(value, 0.0)
