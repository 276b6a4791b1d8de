"""Differentiable search of bit-widths: a supernet is trained with its architecture logits, under budgets.

Wang et al., "Generalizable Mixed-Precision Quantization via Attribution Rank Preservation", ICCV 2021, arXiv 2108.02720. Without the
attribution term it is EdMIPS: Cai and Vasconcelos, "Rethinking Differentiable Search for Mixed-Precision Neural Networks", CVPR 2020,
arXiv 2004.05795.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bitalloc.budget import Budget
from bitalloc.errors import TrainingError
from bitalloc.layers import Description
from bitalloc.quantizers import is_clip_range, is_step_size
from bitalloc.space import SearchSpace
from bitalloc.supernet.choice import is_architecture_logit
from bitalloc.supernet.controller import Controller, DualAscent
from bitalloc.supernet.dry_run import dry_run
from bitalloc.supernet.groups import SIDES, Side
from bitalloc.supernet.log_probabilities import LogProbabilities
from bitalloc.supernet.mixture import Mixture
from bitalloc.supernet.prepare import prepare_supernet, quantizer_of, space_of
from bitalloc.supernet.settings import SearchSettings
from bitalloc.supernet.step import SearchStep, Term, check_reachable
from bitalloc.supernet.trace import Trace
from bitalloc.training import (
    CheckpointConfig,
    Engine,
    Journal,
    LossFunction,
    NoJournal,
    Progress,
    Retry,
    Silent,
    StepDecay,
    agree_on_model,
    device,
    fit,
    sgd_with_scales,
)
from bitalloc.wrap import (
    StepSizeFinding,
    broken_step_sizes,
    calibrate,
    quantized_layers,
    run_on_inputs,
    step_size_report,
    step_sizes,
)


@dataclass(frozen=True, slots=True)
class SupernetResult:
    """What a search gives. The policy comes from the exact solve over ``log_probabilities.scores(space)`` under the budgets.

    Attributes:
        log_probabilities: of every layer, side and width.
        trace: expected costs, prices and entropy, step by step.
        expected: the expected cost of every budget at the end, in its unit.
        supernet: as it was trained.
        losses: loss with the attribution term, one a step; the prices are not in it.
        seconds: wall-clock time of the training.
        images: seen, repetitions counted.
        retries: how often the training diverged and went back, see :class:`~bitalloc.training.Engine`.
        parts: that a batch was split into at the end.
        findings: step sizes of free layers that the training did not do well, see :func:`~bitalloc.wrap.step_size_report`. Those of every
            candidate, on activations of the mixtures as they stood at the end. PACT has none: its weights learn nothing, and of its
            clipping ranges only those that broke are told, in the error of a search that diverges.
    """

    log_probabilities: LogProbabilities
    trace: Trace
    expected: tuple[float, ...]
    supernet: nn.Module
    losses: tuple[float, ...]
    seconds: float
    images: int
    retries: tuple[Retry, ...] = ()
    parts: int = 1
    findings: tuple[StepSizeFinding, ...] = ()


def supernet_search(
    model: nn.Module,
    description: Description,
    space: SearchSpace,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    steps: int,
    budgets: Sequence[Budget],
    calibration: Iterable[Any],
    attribution: Term | None = None,
    method: str | None = None,
    controller: Controller | None = None,
    forward: Callable[[nn.Module, Any], Any] = run_on_inputs,
    settings: SearchSettings | None = None,
    engine: Engine | None = None,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> SupernetResult:
    """Trains the supernet of ``model`` and reads out what it learned about every width.

    Before the training everything is done once on a few samples, see :func:`~bitalloc.supernet.dry_run.dry_run`.

    Args:
        model: the float model, pretrained or not; it stays as it is.
        description: of ``model``, see :func:`~bitalloc.wrap.describe`.
        space: the candidates of every layer.
        loader: training batches; it is iterated again until ``steps`` are done.
        loss_fn: ``loss_fn(model, batch)`` gives a scalar tensor.
        steps: optimiser steps.
        budgets: any additive ones, several at once; with none the loss alone decides.
        calibration: a few batches for the activation quantizers.
        attribution: ``attribution(supernet, batch)`` gives what is added to the loss (GMPQ); None searches without (EdMIPS). It may
            differentiate the supernet twice.
        method: name of the method in the provenance, by default ``gmpq`` with ``attribution`` and ``edmips`` without. Say ``gmpq`` where
            ``loss_fn`` has the term in it (:meth:`bitalloc.attribution.AttributionLoss.with_task`), which saves a forward pass a step.
        controller: steers the expected costs; :class:`DualAscent` by default. It is copied.
        forward: ``forward(model, batch)`` for calibration.
        settings: see :class:`SearchSettings`.
        engine: see :class:`~bitalloc.training.Engine`; float32 by default. It is never compiled: the mixtures recompute themselves.
        checkpoint: where and how often to save, for a resumable run.
        progress: where to show progress; nowhere by default.
        journal: what is told of the training's steps; nothing by default.

    Raises:
        SpaceError: no layer has a choice, tied layers have different candidates, or a budget's table lacks a choice.
        PolicyError: the space belongs to another model.
        InfeasibleError: a budget is below the smallest policy. Budgets that can be met one by one but not together are not found here, only
            by the solve afterwards. To know before hours are spent, solve for any score first, such as the cost of one of them:
            ``bitalloc.solve(bitalloc.Problem(space, budgets[0].table, tuple(budgets)))`` raises the same error. ``bitalloc run`` does so.
        DivergenceError: a TrainingError: loss, a gradient, a weight or a budget's price is not finite; it names the layer, and step sizes
            and clipping ranges that are out of range.
        TrainingError: the loader is empty, or the loss, the attribution term or a gradient is not finite before the search begins.
    """
    settings, engine = settings or SearchSettings(), engine or Engine()
    if steps < 1:
        raise TrainingError(f"the search has {steps} steps, expected at least 1.")
    supernet = prepare_supernet(model, space, description, settings.supernet)
    check_reachable(budgets, space)
    batches = iter(calibration)
    first = list(islice(batches, 1))
    calibrate(supernet, chain(first, batches), forward)
    supernet.to(device())
    agree_on_model(supernet)
    start = step_sizes(supernet)
    schedule = StepDecay(max(1, round(steps * settings.decay_after)), settings.decay)
    control = deepcopy(controller) if controller is not None else DualAscent()
    step = SearchStep(supernet, budgets, loss_fn, control, steps, settings.logit_clip, attribution)
    optimizer = _optimizer(supernet, settings)
    optimizer.register_step_pre_hook(step.steer)
    dry_run(supernet, loader, loss_fn, attribution, engine)
    torch.manual_seed(settings.seed)
    result = fit(
        supernet,
        loader,
        step=step,
        optimizer=optimizer,
        schedule=schedule,
        total_steps=steps,
        engine=replace(engine, compile=False),
        explain=broken_step_sizes,
        checkpoint=checkpoint,
        progress=progress or Silent(),
        journal=journal or NoJournal(),
        name="supernet search",
    )
    provenance = {
        "method": method or ("edmips" if attribution is None else "gmpq"),
        "steps": steps,
        "images": result.images,
        "seconds": result.seconds,
        "searched_budgets": [{"name": budget.name, "limit": budget.limit, "unit": budget.unit} for budget in budgets],
        **settings.to_json(),
    }
    return SupernetResult(
        read_log_probabilities(supernet, description, provenance),
        step.trace(),
        step.expected(),
        supernet,
        result.losses,
        result.seconds,
        result.images,
        result.retries,
        result.parts,
        step_size_report(supernet, start, first, forward, space.free),
    )


def read_log_probabilities(supernet: nn.Module, description: Description, provenance: Mapping[str, Any]) -> LogProbabilities:
    """``log softmax(alpha)`` of every mixture. Raises SpaceError if the model is no supernet."""
    layers = quantized_layers(supernet)
    rows: dict[Side, dict[str, dict[int, float]]] = {"weight": {}, "act": {}}
    for name in space_of(supernet).free:
        for side in SIDES:
            quantizer = quantizer_of(layers[name], side)
            if isinstance(quantizer, Mixture):
                values = quantizer.choice.architecture_logits.detach().double().log_softmax(0).tolist()
                rows[side][name] = dict(zip(quantizer.choice.widths, values, strict=True))
    shapes = {layer.name: layer.weight_shape for layer in description.layers}
    return LogProbabilities(rows["weight"], rows["act"], shapes, description.last, dict(provenance))


def _optimizer(supernet: nn.Module, settings: SearchSettings) -> Optimizer:
    """SGD for weights, with scales by shares of themselves, and a group of its own for the logits."""
    optimizer = sgd_with_scales(
        supernet,
        settings.learning_rate,
        settings.scale_rate,
        lambda name, parameter: is_step_size(name, parameter) or is_clip_range(name, parameter),
        settings.momentum,
        settings.weight_decay,
    )
    logits = [parameter for name, parameter in supernet.named_parameters() if is_architecture_logit(name, parameter)]
    taken = {id(parameter) for parameter in logits}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
    optimizer.add_param_group({"params": logits, "lr": settings.logit_rate, "momentum": settings.momentum, "weight_decay": 0.0})
    return optimizer
