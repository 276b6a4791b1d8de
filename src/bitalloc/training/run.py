"""One training run in memory, its step, and its way to the disk and back."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitalloc.errors import FileError
from bitalloc.placement import to_device
from bitalloc.training.batches import image_count
from bitalloc.training.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore
from bitalloc.training.device import device
from bitalloc.training.engine import Engine
from bitalloc.training.guards import check_gradients_exist, check_loss, check_weights
from bitalloc.training.schedule import Schedule
from bitalloc.training.steps import Stateful, TrainStep
from bitalloc.training.stream import BatchStream


@dataclass
class Run:
    """The state of one training run in memory."""

    model: nn.Module
    stream: BatchStream
    step: TrainStep
    optimizer: Optimizer
    schedule: Schedule
    total: int
    clip_value: float | None
    clip_norm: float | None
    engine: Engine
    losses: list[float] = field(default_factory=list)
    images: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)

    def seconds(self) -> float:
        """Wall-clock time, over all sittings."""
        return time.monotonic() - self.started

    def advance(self) -> None:
        """One optimiser step."""
        number = self.done + 1
        batch = to_device(self.stream.next(), device(), self.engine.images)
        self.optimizer.zero_grad(set_to_none=True)
        with self.engine.arithmetic():
            loss = float(self.step(self.model, batch))
        check_loss(loss, self.model, step=number)
        check_gradients_exist(self.model, step=number)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), self.clip_value)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.schedule.apply(self.optimizer, self.done)
        self.optimizer.step()
        self.losses.append(loss)
        self.images += image_count(batch)

    def snapshot(self) -> Checkpoint:
        """The run after its last step."""
        return Checkpoint(
            step=self.done,
            epoch=self.stream.epoch,
            batch=self.stream.index,
            images=self.images,
            seconds=self.seconds(),
            losses=torch.tensor(self.losses, dtype=torch.float64),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            train_step=self.step.state_dict() if isinstance(self.step, Stateful) else {},
            random=self.stream.random(),
            epoch_random=self.stream.epoch_random,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Goes to where ``saved`` was taken. Raises FileError if it does not fit."""
        if saved.step > self.total:
            raise FileError(f"the checkpoint stands at step {saved.step}, more than the {self.total} steps asked for: delete it.")
        try:
            self.model.load_state_dict(dict(saved.model))
            self.optimizer.load_state_dict(dict(saved.optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            raise FileError(f"the checkpoint does not fit the model or the optimiser ({error}). Delete it to start again.") from error
        if isinstance(self.step, Stateful):
            self.step.load_state_dict(dict(saved.train_step))
        self.losses = _floats(saved.losses)
        self.images = saved.images
        self.started = time.monotonic() - saved.seconds
        self.stream.resume(epoch=saved.epoch, index=saved.batch, epoch_random=saved.epoch_random, random=saved.random)


class Saver:
    """Saves a run when it is due; does nothing without a configuration."""

    def __init__(self, run: Run, config: CheckpointConfig | None) -> None:
        self._run, self._config = run, config
        self._store = CheckpointStore(config.path, config.fingerprint) if config else None
        self._saved_at = time.monotonic()
        self._saved_step = 0

    def resume(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        saved = self._store.load() if self._store else None
        if saved is not None:
            self._run.restore(saved)
            self._saved_step = saved.step

    def save_if_due(self) -> None:
        """Saves if enough time or steps have passed."""
        if self._config is None:
            return
        by_steps = self._config.steps is not None and self._run.done - self._saved_step >= self._config.steps
        if by_steps or time.monotonic() - self._saved_at >= self._config.seconds:
            self.save()

    def save(self) -> None:
        """Checks the weights, then saves unless this very step is saved already."""
        check_weights(self._run.model, step=self._run.done)
        if self._store is not None and self._saved_step != self._run.done:
            self._store.save(self._run.snapshot())
            self._saved_at = time.monotonic()
            self._saved_step = self._run.done


def _floats(losses: Tensor) -> list[float]:
    values: list[float] = losses.tolist()
    return values
