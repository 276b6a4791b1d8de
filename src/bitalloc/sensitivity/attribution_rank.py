"""Attribution rank: how far one narrow layer moves what the network looks at.

Wang et al., "Generalizable Mixed-Precision Quantization via Attribution Rank Preservation", ICCV 2021, arXiv 2108.02720, keep the
order of the attribution of a whole policy; here it is measured for one layer at a time, so that an exact allocation can use it
without a supernet. What transfers between data sets is where a network looks, rather than its classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitalloc.attribution import Attribution, GradCAM, frozen, spearman_distance
from bitalloc.errors import TrainingError
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.sensitivity.probing import damage_of_narrowing
from bitalloc.space import SearchSpace
from bitalloc.training import Progress, Silent
from bitalloc.training.batches import inputs_of

Maps = list[tuple[Tensor, ...]]


def attribution_rank_damage(
    model: nn.Module,
    space: SearchSpace,
    batches: Sequence[Any],
    *,
    attribution: Attribution | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] = spearman_distance,
    progress: Progress | None = None,
) -> Indicators:
    """Mean rank distance of the attribution, for every free layer, side and width, the others staying at their widest.

    Shared quantizers and batch norms are treated as in :func:`~bitalloc.sensitivity.output_divergence`. Each map is that of the class
    which the network then predicts, as in GMPQ: a changed prediction counts as well.

    Args:
        model: from :func:`~bitalloc.wrap.prepare_joint`, calibrated; jointly trained or not. Layers without a choice stay at their
            active widths. Its widths, modes and state are put back.
        space: the candidates of every layer.
        batches: some hundred images, or tuples that begin with them, on the model's device, at least two in a batch; gone through
            once for each probe.
        attribution: default :class:`~bitalloc.attribution.GradCAM` at the last feature map.
        distance: ``distance(widest, narrowed)`` of two batches of maps gives one number a sample; default ``1 - rho`` of
            Spearman. ``PowerRanking(FixedPower(1)).distance`` is the published squared difference.
        progress: where to show progress; nowhere by default.

    Returns:
        Indicators in units of ``distance``, the mean over images and layers of the attribution; 0 at the widest candidates, lower is
        better.

    Raises:
        SpaceError: no layer has a choice.
        TrainingError: there is no batch, no feature map or no logits, or a map is not finite.
    """
    if not batches:
        raise TrainingError("there is no batch to measure attributions on: pass at least one.")
    found = (attribution or GradCAM()).resolved(model, inputs_of(batches[0]))
    return damage_of_narrowing(
        model,
        space,
        partial(_maps, model, batches, found),
        partial(_mean_distance, distance),
        {"method": "attribution rank", "attribution": type(found).__name__, "batches": len(batches)},
        progress or Silent(),
    )


def _maps(model: nn.Module, batches: Sequence[Any], attribution: Attribution) -> Maps:
    with frozen(model):  # the modes are chosen outside
        return [tuple(each.detach() for each in attribution.attribute(model, inputs_of(batch)).maps) for batch in batches]


def _mean_distance(distance: Callable[[Tensor, Tensor], Tensor], widest: Maps, narrowed: Maps) -> float:
    """NaN where a map is not finite."""
    total, count = 0.0, 0
    for left, right in zip(widest, narrowed, strict=True):
        for a, b in zip(left, right, strict=True):
            if not bool(a.isfinite().all() and b.isfinite().all()):
                return float("nan")
            total, count = total + float(distance(a, b).sum()), count + len(a)
    return total / count
