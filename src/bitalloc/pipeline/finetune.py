"""Fine-tuning at the widths of a policy, as the main job does it; usable on its own with callbacks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.policy import Policy
from bitalloc.quantizers import cached_weights, is_step_size
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
    device,
    fit,
    loss_step,
    reestimate_batchnorm,
    sgd_with_scales,
)
from bitalloc.wrap import (
    QuantizerSettings,
    StepSizeFinding,
    broken_step_sizes,
    calibrate,
    inherit,
    quantize,
    run_on_inputs,
    step_size_report,
    step_sizes,
)


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How the fine-tuning runs.

    Attributes:
        learning_rate: of SGD after warm-up, annealed to 0 by a cosine; 0.04 as LIMPQ publishes it for ImageNet.
        warmup_steps: steps of linear warm-up.
        momentum: of SGD.
        weight_decay: of weights, as published; step sizes, biases and normalisations have none.
        step_size_rate: largest share by which a step size changes in one step, see :class:`~bitalloc.training.SGDWithScales`;
            0 trains the step sizes by SGD like the weights, as published.
        calibration_batches: batches that initialise the activation quantizers.
        batchnorm_images: training images that batch-norm statistics are estimated on anew at the end; 0 keeps the running ones.
        quantizers: see :class:`~bitalloc.wrap.QuantizerSettings`.
        seed: of PyTorch's generator, set before training.
    """

    learning_rate: float = 0.04
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 2.5e-5
    step_size_rate: float = 0.01
    calibration_batches: int = 8
    batchnorm_images: int = 4096
    quantizers: QuantizerSettings = field(default_factory=QuantizerSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A fine-tuned quantized model, and how it got there.

    Attributes:
        model: the quantized model, on the training device.
        losses: one a step.
        seconds: wall-clock time of the training.
        score: what ``eval_fn`` gave, or None without one.
        retries: how often the training diverged and went back, see :class:`~bitalloc.training.Engine`.
        parts: that a batch was split into at the end.
        findings: step sizes that the training did not do well, see :func:`~bitalloc.wrap.step_size_report`.
    """

    model: nn.Module
    losses: tuple[float, ...]
    seconds: float
    score: float | None
    retries: tuple[Retry, ...] = ()
    parts: int = 1
    findings: tuple[StepSizeFinding, ...] = ()


def finetune(
    model: nn.Module,
    policy: Policy,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    steps: int,
    calibration: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] = run_on_inputs,
    eval_fn: Callable[[nn.Module], float] | None = None,
    start_from: nn.Module | None = None,
    settings: FinetuneSettings | None = None,
    engine: Engine | None = None,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    name: str = "fine-tuning",
) -> Finetuned:
    """Quantizes ``model`` as ``policy`` says and trains the copy: LSQ with warm-up, cosine and batch-norm re-estimation.

    Args:
        model: the float model; it stays as it is.
        policy: widths by layer name.
        loader: training batches; it is iterated again until ``steps`` are done.
        loss_fn: ``loss_fn(model, batch)`` gives a scalar tensor.
        steps: optimiser steps; 0 calibrates and re-estimates batch norms only.
        calibration: training batches without augmentation; the first of them initialise the activation quantizers, as many as are
            needed re-estimate the batch norms. Iterated three times, so no generator.
        forward: ``forward(model, batch)`` runs the model on a calibration batch. Default :func:`~bitalloc.wrap.run_on_inputs`; batches
            that are dicts with labels need one of your own, for which ``loss_fn`` serves as well.
        eval_fn: ``eval_fn(model) -> float`` rates the result. Give it held-out training data, not the test data.
        start_from: the jointly trained model of a measurement; its weights and step sizes are taken instead of ``model``'s.
        settings: see :class:`FinetuneSettings`.
        engine: see :class:`~bitalloc.training.Engine`; float32 by default.
        checkpoint: where and how often to save, for a resumable run.
        progress: where to show progress; nowhere by default.
        journal: what is told of the training's steps; nothing by default.
        name: of the work in the progress and the journal.

    Raises:
        PolicyError: the policy belongs to another model.
        TrainingError: a loader is empty, ``calibration`` can be read only once, a loss is not finite, or a batch cannot be run without a
            ``forward`` of its own.
    """
    settings, progress = settings or FinetuneSettings(), progress or Silent()
    if isinstance(calibration, Iterator):  # said now, and not after the training
        raise TrainingError("calibration can be read only once, but is needed three times: give a list or a DataLoader, no generator.")
    quantized = quantize(model, policy, settings=settings.quantizers).to(device())
    calibrate(quantized, islice(calibration, settings.calibration_batches), forward)
    if start_from is not None:
        inherit(quantized, start_from)
    agree_on_model(quantized)
    start = step_sizes(quantized)
    result = _train(quantized, loader, loss_fn, steps, settings, engine or Engine(), checkpoint, progress, journal, name)
    if settings.batchnorm_images:
        with cached_weights():
            reestimate_batchnorm(quantized, calibration, settings.batchnorm_images, progress, forward=forward)
    score = None if eval_fn is None else float(eval_fn(quantized))
    # Last, as a loader that shuffles draws random numbers when it is read once more.
    findings = step_size_report(quantized, start, islice(calibration, 1), forward) if steps else ()
    return Finetuned(quantized, result.losses, result.seconds, score, result.retries, result.parts, findings)


def _train(
    quantized: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    steps: int,
    settings: FinetuneSettings,
    engine: Engine,
    checkpoint: CheckpointConfig | None,
    progress: Progress,
    journal: Journal | None,
    name: str,
) -> FitResult:
    if steps == 0:
        return FitResult((), 0, 0, 0.0)
    torch.manual_seed(settings.seed)
    rate = settings.learning_rate
    return fit(
        quantized,
        loader,
        step=loss_step(loss_fn),
        optimizer=sgd_with_scales(quantized, rate, settings.step_size_rate, is_step_size, settings.momentum, settings.weight_decay),
        schedule=WarmupCosine(rate, steps, min(settings.warmup_steps, steps)),
        total_steps=steps,
        engine=engine,
        explain=broken_step_sizes,
        checkpoint=checkpoint,
        progress=progress,
        journal=journal or NoJournal(),
        name=name,
    )
