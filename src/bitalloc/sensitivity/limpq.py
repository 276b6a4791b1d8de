"""LIMPQ: learned step sizes as importance indicators, from one joint training at all candidate widths.

Tang et al., "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022, arXiv 2203.08368, section 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from bitalloc.errors import SpaceError
from bitalloc.layers import Description
from bitalloc.policy import FLOAT
from bitalloc.quantizers import LSQ, is_step_size, positive
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.sensitivity.joint_settings import JointSettings
from bitalloc.sensitivity.joint_step import Forward, JointStep
from bitalloc.sensitivity.joint_widths import joint_passes, widths_in_float
from bitalloc.space import SearchSpace
from bitalloc.training import (
    CheckpointConfig,
    Engine,
    FitResult,
    Journal,
    LossFunction,
    NoJournal,
    Progress,
    Retry,
    Silent,
    WarmupCosine,
    agree_on_model,
    fit,
    sgd_with_scales,
)
from bitalloc.wrap import (
    StepSizeFinding,
    StepSizes,
    broken_step_sizes,
    calibrate,
    prepare_joint,
    quantized_layers,
    run_on_inputs,
    step_size_report,
    step_sizes,
    switch,
)
from bitalloc.wrap.trace import BATCH_NORMS


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the joint training gives.

    Attributes:
        indicators: step size of every layer, side and candidate width.
        model: the jointly trained model, switchable to every choice.
        losses: mean loss over the passes, one a step.
        seconds: wall-clock time of the training.
        images: seen, repetitions counted.
        retries: how often the training diverged and went back, see :class:`~bitalloc.training.Engine`.
        parts: that a batch was split into at the end.
        findings: step sizes of free layers that the training did not do well, see :func:`~bitalloc.wrap.step_size_report`.
    """

    indicators: Indicators
    model: nn.Module
    losses: tuple[float, ...]
    seconds: float
    images: int = 0
    retries: tuple[Retry, ...] = ()
    parts: int = 1
    findings: tuple[StepSizeFinding, ...] = ()


def learned_scale_importance(
    model: nn.Module,
    description: Description,
    space: SearchSpace,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    steps: int,
    calibration: Iterable[Any],
    forward: Forward = run_on_inputs,
    settings: JointSettings | None = None,
    engine: Engine | None = None,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Measurement:
    """Trains a copy of ``model`` jointly at all candidate widths and reads out its step sizes.

    Args:
        model: the float model; it stays as it is.
        description: of ``model``, see :func:`~bitalloc.wrap.describe`.
        space: the candidates of every layer.
        loader: training batches; it is iterated again until ``steps`` are done.
        loss_fn: ``loss_fn(model, batch)`` gives a scalar tensor.
        steps: optimiser steps; 3 to 5 epochs are published, half an epoch already ranks the layers. 0 gives the initial step sizes,
            the cheapest baseline.
        calibration: a few batches for the activation quantizers.
        forward: ``forward(model, batch)`` gives the logits, classes in dimension 1; used for calibration and for self-distillation.
        settings: see :class:`JointSettings`.
        engine: see :class:`~bitalloc.training.Engine`; float32 by default. It is never compiled, because the widths change at every pass.
        checkpoint: where and how often to save, for a resumable run.
        progress: where to show progress; nowhere by default.
        journal: what is told of the training's steps; nothing by default.

    Raises:
        SpaceError: no layer has a choice.
        PolicyError: the space belongs to another model.
        TrainingError: the loader is empty, a loss is not finite, or ``widths_per_step`` is more than there are uniform passes.
    """
    settings = settings or JointSettings()
    if not space.free:
        raise SpaceError("every layer has one candidate only: there is nothing to measure. Give at least two bit-widths.")
    joint = prepare_joint(model, space, description, settings.quantizers)
    batches = iter(calibration)
    first = list(islice(batches, 1))
    calibrate(joint, chain(first, batches), forward)
    agree_on_model(joint)
    if settings.freeze_weights:
        _freeze_weights(joint)
    start = step_sizes(joint)
    result = _train(joint, space, loader, loss_fn, steps, forward, settings, engine or Engine(), checkpoint, progress or Silent(), journal)
    provenance = {"method": "limpq", "steps": steps, **asdict(settings)}
    indicators = read_indicators(joint, space, provenance)
    findings = _findings(joint, space, start, first, forward, settings) if steps else ()
    return Measurement(indicators, joint, result.losses, result.seconds, result.images, result.retries, result.parts, findings)


def read_indicators(joint: nn.Module, space: SearchSpace, provenance: Mapping[str, Any]) -> Indicators:
    """The step sizes of every free layer by width; the mean over channels where there is one a channel."""
    layers = quantized_layers(joint)
    weight = {name: _row(layers[name].weight_quantizer, space.candidates[name].weight) for name in space.free}
    act = {name: _row(layers[name].input_quantizer, space.candidates[name].act) for name in space.free}
    return Indicators(weight, act, provenance)


def _findings(
    joint: nn.Module, space: SearchSpace, start: StepSizes, batches: Iterable[Any], forward: Forward, settings: JointSettings
) -> tuple[StepSizeFinding, ...]:
    """Of the free layers, on activations of the widest pass."""
    pinned = widths_in_float(space) if settings.pinned_in_float else space.pinned
    switch(joint, {**pinned, **joint_passes({name: space.candidates[name] for name in space.free})[0]})
    return step_size_report(joint, start, batches, forward, space.free)


def _freeze_weights(joint: nn.Module) -> None:
    for module in joint.modules():
        if not isinstance(module, (LSQ, *BATCH_NORMS)):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _train(
    joint: nn.Module,
    space: SearchSpace,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    steps: int,
    forward: Forward,
    settings: JointSettings,
    engine: Engine,
    checkpoint: CheckpointConfig | None,
    progress: Progress,
    journal: Journal | None,
) -> FitResult:
    if steps == 0:
        return FitResult((), 0, 0, 0.0)
    torch.manual_seed(settings.seed)
    return fit(
        joint,
        loader,
        # Spread weights are there in the pass that they are gathered for.
        step=JointStep(space, loss_fn, settings if engine.sharding == "none" else replace(settings, share_stem=False), forward),
        optimizer=sgd_with_scales(
            joint, settings.learning_rate, settings.step_size_rate, is_step_size, settings.momentum, settings.weight_decay
        ),
        schedule=WarmupCosine(settings.learning_rate, steps, final=settings.final_learning_rate),
        total_steps=steps,
        clip_value=settings.clip_value,
        engine=replace(engine, compile=False),
        explain=broken_step_sizes,
        checkpoint=checkpoint,
        progress=progress,
        journal=journal or NoJournal(),
        name="joint training",
    )


def _row(quantizer: LSQ, widths: tuple[int, ...]) -> dict[int, float]:
    # A tensor that is not quantized suffers nothing.
    return {bits: 0.0 if bits == FLOAT else float(positive(quantizer.raw_step(bits)).detach().mean()) for bits in widths}
