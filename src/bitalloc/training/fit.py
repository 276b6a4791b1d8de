"""The training loop: counted in steps, resumed bit for bit, never saving weights that are not finite."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bitalloc.errors import TrainingError
from bitalloc.training.blame import Explain
from bitalloc.training.checkpoint import CheckpointConfig, Retry
from bitalloc.training.device import device
from bitalloc.training.engine import ENGINE, Engine
from bitalloc.training.guards import DivergenceError
from bitalloc.training.interrupt import DeferredInterrupt
from bitalloc.training.journal import NO_JOURNAL, Journal
from bitalloc.training.lost_worker import worker_deaths_explained
from bitalloc.training.modes import training_modes
from bitalloc.training.progress import SILENT, Progress
from bitalloc.training.ranks import any_rank, is_main, raise_everywhere
from bitalloc.training.recorder import StepRecorder
from bitalloc.training.recovery import Recovery
from bitalloc.training.reduction import agree_on_model
from bitalloc.training.run import Run, Saver
from bitalloc.training.schedule import Constant, Schedule
from bitalloc.training.sharding import sharded
from bitalloc.training.steps import TrainStep
from bitalloc.training.stream import BatchStream, RandomAccess


@dataclass(frozen=True)
class FitResult:
    """What a training run did, sittings before a resume included."""

    losses: tuple[float, ...]  # one a step
    steps: int
    images: int  # images seen, repetitions counted
    seconds: float  # wall-clock time
    retries: tuple[Retry, ...] = ()  # how often it went back and on at a lower rate
    parts: int = 1  # that a batch is split into: engine.accumulate, or more where the memory was full


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
    explain: Explain | None = None,
    checkpoint: CheckpointConfig | None = None,
    progress: Progress = SILENT,
    journal: Journal = NO_JOURNAL,
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
        engine: precision, memory layout, compilation, and what happens when the run diverges or the memory is full, see
            :class:`Engine`. Default: float32, nothing changed; both end the run.
        explain: ``explain(model)`` adds to the error of a run that diverges what is wrong with the model, as part of a sentence, such as
            which step size is out of range; empty if nothing is.
        checkpoint: where to save; also at the end and on Ctrl-C. Default None saves nothing.
        progress: what shows the progress. Default: nothing.
        journal: what is told of the start and the steps, see :class:`StepRecorder`. Default: nothing.
        name: the name of the work in the progress and the journal.

    Raises:
        TrainingError: empty loader, loss or weights not finite, no gradients, bad argument; another rank failed or died.
        FileError: a checkpoint cannot be written, is damaged or belongs to another run.
        Exception: what the journal raised, after a checkpoint; a TrainingError about it on other ranks.
        KeyboardInterrupt: on Ctrl-C, after the current step and a checkpoint.
    """
    for label, value in (("total_steps", total_steps), ("clip_value", clip_value), ("clip_norm", clip_norm)):
        if value is not None and not value > 0:
            raise TrainingError(f"{label} is {value}, expected a positive number.")
    model.to(device())
    agree_on_model(model)
    whole, schedule = model, schedule or Constant()
    spread = engine.sharding == "full"
    with training_modes(whole), engine.prepared(whole), sharded(whole, optimizer, spread) as model, worker_deaths_explained():
        run = Run(model, BatchStream(loader), step, optimizer, schedule, total_steps, clip_value, clip_norm, engine, explain)
        saver = Saver(run, checkpoint)
        saver.resume()
        model.train()
        progress = progress if is_main() else SILENT
        with progress.task(name, total_steps, completed=run.done), DeferredInterrupt() as interrupt:
            recovery, recorder = Recovery(run, saver), StepRecorder(journal, name, run)
            interrupted = False
            while run.done < total_steps and not interrupted:
                try:
                    images = run.images
                    run.advance()
                    progress.see(run.images - images, run.stream.waited)
                    progress.advance(1, loss=run.losses[-1], rate=optimizer.param_groups[0]["lr"])
                    recorder.step()
                    interrupted, due, failed = any_rank(interrupt.pending, saver.is_due(), recorder.failure is not None)
                    if interrupted or due or failed:
                        saver.save()
                    if failed:
                        raise_everywhere(recorder.failure)
                except DivergenceError as error:
                    progress.advance(-recovery.go_back(error))
                    recorder.start()
            if interrupted:
                recorder.flush()
                raise KeyboardInterrupt
    return FitResult(tuple(run.losses), run.done, run.images, run.seconds(), run.retries, run.accumulation.parts)
