"""Output divergence: how far one narrow layer moves the network's output.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv 2001.00281, equation 3: the sensitivity of a
layer at a width is the Kullback-Leibler divergence between the outputs of the network and of the network with this layer
alone at that width. Here weights and activations are probed apart, and the network may be the jointly trained one: it has
learned every width, so a probe shows what is left of the damage after training, not what rounding does to untrained weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bitalloc.errors import SpaceError, TrainingError
from bitalloc.policy import Bits
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.space import SearchSpace
from bitalloc.training import Progress, Silent, evaluating
from bitalloc.wrap import active_bits, quantized_layers, run_on_inputs, switch


def output_divergence(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Tensor] = run_on_inputs,
    progress: Progress | None = None,
) -> Indicators:
    """Mean KL divergence of the output, for every free layer, side and width, the others staying at their widest.

    Where several layers share a quantizer, it is narrowed for all of them at once, and each gets an equal share of the damage.

    Batch norms stay at the branch of the widest candidates and normalise by each batch's own statistics, so a shift that
    fine-tuning would take back does not count as damage, nor do the statistics of other widths.

    Args:
        model: from :func:`~bitalloc.wrap.prepare_joint`, calibrated; jointly trained, or not for the published metric without
            training. Layers without a choice stay at their active widths. Its widths, modes and state are put back.
        space: the candidates of every layer.
        batches: some hundred training samples without augmentation, on the model's device, at least two in a batch; gone through
            once for each probe.
        forward: ``forward(model, batch)`` gives logits, classes in the last dimension.
        progress: where to show progress; nowhere by default.

    Returns:
        Indicators in nats, 0 at the widest candidates, lower is better.

    Raises:
        SpaceError: no layer has a choice.
        TrainingError: there is no batch, or an output is not finite.
    """
    if not space.free:
        raise SpaceError("every layer has one candidate only: there is nothing to measure. Give at least two bit-widths.")
    if not batches:
        raise TrainingError("there is no batch to measure the divergence on: pass at least one.")
    progress = progress or Silent()
    before = active_bits(model)
    widest = {name: _widest(space, name) for name in space.free}
    weight: dict[str, dict[int, float]] = {name: {bits.weight: 0.0} for name, bits in widest.items()}
    act: dict[str, dict[int, float]] = {name: {bits.act: 0.0} for name, bits in widest.items()}
    probes = list(_probes(model, space))
    try:
        with evaluating(model), _batch_statistics(model), progress.task("output divergence", len(probes)):
            switch(model, widest)
            reference = _log_probabilities(model, batches, forward)
            for names, bits in probes:
                switch(model, {names[0]: bits}, branches=widest)
                found = _log_probabilities(model, batches, forward)
                switch(model, {names[0]: widest[names[0]]}, branches=widest)
                value = float(F.kl_div(found, reference, reduction="batchmean", log_target=True))
                narrowed_weight = bits.weight != widest[names[0]].weight
                for name in names:
                    share = _finite(value, names[0], bits) / len(names)
                    (weight if narrowed_weight else act)[name][bits.weight if narrowed_weight else bits.act] = share
                progress.advance(1)
    finally:
        switch(model, before)
    return Indicators(weight, act, {"method": "output divergence", "batches": len(batches)})


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


@torch.no_grad()
def _log_probabilities(model: nn.Module, batches: Sequence[Any], forward: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    outputs = [F.log_softmax(forward(model, batch).double(), dim=-1).flatten(0, -2) for batch in batches]
    return torch.cat(outputs)


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
    # Rounding can make the divergence of equal outputs a hair negative.
    return max(value, 0.0)
