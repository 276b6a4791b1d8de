"""One training run in memory, its step, and its way to the disk and back."""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitalloc.errors import FileError
from bitalloc.placement import to_device
from bitalloc.training.accumulate import Accumulation
from bitalloc.training.blame import Explain, blame
from bitalloc.training.checkpoint import Checkpoint, CheckpointConfig, CheckpointStore, Retry
from bitalloc.training.device import device
from bitalloc.training.engine import Engine
from bitalloc.training.guards import check_gradients_exist, check_weights, diverged, gradient_problem, loss_problem
from bitalloc.training.random_state import RandomState, capture, restore
from bitalloc.training.ranks import from_main, gathered, is_main, rank, together, world_size
from bitalloc.training.reduction import agree_on_buffers, shared_step
from bitalloc.training.schedule import Schedule
from bitalloc.training.sharding import clip, load_model, load_optimizer, whole
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
    explain: Explain | None = None
    losses: list[float] = field(default_factory=list)
    images: int = 0
    started: float = field(default_factory=time.monotonic)
    retries: tuple[Retry, ...] = ()
    accumulation: Accumulation = field(init=False)

    def __post_init__(self) -> None:
        self.accumulation = Accumulation(self.engine)

    @property
    def done(self) -> int:
        """Optimiser steps done."""
        return len(self.losses)

    @property
    def rate(self) -> float:
        """What the learning rates of the schedule are multiplied by: 1, and less after each retry."""
        return self.retries[-1].rate if self.retries else 1.0

    def seconds(self) -> float:
        """Wall-clock time, over all sittings."""
        return time.monotonic() - self.started

    def advance(self) -> None:
        """One optimiser step."""
        number = self.done + 1
        with shared_step(self.model, spread=self.engine.sharding == "full") as made:
            batch = to_device(self.stream.next(), device(), self.engine.images)
            self.optimizer.zero_grad(set_to_none=True)
            random = capture()
            made.images = self.stream.images
            with made.weighted():
                made.loss = self._gradients(batch)
        if self.engine.split_on_memory:  # the rank with the least free memory decides for all
            self.accumulation.parts = max(gathered(self.accumulation.parts))
        loss = made.loss
        check_gradients_exist(self.model, step=number)
        problem = loss_problem(loss, self.losses, self.engine.loss_limit) or gradient_problem(self.model)
        if problem is not None:
            raise diverged(problem, self.model, step=number, details=self._origin(batch, random))
        clip(self.model, self.clip_value, self.clip_norm)
        self.schedule.apply(self.optimizer, self.done)
        for group in self.optimizer.param_groups if self.retries else ():
            group["lr"] *= self.rate  # the next step's rate is set anew by the schedule
        self.optimizer.step()
        self.losses.append(loss)
        self.images += made.images

    def _gradients(self, batch: Any) -> float:
        with self.engine.arithmetic():
            return self.accumulation.gradients(self.model, self.step, batch, self.done + 1)

    def _origin(self, batch: Any, random: RandomState) -> list[str]:
        """Where the step that just failed broke, found by running it again on the same random numbers."""
        restore(random)
        if self.engine.sharding == "full":  # the passes talk to other ranks, which may not come to run them again
            return [said] if self.explain is not None and (said := self.explain(self.model)) else []
        return blame(self.model, batch, partial(self._gradients, batch), self.explain)

    def snapshot(self) -> Checkpoint:
        """The run after its last step. All ranks take it together."""
        return Checkpoint(
            step=self.done,
            epoch=self.stream.epoch,
            batch=self.stream.index,
            images=self.images,
            seconds=self.seconds(),
            losses=torch.tensor(self.losses, dtype=torch.float64),
            model=whole(self.model.state_dict()),
            optimizer=whole(self.optimizer.state_dict()),
            train_step=self.step.state_dict() if isinstance(self.step, Stateful) else {},
            random=gathered(self.stream.random()),
            epoch_random=gathered(self.stream.epoch_random),
            retries=tuple(asdict(retry) for retry in self.retries),
            parts=self.accumulation.parts,
            data=self.stream.data,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Goes to where ``saved`` was taken. Raises FileError if it does not fit."""
        if saved.step > self.total:
            raise FileError(f"the checkpoint stands at step {saved.step}, more than the {self.total} steps asked for: delete it.")
        if len(saved.random) != world_size():
            raise FileError(
                f"the checkpoint was made by {_processes(len(saved.random))}, this run has {_processes(world_size())}: start it with as "
                "many as before, or delete the checkpoint to start again."
            )
        if None not in (saved.data, self.stream.data) and saved.data != self.stream.data:
            raise FileError(
                f"the checkpoint was made with other data ({saved.data}, now {self.stream.data}): the data set has changed since. "
                "Train on the same data, or delete the checkpoint to start again."
            )
        try:
            load_model(self.model, saved.model)
            load_optimizer(self.optimizer, saved.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise FileError(f"the checkpoint does not fit the model or the optimiser ({error}). Delete it to start again.") from error
        if isinstance(self.step, Stateful):
            self.step.load_state_dict(dict(saved.train_step))
        self.losses = _floats(saved.losses)
        self.images = saved.images
        self.retries = tuple(Retry(**retry) for retry in saved.retries)
        self.accumulation.parts = max(saved.parts, self.engine.accumulate)
        self.started = time.monotonic() - saved.seconds
        self.stream.resume(epoch=saved.epoch, index=saved.batch, epoch_random=saved.epoch_random[rank()], random=saved.random[rank()])


class Saver:
    """Saves a run when it is due; does nothing without a configuration."""

    def __init__(self, run: Run, config: CheckpointConfig | None) -> None:
        self._run, self._config = run, config
        self._store = CheckpointStore(config.path, config.fingerprint) if config else None
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    @property
    def has_saved(self) -> bool:
        """Whether there is a checkpoint, of this sitting or of one before."""
        return self._saved_step is not None

    def last(self) -> Checkpoint | None:
        """The last checkpoint that is whole, if there is one. Rank 0 reads it for all."""
        saved = None
        with together():
            if self._store is not None and is_main():
                saved = self._store.load()
        return from_main(saved)

    def resume(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        saved = self.last()
        if saved is not None:
            self._run.restore(saved)
            self._saved_step = saved.step

    def is_due(self) -> bool:
        """Whether enough time or steps have passed, or the run is over."""
        if self._run.done == self._run.total:
            return True
        if self._config is None:
            return False
        by_steps = self._config.steps is not None and self._run.done - (self._saved_step or 0) >= self._config.steps
        return by_steps or time.monotonic() - self._saved_at >= self._config.seconds

    def save(self, *, again: bool = False) -> None:
        """Checks the weights, then saves unless this very step is saved already; ``again``: also then. All ranks do it together."""
        agree_on_buffers(self._run.model)
        check_weights(self._run.model, step=self._run.done)
        if self._store is not None and (again or self._saved_step != self._run.done):
            snapshot = self._run.snapshot()
            with together():
                if is_main():
                    self._store.save(snapshot)
            self._saved_at = time.monotonic()
            self._saved_step = self._run.done


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def _floats(losses: Tensor) -> list[float]:
    values: list[float] = losses.tolist()
    return values
