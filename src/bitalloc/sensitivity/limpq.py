"""LIMPQ: learned step sizes as importance indicators, from one joint training at all candidate widths.

Tang et al., "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022, arXiv 2203.08368, section 3.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.errors import SpaceError
from bitalloc.layers import Description
from bitalloc.policy import FLOAT, Bits
from bitalloc.quantizers import LSQ, is_step_size, positive
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.space import Candidates, SearchSpace
from bitalloc.training import (
    CheckpointConfig,
    Engine,
    FitResult,
    Progress,
    Silent,
    TrainStep,
    WarmupCosine,
    drop_unused_gradients,
    fit,
    loss_step,
    sgd_with_scales,
)
from bitalloc.wrap import QuantizerSettings, calibrate, prepare_joint, quantized_layers, run_on_inputs, switch, uniform_passes
from bitalloc.wrap.trace import BATCH_NORMS

LossFn = Callable[[nn.Module, Any], Tensor]
Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, slots=True)
class JointSettings:
    """How the joint training runs; the defaults are the published ones.

    Attributes:
        learning_rate: of SGD, annealed by a cosine to ``final_learning_rate``.
        final_learning_rate: at the last step.
        momentum: of SGD.
        weight_decay: of weights; step sizes, biases and batch norms have none, so that the decay does not bias the indicators.
        step_size_rate: largest share by which a step size changes in one optimiser step, see
            :class:`~bitalloc.training.SGDWithScales`. 0 trains step sizes by SGD like the weights, as published; the steps of
            wide weights then are unstable on small data and those of activations hardly leave their start (``docs/results.md``).
        clip_value: every gradient value is clipped to plus and minus this, after the passes are summed.
        self_distillation: the widest pass learns from the loss, the others from its detached soft output. Off as published.
        freeze_weights: only step sizes and batch norms learn.
        pinned_in_float: layers without a choice run in floating point meanwhile, as published.
        quantizers: see :class:`~bitalloc.wrap.QuantizerSettings`.
        seed: of the drawn widths; set before training starts.
    """

    learning_rate: float = 0.01
    final_learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 2.5e-5
    step_size_rate: float = 0.01
    clip_value: float = 1.0
    self_distillation: bool = False
    freeze_weights: bool = False
    pinned_in_float: bool = True
    quantizers: QuantizerSettings = field(default_factory=QuantizerSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the joint training gives.

    Attributes:
        indicators: step size of every layer, side and candidate width.
        model: the jointly trained model, switchable to every choice.
        losses: mean loss over the passes, one a step.
        seconds: wall-clock time of the training.
    """

    indicators: Indicators
    model: nn.Module
    losses: tuple[float, ...]
    seconds: float


class JointStep:
    """The forward and backward passes of one joint training step: |B| uniform passes and one mixed pass, gradients summed.

    The passes run from the widest to the narrowest candidate, then one with every layer's weight and activation width drawn
    at random and independently, so that layers at different widths meet.
    """

    def __init__(self, space: SearchSpace, loss_fn: LossFn, settings: JointSettings, forward: Forward = run_on_inputs) -> None:
        self._space = space
        self._pinned = widths_in_float(space) if settings.pinned_in_float else space.pinned
        self._free: Mapping[str, Candidates] = {name: space.candidates[name] for name in space.free}
        self._passes = joint_passes(self._free)
        self._learn, self._forward = loss_step(loss_fn), forward
        self._self_distillation = settings.self_distillation

    def __call__(self, model: nn.Module, batch: Any) -> float:
        """Leaves the summed gradients in ``.grad``; returns the mean loss over the passes."""
        step, losses = self._learn, []
        for bits in (*self._passes, _tied(draw(self._free), self._space)):
            switch(model, {**self._pinned, **bits})
            losses.append(step(model, batch))
            if self._self_distillation and step is self._learn:
                step = self._imitate(model, batch)
        drop_unused_gradients(model)
        return sum(losses) / len(losses)

    def _imitate(self, model: nn.Module, batch: Any) -> TrainStep:
        """The training step that learns from the soft output of ``model`` at its present widths."""
        with torch.no_grad():
            teacher = F.softmax(self._forward(model, batch), dim=1)
        return loss_step(lambda student, images: F.cross_entropy(self._forward(student, images), teacher))


def joint_passes(free: Mapping[str, Candidates]) -> tuple[dict[str, Bits], ...]:
    """The widths of every free layer in each uniform pass, from most to fewest bits.

    A layer with fewer candidates than others stays at its last ones.
    """
    passes = {name: uniform_passes(candidates) for name, candidates in free.items()}
    count = max(len(each) for each in passes.values())
    return tuple({name: each[min(index, len(each) - 1)] for name, each in passes.items()} for index in range(count))


