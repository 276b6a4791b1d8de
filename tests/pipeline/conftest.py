"""A tiny project as a newcomer has one: a module with a model and data in the current folder, and a recipe that names them."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bitalloc.cli import app

MODULE = '''\
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bitalloc.data import ImageBatches, Splits


class Net(nn.Module):
    """stem.0: 4x1x3x3 on 8x8, stride 2; body.0: depthwise 4x1x3x3 and body.3: 4x4x1x1 on 4x4; head: 3x4."""

    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


def net(width=4):
    return Net(width)


class Attention(Net):
    """A layer that is named after a parameter, attn.in_proj_weight, because no module holds it as its weight."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attn(x, x, x, need_weights=False)[0]).mean(1))


def attention():
    model = Attention()
    del model.body
    return model


class Branching(Net):
    """What the values are decides what is computed, which ONNX's exporter refuses."""

    def forward(self, x):
        return super().forward(x if float(x.sum()) > -1e9 else -x)


def branching():
    return Branching()


def nothing_to_quantize():
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.ReLU())


def not_finite():
    model = Net()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    return model


def raises(**options):
    raise AttributeError("the data base\\nis away")


def no_module():
    return "a text"


def pixels(count, seed):
    """The bright row tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    images[torch.arange(count), 0, 2 * labels + 1] += 150
    return images.to(torch.uint8), labels


def data(*, batch_size, seed, root=None, images=48, shared=False):
    def part(count, number, shuffle=False):
        return ImageBatches(*pixels(count, number), batch_size, (0.2,), (0.2,), seed=seed, shuffle=shuffle)

    train = part(images, 1, shuffle=True)
    calibration = train if shared else part(images, 1, shuffle=True)
    return Splits(train, calibration, part(24, 2), part(24, 3), train.batch(0)[0][:1], 3)


def loaders(*, batch_size, seed, root=None):
    """DataLoaders as a user has them: one that shuffles with a generator of its own, and one with the global one.

    The noise is drawn anew at every start.
    """

    def part(count, number, **options):
        images, labels = pixels(count, number)
        return DataLoader(TensorDataset(images.float() / 255 + 0.1 * torch.rand(images.shape), labels), batch_size, **options)

    train = part(48, 1, shuffle=True, generator=torch.Generator().manual_seed(seed))
    calibration = part(48, 1, shuffle=True)
    return SimpleNamespace(
        train=train, calibration=calibration, valid=part(24, 2), test=part(24, 3), example=torch.zeros(1, 1, 8, 8)
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def broken(*, batch_size, seed, root=None, kind):
    """Data with one thing wrong."""
    good = data(batch_size=batch_size, seed=seed)
    parts = {name: list(getattr(good, name)) for name in ("train", "calibration", "valid", "test")}
    if kind == "nan":
        parts["train"][1][0][0, 0, 0, 0] = float("nan")
    if kind.startswith("empty "):
        parts[kind.removeprefix("empty ")] = []
    if kind == "without test":
        del parts["test"]
    if kind == "without length":
        parts["train"] = iter(parts["train"])
    if kind == "streamed":
        parts["train"] = DataLoader(Stream())
    return SimpleNamespace(**parts, example=good.example)
'''

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": "tiny_module:net",
    "data": "tiny_module:data",
    "batch_size": 12,
    "calibration_batches": 2,
    "float": {"epochs": 1},
    "space": {"weight": [4, 2], "act": [4, 2]},
    "measure": {"epochs": 0.75},
    "finetune": {"epochs": 1, "warmup_epochs": 0.25, "batchnorm_images": 24},
    "levels": [{"name": "first", "budgets": {"bitops": "45.12k", "compression": 5}}],
}
TWO_LEVELS = [
    {"name": "first", "budgets": {"bitops": "45.12k", "compression": 5}, "reversed": True},
    {"name": "second", "budgets": {"weight_bytes": "70B"}},
]


@dataclass
class Project:
    """A folder with the module above, which is the current folder, and the command line in it."""

    folder: Path

    def recipe(self, *without: str, **changes: Any) -> Path:
        """Writes a recipe with some keys changed; a section is merged with what is there."""
        values = {key: value for key, value in RECIPE.items() if key not in without}
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        path = self.folder / "recipe.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()))
        return path

    def run(self, *arguments: object) -> Any:
        """``bitalloc ARGUMENTS`` in this process: exit code, standard output, standard error."""
        words = [str(argument) for argument in arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["bitalloc", *words])
            return CliRunner().invoke(app, words)

    def good(self, *arguments: object) -> Any:
        """Like :meth:`run`, but it must succeed."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        return result

    def error(self, *arguments: object) -> str:
        """Like :meth:`run`, but it must fail with one sentence on the last line of standard error, which is returned."""
        result = self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        line = result.stderr.splitlines()[-1]
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are rounded in another order with more threads, so runs are compared bit for bit on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``tiny_module.py``, importable for as long as the tests run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny_module.py").write_text(MODULE)
    path = list(sys.path)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path[:] = path
    sys.modules.pop("tiny_module", None)


@pytest.fixture(scope="session")
def project_in(module_folder: Path) -> Callable[[Path], Project]:
    """Makes a project of a folder, for fixtures that last longer than a test."""
    return Project


@pytest.fixture
def project(module_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project folder."""
    monkeypatch.syspath_prepend(str(module_folder))
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture(scope="session")
def _finished(module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = Project(folder)
        result = project.good("run", project.recipe(levels=TWO_LEVELS), "--out", "out")
    return folder / "out", result.stdout, result.stderr


@pytest.fixture
def finished(_finished: tuple[Path, str, str], project: Project) -> Path:
    """``out``, a copy of a finished run of two levels, in the project's folder, and its recipe."""
    shutil.copytree(_finished[0], project.folder / "out")
    project.recipe(levels=TWO_LEVELS)
    return project.folder / "out"


@pytest.fixture
def finished_output(_finished: tuple[Path, str, str]) -> tuple[str, str]:
    """Standard output and standard error of the finished run."""
    return _finished[1:]


@pytest.fixture(scope="session")
def _finetuned(module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = Project(folder)
        project.good("finetune", project.recipe(), "--out", "out")
    return folder / "out"


@pytest.fixture
def finetuned(_finetuned: Path, project: Project) -> Path:
    """``out``, a copy of a run of one level up to the fine-tuning, in the project's folder, and its recipe."""
    shutil.copytree(_finetuned, project.folder / "out")
    project.recipe()
    return project.folder / "out"


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Gives the content of every file under a folder, but for the lock."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
