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
from bitalloc.wrap import active_bits, run_on_inputs, switch


def output_divergence(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Tensor] = run_on_inputs,
    progress: Progress | None = None,
) -> Indicators:
    """Mean KL divergence of the output, for every free layer, side and width, the others staying at their widest.

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
    widest = {name: space.candidates[name].pairs[0] for name in space.free}
    weight: dict[str, dict[int, float]] = {name: {bits.weight: 0.0} for name, bits in widest.items()}
    act: dict[str, dict[int, float]] = {name: {bits.act: 0.0} for name, bits in widest.items()}
    probes = [(name, bits) for name in space.free for bits in _probes(space, name)]
    try:
        with evaluating(model), _batch_statistics(model), progress.task("output divergence", len(probes)):
            switch(model, widest)
            reference = _log_probabilities(model, batches, forward)
            for name, bits in probes:
                switch(model, {name: bits}, branches=widest)
                found = _log_probabilities(model, batches, forward)
                switch(model, {name: widest[name]}, branches=widest)
                value = float(F.kl_div(found, reference, reduction="batchmean", log_target=True))
                side, width = (weight, bits.weight) if bits.act == widest[name].act else (act, bits.act)
                side[name][width] = _finite(value, name, bits)
                progress.advance(1)
    finally:
        switch(model, before)
    return Indicators(weight, act, {"method": "output divergence", "batches": len(batches)})


def _probes(space: SearchSpace, name: str) -> list[Bits]:
    candidates = space.candidates[name]
    widest = candidates.pairs[0]
    narrow_weights = [replace(widest, weight=width) for width in candidates.weight[1:]]
    return narrow_weights + [replace(widest, act=width) for width in candidates.act[1:]]


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
