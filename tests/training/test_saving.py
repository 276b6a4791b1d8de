"""A run that dies, or whose disk fills, at any file operation of a save goes on and ends in the same bits."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.errors import FileError
from bitalloc.training import CheckpointConfig, CheckpointStore, cross_entropy_loss, device, fit, loss_step, sgd

TOTAL = 6
OPERATIONS = ((tempfile, "mkstemp"), (Path, "write_bytes"), (os, "fsync"), (Path, "chmod"), (os, "replace"), (Path, "unlink"))
SAVE = 7  # operations of a save; the first of a run has one less, as there is nothing to rename
SECOND = range(SAVE, 2 * SAVE)
EVENTS = sorted({*SECOND, *random.Random(5).sample(range(1, TOTAL * SAVE), 5)})  # all of one save, and some anywhere
IMAGES = 20


def run(path, images=IMAGES, total=TOTAL):
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(images, 1, 4, 4, generator=generator), torch.randint(0, 3, (images,), generator=generator))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3))
    config = CheckpointConfig(path, "the run", steps=1) if path else None
    step, loader = loss_step(cross_entropy_loss()), DataLoader(data, batch_size=4, shuffle=True)
    result = fit(model, loader, step=step, optimizer=sgd(model, 0.1), total_steps=total, checkpoint=config)
    return [*model.state_dict().values(), torch.tensor(result.losses)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def arm(patch, event, act):
    """At the file operation number ``event``, from 1, ``act`` happens: before it, or in the middle of a write."""
    count = 0

    def watched(name, original):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == event:
                if name == "write_bytes":
                    path, data = arguments
                    original(path, data[: len(data) // 2])
                act()
            return original(*arguments, **options)

        return call

    for owner, name in OPERATIONS:
        patch(owner, name, watched(name, getattr(owner, name)))


@pytest.fixture(scope="module")
def whole():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run(None)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run killed with ``kill -9`` at each of EVENTS, each in a folder of its own, and one that cannot write large files."""
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)
    return folder


@pytest.mark.parametrize("event", EVENTS)
def test_kill_9_at_a_file_operation(killed, whole, event):
    path = killed / str(event) / "last"
    state = CheckpointStore(path, "the run").load()
    if event in SECOND:
        assert state.step == (1 if event < SECOND[-1] else 2)  # the last operation tidies away what the renaming has left
    assert same(run(path), whole)


def test_a_disk_that_is_full_at_any_file_operation_loses_nothing(tmp_path, monkeypatch, whole):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for event in SECOND[:-1]:  # but for tidying away, which needs no space
        path = tmp_path / str(event) / "last"
        with monkeypatch.context() as patch:
            arm(patch.setattr, event, full)
            with pytest.raises(FileError, match=r"cannot write .*last: No space left on device"):
                run(path)
        assert CheckpointStore(path, "the run").load().step == 1
        assert {item.name for item in path.parent.iterdir()} <= {"last", "last.previous"}
        assert same(run(path), whole)


def test_a_real_limit_on_the_size_of_files(killed, whole):
    """The system itself refuses to write on, in the middle of the first checkpoint."""
    path = killed / "limited" / "last"
    text = (killed / "error").read_text()
    assert text.startswith(f"cannot write {path}: File too large. The file was left as it was; free some space")
    assert list(path.parent.iterdir()) == []
    assert same(run(path), whole)


def test_a_data_set_that_changed_is_refused(tmp_path):
    path = tmp_path / "last"
    run(path)
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"made with other data \(5 batches, now 10 batches\): the data set has changed since"):
        run(path, images=2 * IMAGES, total=2 * TOTAL)
    assert path.read_bytes() == before


def test_a_data_set_is_known_by_its_own_fingerprint(tmp_path):
    class Loader(list):
        def fingerprint(self):
            return f"pixels {float(self[0].sum())}"

    def train(value, steps):
        model = nn.Linear(1, 1)
        step = loss_step(lambda model, batch: model(batch).mean())
        config = CheckpointConfig(tmp_path / "last", "")
        return fit(model, Loader([torch.full((1, 1), value)]), step=step, optimizer=sgd(model, 0.1), total_steps=steps, checkpoint=config)

    train(1.0, 2)
    assert train(1.0, 3).steps == 3
    with pytest.raises(FileError, match=r"\(pixels 1\.0, now pixels 2\.0\)"):
        train(2.0, 4)


def _killed_at(event, path):
    arm(setattr, event, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(path)


def _limited(path, told):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        run(path)
    except FileError as error:
        told.write_text(str(error))


def _in_a_child(function, *arguments):
    """How the child ended: the number of the signal, or minus its exit code."""
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    import torch._dynamo  # loaded once here, not in every child by the first optimiser

    device()
    folder = Path(sys.argv[1])
    assert [_in_a_child(_killed_at, event, folder / str(event) / "last") for event in EVENTS] == [signal.SIGKILL] * len(EVENTS)
    _in_a_child(_limited, folder / "limited" / "last", folder / "error")
