"""A run that is interrupted ends in the same bits as one that is not."""

import errno
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.errors import FileError
from bitalloc.training import CheckpointConfig, CheckpointStore, FitResult, WarmupCosine, cross_entropy_loss, fit, loss_step, sgd

TOTAL = 17  # 40 images in batches of 6: 7 batches an epoch, so the end lies in the third epoch
LOSS = cross_entropy_loss()


def images():
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(40, 1, 4, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator))


class ByEpoch:
    """Stateless: the order depends on the epoch alone."""

    def __init__(self):
        self.data, self.epoch = images(), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def order(self):
        return torch.randperm(40, generator=torch.Generator().manual_seed(self.epoch)).split(6)

    def __len__(self):
        return 7

    def __iter__(self):
        return (self.data[indices] for indices in self.order())


class ByNumber(ByEpoch):
    """Random access only."""

    __iter__ = None

    def batch(self, index):
        return self.data[self.order()[index]]


def own_generator():
    return DataLoader(images(), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(5))


LOADERS = {
    "shuffling": lambda: DataLoader(images(), batch_size=6, shuffle=True),
    "own_generator": own_generator,
    "by_epoch": ByEpoch,
    "by_number": ByNumber,
}


class Cut(Exception):
    """Stands for whatever ends a process."""


def noisy_step(cut_before=None, action=None):
    """Uses all three random generators; does ``action`` when the step number ``cut_before`` begins."""
    plain, calls = loss_step(LOSS), [0]

    def step(model, batch):
        calls[0] += 1
        if calls[0] == cut_before:
            action()
        inputs, labels = batch
        return plain(model, (inputs + 0.01 * random.random() + 0.01 * float(np.random.rand()), labels))

    return step


def cut():
    raise Cut


def setup():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3))


def run(path, loader, *, cut_before=None, action=cut, every=1, total=TOTAL):
    """One sitting: all is built anew, as in a new process."""
    model = setup()
    optimizer = sgd(model, 0.1, weight_decay=1e-3)
    result = fit(
        model,
        LOADERS[loader](),
        step=noisy_step(cut_before, action),
        optimizer=optimizer,
        schedule=WarmupCosine(0.1, TOTAL, warmup_steps=3),
        total_steps=total,
        clip_norm=1.0,
        checkpoint=CheckpointConfig(path, "the run", steps=every) if path else None,
    )
    return model, optimizer, result


def assert_same_bits(first, second):
    (model, optimizer, result), (other, other_optimizer, other_result) = first, second
    assert result.losses == other_result.losses
    assert (result.steps, result.images) == (other_result.steps, other_result.images)
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    for state, expected in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert torch.equal(state["momentum_buffer"], expected["momentum_buffer"])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("cuts", "every"), [((8,), 1), ((7, 1, 3), 2), ((15, 2), 5)])
def test_interrupted_run_ends_in_the_same_bits(tmp_path, loader, cuts, every):
    whole = run(None, loader)
    path = tmp_path / "last.safetensors"
    for cut_before in cuts:
        with pytest.raises(Cut):
            run(path, loader, cut_before=cut_before, every=every)
    assert_same_bits(run(path, loader, every=every), whole)


def test_every_position_of_an_epoch_can_be_resumed(tmp_path):
    whole = run(None, "shuffling", total=9)
    for cut_before in range(2, 10):
        path = tmp_path / str(cut_before)
        with pytest.raises(Cut):
            run(path, "shuffling", cut_before=cut_before, total=9, every=cut_before - 1)
        assert_same_bits(run(path, "shuffling", total=9, every=TOTAL), whole)


def test_without_the_checkpoint_the_run_starts_again(tmp_path):
    """The counter-proof: the comparison would notice a run that was not resumed properly."""
    path = tmp_path / "last"
    with pytest.raises(Cut):
        run(path, "shuffling", cut_before=9)
    state = CheckpointStore(path, "the run").load()
    assert state is not None
    assert (state.step, state.epoch, state.batch) == (8, 1, 1)
    assert not torch.equal(state.random[0]["torch"], state.epoch_random[0]["torch"])


def test_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "last"
    first = run(path, "by_epoch")
    assert_same_bits(run(path, "by_epoch", cut_before=1), first)


def test_state_of_the_training_step_is_kept(tmp_path):
    class Drawing:
        """Draws from a generator of its own."""

        def __init__(self):
            self.generator = torch.Generator().manual_seed(1)
            self.cut_at = None
            self.calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            if self.calls == self.cut_at:
                raise Cut
            factor = 1 + torch.rand((), generator=self.generator)
            return loss_step(lambda model, batch: LOSS(model, batch) * factor)(model, batch)

        def state_dict(self):
            return {"generator": self.generator.get_state()}

        def load_state_dict(self, state):
            self.generator.set_state(state["generator"])

    def train(cut_at, path):
        model, step = setup(), Drawing()
        step.cut_at = cut_at
        config = CheckpointConfig(path, "", steps=1)
        return fit(model, ByEpoch(), step=step, optimizer=sgd(model, 0.1), total_steps=9, checkpoint=config).losses

    whole = train(None, tmp_path / "whole")
    with pytest.raises(Cut):
        train(5, tmp_path / "cut")
    assert train(None, tmp_path / "cut") == whole


