"""Output divergence: how far one narrow layer moves the network's output.

Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, arXiv 2001.00281, equation 3: the sensitivity of a
layer at a width is the Kullback-Leibler divergence between the outputs of the network and of the network with this layer
alone at that width. Here weights and activations are probed apart, and the network may be the jointly trained one: it has
learned every width, so a probe shows what is left of the damage after training, not what rounding does to untrained weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import TrainingError
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.sensitivity.probing import damage_of_narrowing
from bitalloc.space import SearchSpace
from bitalloc.training import Progress, Silent
from bitalloc.wrap import run_on_inputs


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
    if not batches:
        raise TrainingError("there is no batch to measure the divergence on: pass at least one.")
    return damage_of_narrowing(
        model,
        space,
        partial(_log_probabilities, model, batches, forward),
        _divergence,
        {"method": "output divergence", "batches": len(batches)},
        progress or Silent(),
    )


def _divergence(widest: Tensor, narrowed: Tensor) -> float:
    return float(F.kl_div(narrowed, widest, reduction="batchmean", log_target=True))


@torch.no_grad()
def _log_probabilities(model: nn.Module, batches: Sequence[Any], forward: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    outputs = [F.log_softmax(forward(model, batch).double(), dim=-1).flatten(0, -2) for batch in batches]
    return torch.cat(outputs)
