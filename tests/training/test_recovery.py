"""A run that diverges goes back and on at a lower rate."""

import logging
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.training import CheckpointConfig, CheckpointStore, DivergenceError, Engine, Progress, WarmupCosine, fit, loss_step, sgd
from bitalloc.training.checkpoint import Retry

TOTAL = 12
RETRY = Engine(retries=2)


class Cut(Exception):
    """Stands for whatever ends a process."""


def loader():
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(torch.randn(20, 4, generator=generator)), batch_size=4, shuffle=True)


def run(path=None, *, engine=RETRY, every=3, cut_at=None, cut_rate=None, breaks=lambda rate: rate > 0.3, rate=0.5, progress=None):
    """One sitting; the step number 8 breaks where ``breaks(rate of the step before)``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = sgd(model, rate)
    seen = []

    def step(model, batch):
        # The optimiser's rate is still that of the step before. The batch norm, which is restored with the rest, counts the steps.
        number = int(model[1].num_batches_tracked) + 1
        before = optimizer.param_groups[0]["lr"]
        seen.append((number, before))
        if number == cut_at and before == cut_rate:
            raise Cut
        loss = loss_step(lambda model, batch: model(batch[0]).tanh().mean() + 0.1 * torch.rand(()))(model, batch)
        return math.nan if number == 8 and breaks(before) else loss

    config = CheckpointConfig(path, "the run", steps=every) if path else None
    options = {} if progress is None else {"progress": progress}
    return model, fit(model, loader(), step=step, optimizer=optimizer, total_steps=TOTAL, engine=engine, checkpoint=config, **options), seen


def same(first, second):
    assert first[1].losses == second[1].losses
    assert all(torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True))


def test_without_retries_the_first_failure_ends_the_run():
    with pytest.raises(DivergenceError, match="the loss is nan at step 8") as raised:
        run(engine=Engine())
    assert "retry" not in str(raised.value)


def test_back_to_the_start_where_there_is_no_checkpoint():
    """So the result is that of a run at the lower rate from the start on."""
    found = run()
    (retry,) = found[1].retries
    assert (retry.step, retry.back_to, retry.rate) == (8, 0, 0.5)
    assert "the loss is nan at step 8" in retry.reason
    assert found[1].steps == len(found[1].losses) == TOTAL
    same(found, run(rate=0.25))


def test_back_to_the_last_checkpoint(tmp_path, caplog):
    """Up to it the result is that of the first attempt, from it on that of the lower rate."""
    with caplog.at_level(logging.WARNING):
        _, result, seen = run(tmp_path / "last")
    assert result.retries[0].back_to == 6
    assert "Retry 1 of 2: back to step 6, learning rate times 0.5" in caplog.text
    first = [number for number, _ in seen]
    assert first == [1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9, 10, 11, 12]  # the ninth looks for the layer
    assert {rate for number, rate in seen[10:]} == {0.25}


def test_the_schedule_goes_on_at_its_place():
    """All groups keep their ratio and the shape of the schedule stays."""
    rates = []
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.4}, {"params": [model.bias], "lr": 0.1}])
    stepped = optimizer.step
    optimizer.step = lambda: (rates.append([group["lr"] for group in optimizer.param_groups]), stepped())
    calls = []

    def step(model, batch):
        calls.append(1)
        loss = loss_step(lambda model, batch: model(batch).mean())(model, batch)
        return math.inf if len(calls) == 3 else loss

    schedule = WarmupCosine(0.4, 4, warmup_steps=2)
    fit(
        model,
        [torch.ones(1, 1)],
        step=step,
        optimizer=optimizer,
        total_steps=4,
        schedule=schedule,
        engine=Engine(retries=1, retry_rate=0.1),
    )
    planned = [[schedule.rate(step), schedule.rate(step) / 4] for step in range(4)]
    assert rates == [*planned[:2], *[[pytest.approx(0.1 * rate) for rate in pair] for pair in planned]]


def test_after_the_last_retry_the_error_tells_them_all(tmp_path):
    with pytest.raises(DivergenceError) as raised:
        run(tmp_path / "last", breaks=lambda rate: True)
    text = str(raised.value)
    assert text.startswith("the loss is nan at step 8")
    assert "step 8 at 1 of the learning rate, back to step 6; step 8 at 0.5 of the learning rate, back to step 6" in text
    assert "this time at 0.25 of the learning rate. No retry is left (engine.retries)." in text


def test_more_retries_go_on_where_the_last_one_ended(tmp_path):
    path = tmp_path / "last"
    with pytest.raises(DivergenceError):
        run(path, engine=Engine(retries=1), breaks=lambda rate: rate > 0.2)
    found = run(path, engine=Engine(retries=2), breaks=lambda rate: rate > 0.2)
    assert [retry.rate for retry in found[1].retries] == [0.5, 0.25]
    same(found, run(tmp_path / "whole", breaks=lambda rate: rate > 0.2))


@pytest.mark.parametrize("cut_at", [8, 9, 11])
@pytest.mark.parametrize("every", [3, 5, 100])
def test_a_run_killed_within_a_retry_ends_in_the_same_bits(tmp_path, cut_at, every):
    """Also where the only checkpoint is the one that notes the retry at the start."""
    whole = run(tmp_path / "whole", every=every)
    path = tmp_path / "cut"
    with pytest.raises(Cut):
        run(path, every=every, cut_at=cut_at, cut_rate=0.25)
    state = CheckpointStore(path, "the run").load()
    assert [retry["rate"] for retry in state.retries] == [0.5]
    resumed = run(path, every=every)
    same(resumed, whole)
    assert resumed[1].retries == whole[1].retries


def test_weights_that_break_in_the_update_are_retried_too(tmp_path):
    """They are found when they are to be saved."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = sgd(model, 1e38, momentum=0.0)
    step = loss_step(lambda model, batch: (model.weight * batch).mean())
    config = CheckpointConfig(tmp_path / "last", "", steps=1)
    engine = Engine(retries=1, retry_rate=1e-38)
    batches = [torch.full((1, 1), 10.0)]
    result = fit(model, batches, step=step, optimizer=optimizer, total_steps=1, engine=engine, checkpoint=config)
    assert result.retries == (Retry(1, 0, 1e-38, result.retries[0].reason),)
    assert "weights are not finite after step 1: weight" in result.retries[0].reason
    assert model.weight.item() == pytest.approx(-9)


def test_the_progress_ends_where_the_work_ends():
    done = []

    class Recorder(Progress):
        def start(self, name, total, completed=0):
            done.append(completed)

        def advance(self, n=1, **metrics):
            done.append(n)

        def finish(self):
            pass

    run(progress=Recorder())
    assert sum(done) == TOTAL
    assert min(done) == -7


def test_an_interrupt_in_a_retry_is_kept(tmp_path):
    """Ctrl-C in the failing step: the run goes back, does a step, saves and stops; then it goes on at the lower rate."""
    path = tmp_path / "last"

    def breaks(rate):
        os.kill(os.getpid(), signal.SIGINT)
        return rate > 0.3

    with pytest.raises(KeyboardInterrupt):
        run(path, breaks=breaks)
    same(run(path), run(tmp_path / "whole"))
