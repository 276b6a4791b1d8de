"""The training loop: counted in steps, resumed bit for bit, never saving weights that are not finite."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bitalloc.errors import TrainingError
from bitalloc.training.checkpoint import CheckpointConfig
from bitalloc.training.device import device, require_single_process
from bitalloc.training.engine import ENGINE, Engine
from bitalloc.training.interrupt import DeferredInterrupt
from bitalloc.training.modes import training_modes
from bitalloc.training.progress import SILENT, Progress
from bitalloc.training.run import Run, Saver
from bitalloc.training.schedule import Constant, Schedule
from bitalloc.training.steps import TrainStep
from bitalloc.training.stream import BatchStream, RandomAccess


@dataclass(frozen=True)
class FitResult:
    """What a training run did, sittings before a resume included."""

    losses: tuple[float, ...]  # one a step
    steps: int
    images: int  # images seen, repetitions counted
    seconds: float  # wall-clock time


def fit(
    model: nn.Module,
    loader: Iterable[Any] | RandomAccess,
    *,
    step: TrainStep,
    optimizer: Optimizer,
    total_steps: int,
    schedule: Schedule | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    engine: Engine = ENGINE,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress = SILENT,
    name: str = "train",
) -> FitResult:
    """Trains ``model`` in place for ``total_steps`` optimiser steps, going round ``loader`` as often as needed.

    A step: gradients emptied, ``step(model, batch)``, values clipped, norm clipped, rate set, optimiser step. If there is a
    checkpoint of the same run the training goes on from it and ends in the same bits as without the interruption, on the same
    machine with deterministic kernels (on the CPU they are).

    Args:
        model: moved to :func:`bitalloc.training.device`; trained in training mode; its modes are put back at the end.
        loader: anything that can be iterated again and again; ``set_epoch(epoch)`` is called if there is one, and
            ``batch(index)`` is used to resume without reading what is skipped. See :class:`BatchStream`.
        step: makes the gradients; ``loss_step(loss_fn)`` for the plain case.
        optimizer: over parameters of ``model``. Parameters whose gradient is None are left alone by it.
        total_steps: optimiser steps in all, those before a resume included; at least 1.
        schedule: learning rates. Default None keeps the optimiser's own.
        clip_value: every gradient element is clipped to [-clip_value, clip_value]. Default None, no clipping.
        clip_norm: the gradients are scaled down together to this 2-norm. Default None, no clipping.
        engine: precision, memory layout and compilation, see :class:`Engine`. Default: float32, nothing changed.
        checkpoint: where to save; also at the end and on Ctrl-C. Default None saves nothing.
        progress: what shows the progress. Default: nothing.
        name: the name of the work in the progress.

    Raises:
        TrainingError: empty loader, loss or weights not finite, no gradients, several processes, bad argument.
        FileError: a checkpoint cannot be written, is damaged or belongs to another run.
        KeyboardInterrupt: on Ctrl-C, after the current step and a checkpoint.
    """
    for label, value in (("total_steps", total_steps), ("clip_value", clip_value), ("clip_norm", clip_norm)):
        if value is not None and not value > 0:
            raise TrainingError(f"{label} is {value}, expected a positive number.")
    require_single_process()
    model.to(device())
    run = Run(model, BatchStream(loader), step, optimizer, schedule or Constant(), total_steps, clip_value, clip_norm, engine)
    saver = Saver(run, checkpoint)
    with training_modes(model), engine.prepared(model):
        saver.resume()
        model.train()
        with progress.task(name, total_steps, completed=run.done), DeferredInterrupt() as interrupt:
            while run.done < total_steps:
                run.advance()
                progress.advance(1, loss=run.losses[-1], rate=optimizer.param_groups[0]["lr"])
                if interrupt.pending:
                    saver.save()
                    raise KeyboardInterrupt
                saver.save_if_due()
            saver.save()
    return FitResult(tuple(run.losses), run.done, run.images, run.seconds())