def test_kill_9_in_the_middle_of_a_step(tmp_path):
    path = tmp_path / "last.safetensors"
    step = random.Random().randint(2, TOTAL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, __file__, str(path), str(step)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    state = CheckpointStore(path, "the run").load()
    assert state is not None
    assert state.step == step - 1
    assert_same_bits(run(path, "shuffling"), run(None, "shuffling"))


def test_truncated_last_checkpoint_falls_back_to_the_previous(tmp_path, caplog):
    path = tmp_path / "last.safetensors"
    with pytest.raises(Cut):
        run(path, "shuffling", cut_before=10)
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        resumed = run(path, "shuffling")
    assert "last.safetensors is damaged" in caplog.text
    assert "step 8" in caplog.text
    assert_same_bits(resumed, run(None, "shuffling"))


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "last.safetensors"
    with pytest.raises(Cut):
        run(path, "shuffling", cut_before=10)
    path.unlink()
    assert_same_bits(run(path, "shuffling"), run(None, "shuffling"))


def test_damaged_last_checkpoint_never_replaces_the_good_previous_one(tmp_path):
    path = tmp_path / "last.safetensors"
    with pytest.raises(Cut):
        run(path, "shuffling", cut_before=10)
    path.write_bytes(b"rubbish")
    with pytest.raises(Cut):
        run(path, "shuffling", cut_before=2)  # resumes at step 8, saves step 9
    assert CheckpointStore(path, "the run").load().step == 9
    path.unlink()
    assert CheckpointStore(path, "the run").load().step == 8


def test_full_disk_is_an_error_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    written = Path.write_bytes

    def full(self, data):
        written(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FileError, match="No space left on device"):
        run(path, "shuffling", cut_before=6, action=lambda: monkeypatch.setattr(Path, "write_bytes", full))
    monkeypatch.undo()
    assert CheckpointStore(path, "the run").load().step == 5
    assert sorted(item.name for item in tmp_path.iterdir()) == ["last.safetensors", "last.safetensors.previous"]
    assert_same_bits(run(path, "shuffling"), run(None, "shuffling"))


def test_ctrl_c_finishes_the_step_saves_and_is_raised_again(tmp_path):
    path = tmp_path / "last.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(path, "shuffling", cut_before=6, every=1000, action=lambda: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert CheckpointStore(path, "the run").load().step == 6
    assert_same_bits(run(path, "shuffling"), run(None, "shuffling"))


def test_second_ctrl_c_stops_at_once(tmp_path):
    path = tmp_path / "last.safetensors"

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(path, "shuffling", cut_before=6, every=1000, action=twice)
    assert not path.exists()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    run(path, "by_epoch")
    before = path.read_bytes()
    model = setup()
    with pytest.raises(FileError, match="belongs to another run"):
        fit(
            model,
            ByEpoch(),
            step=loss_step(LOSS),
            optimizer=sgd(model, 0.1),
            total_steps=TOTAL,
            checkpoint=CheckpointConfig(path, "another run"),
        )
    assert path.read_bytes() == before


def test_checkpoint_of_another_model_or_length_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    run(path, "by_epoch")
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    config = CheckpointConfig(path, "the run")
    with pytest.raises(FileError, match="does not fit the model"):
        fit(other, ByEpoch(), step=loss_step(LOSS), optimizer=sgd(other, 0.1), total_steps=TOTAL, checkpoint=config)
    with pytest.raises(FileError, match="step 17, more than the 5 steps"):
        run(path, "by_epoch", total=5)


class WithoutLength:
    """Three batches, but nobody knows before."""

    def __iter__(self):
        return iter([images()[:6]] * 3)


@pytest.mark.parametrize(("short", "words"), [([images()[:6]] * 3, "7 batches, now 3 batches"), (WithoutLength(), "only 3")])
def test_checkpoint_beyond_the_end_of_a_shorter_loader_is_refused(tmp_path, short, words):
    path = tmp_path / "last.safetensors"
    with pytest.raises(Cut):
        run(path, "by_epoch", cut_before=6)
    model = setup()
    with pytest.raises(FileError, match=words):
        fit(
            model,
            short,
            step=loss_step(LOSS),
            optimizer=sgd(model, 0.1),
            total_steps=TOTAL,
            checkpoint=CheckpointConfig(path, "the run"),
        )


def test_saving_by_the_clock(tmp_path):
    """With an interval of 0 seconds every step is due; with a long one only the end is."""
    for seconds, kept in ((0.0, True), (1e9, False)):
        model = setup()
        path = tmp_path / str(seconds)
        config = CheckpointConfig(path, "", seconds=seconds)
        result = fit(model, ByEpoch(), step=loss_step(LOSS), optimizer=sgd(model, 0.1), total_steps=2, checkpoint=config)
        assert isinstance(result, FitResult)
        assert path.exists()
        assert path.with_name(path.name + ".previous").exists() is kept


if __name__ == "__main__":
    run(Path(sys.argv[1]), "shuffling", cut_before=int(sys.argv[2]), action=lambda: os.kill(os.getpid(), signal.SIGKILL))