def draw(free: Mapping[str, Candidates]) -> dict[str, Bits]:
    """Random widths, weights and activations apart, from PyTorch's generator, so that checkpoints replay them."""

    def pick(widths: tuple[int, ...]) -> int:
        return widths[int(torch.randint(len(widths), ()))]

    return {name: Bits(pick(c.weight), pick(c.act)) for name, c in free.items()}


def _tied(drawn: Mapping[str, Bits], space: SearchSpace) -> dict[str, Bits]:
    """The same with one width for tied layers, that of the first of them: they may have one quantizer."""
    bits = dict(drawn)
    for side, ties in (("weight", space.weight_ties), ("act", space.act_ties)):
        for group in ties:
            names = [name for name in group if name in bits]
            bits.update({name: replace(bits[name], **{side: getattr(bits[names[0]], side)}) for name in names})
    return bits


def widths_in_float(space: SearchSpace) -> dict[str, Bits]:
    """The pinned layers at 32 bits, but for a quantizer that they share with a layer that has a choice."""

    def shared(name: str, groups: tuple[tuple[str, ...], ...]) -> bool:
        return any(name in group and not set(space.free).isdisjoint(group) for group in groups)

    return {
        name: Bits(
            bits.weight if shared(name, space.weight_ties) else FLOAT,
            bits.act if shared(name, space.shared_inputs) else FLOAT,
        )
        for name, bits in space.pinned.items()
    }


def learned_scale_importance(
    model: nn.Module,
    description: Description,
    space: SearchSpace,
    loader: Iterable[Any],
    loss_fn: LossFn,
    *,
    steps: int,
    calibration: Iterable[Any],
    forward: Forward = run_on_inputs,
    settings: JointSettings | None = None,
    engine: Engine | None = None,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress | None = None,
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

    Raises:
        SpaceError: no layer has a choice.
        PolicyError: the space belongs to another model.
        TrainingError: the loader is empty, or a loss is not finite.
    """
    settings = settings or JointSettings()
    if not space.free:
        raise SpaceError("every layer has one candidate only: there is nothing to measure. Give at least two bit-widths.")
    joint = prepare_joint(model, space, description, settings.quantizers)
    calibrate(joint, calibration, forward)
    if settings.freeze_weights:
        _freeze_weights(joint)
    result = _train(joint, space, loader, loss_fn, steps, forward, settings, engine or Engine(), checkpoint, progress or Silent())
    provenance = {"method": "limpq", "steps": steps, **asdict(settings)}
    return Measurement(read_indicators(joint, space, provenance), joint, tuple(result.losses), result.seconds)


def read_indicators(joint: nn.Module, space: SearchSpace, provenance: Mapping[str, Any]) -> Indicators:
    """The step sizes of every free layer by width; the mean over channels where there is one a channel."""
    layers = quantized_layers(joint)
    weight = {name: _row(layers[name].weight_quantizer, space.candidates[name].weight) for name in space.free}
    act = {name: _row(layers[name].input_quantizer, space.candidates[name].act) for name in space.free}
    return Indicators(weight, act, provenance)


def _freeze_weights(joint: nn.Module) -> None:
    for module in joint.modules():
        if not isinstance(module, (LSQ, *BATCH_NORMS)):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _train(
    joint: nn.Module,
    space: SearchSpace,
    loader: Iterable[Any],
    loss_fn: LossFn,
    steps: int,
    forward: Forward,
    settings: JointSettings,
    engine: Engine,
    checkpoint: CheckpointConfig | None,
    progress: Progress,
) -> FitResult:
    if steps == 0:
        return FitResult((), 0, 0, 0.0)
    torch.manual_seed(settings.seed)
    return fit(
        joint,
        loader,
        step=JointStep(space, loss_fn, settings, forward),
        optimizer=sgd_with_scales(
            joint, settings.learning_rate, settings.step_size_rate, is_step_size, settings.momentum, settings.weight_decay
        ),
        schedule=WarmupCosine(settings.learning_rate, steps, final=settings.final_learning_rate),
        total_steps=steps,
        clip_value=settings.clip_value,
        engine=replace(engine, compile=False),
        checkpoint=checkpoint,
        progress=progress,
        name="joint training",
    )


def _row(quantizer: LSQ, widths: tuple[int, ...]) -> dict[int, float]:
    # A tensor that is not quantized suffers nothing.
    return {bits: 0.0 if bits == FLOAT else float(positive(quantizer.raw_step(bits)).detach().mean()) for bits in widths}
