"""``bitalloc describe`` on what is no recipe: an entry point, an exported programme, the name of a library's model."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from bitalloc.cli import app

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.two(F.relu(self.one(x))) + self.one(x))
        return self.head(x.mean((2, 3)))


def net():
    return Block()


def net_with_input():
    return Block(), torch.zeros(2, 3, 16, 16)


def number():
    return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_net", raising=False)
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["describe", *arguments])


def report(*arguments: str) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_every_layer_with_its_shares_of_the_costs(here: Path) -> None:
    found = report("their_net:net_with_input")
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert {name: layer["macs"] for name, layer in layers.items()} == {
        "stem": 16 * 16 * 8 * 27,
        "one": 2 * 16 * 16 * 8 * 72,  # called twice
        "two": 16 * 16 * 8 * 72,
        "head": 80,
    }
    for key in ("macs_share", "bitops_share", "weight_bytes_share"):
        assert sum(layer[key] for layer in layers.values()) == pytest.approx(1)
    bitops = {"stem": 55296 * 64, "one": 294912 * 16, "two": 147456 * 16, "head": 80 * 64}
    assert layers["one"]["bitops_share"] == pytest.approx(bitops["one"] / sum(bitops.values()))


def test_says_why_a_layer_is_pinned(here: Path) -> None:
    notes = {layer["name"]: layer["note"] for layer in report("their_net:net_with_input")["layers"]}
    assert notes == {"stem": "pinned at w8a8: reads the input", "one": "", "two": "", "head": "pinned at w8a8: gives the output"}


def test_uniform_costs_are_those_of_a_hand_count(here: Path) -> None:
    rows = {row["bits"]: row for row in report("their_net:net_with_input", "--budget")["uniform"]}
    ends = (55296 + 80) * 64
    assert {bits: row["bitops"] for bits, row in rows.items()} == {f"w{b}a{b}": ends + (294912 + 147456) * b * b for b in (8, 4, 2)}
    assert rows["w4a4"]["weight_bytes"] == 216 + 80 + 2 * 576 * 4 // 8
    assert call("their_net:net_with_input", "--budget").output.count("x") >= 3


def test_an_input_shape_on_the_command_line(here: Path) -> None:
    layers = {layer["name"]: layer["macs"] for layer in report("their_net:net", "--input", "1x3x8x8")["layers"]}
    assert layers["stem"] == 8 * 8 * 8 * 27


def test_an_exported_programme_gives_the_same_layers(here: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), here / "net.pt2")
    found = report(str(here / "net.pt2"))
    assert {layer["name"]: layer["macs"] for layer in found["layers"]} == {"0": 36 * 4 * 27, "3": 144 * 5}
    assert found["graph"] == "export"
    result = call(str(here / "net.pt2"), "--input", "1x4x8x8")
    assert result.exit_code == 1
    assert "Give inputs of the shapes it was exported with" in " ".join(result.output.split())


class _Timm(ModuleType):
    """Stands for timm, which is not installed with the library."""

    def is_model(self, name: str) -> bool:
        return name == "tiny"

    def create_model(self, name: str, pretrained: bool) -> nn.Module:
        assert not pretrained
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        net.pretrained_cfg = {"input_size": (3, 2, 2)}  # type: ignore[assignment]
        return net


def test_a_name_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", _Timm("timm"))
    assert [layer["macs"] for layer in report("timm:tiny")["layers"]] == [60]
    result = call("timm:huge")
    assert result.exit_code == 1
    assert "timm has no model 'huge'" in result.output


class _Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.layer(x[:, x[0] >= 0]) if x[0, 0].item() >= 0 else x


def test_a_model_that_asks_for_numbers_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", _Timm("timm"))
    monkeypatch.setattr(_Timm, "create_model", lambda self, name, pretrained: _Asks())
    assert [layer["macs"] for layer in report("timm:tiny", "--input", "1x3x2x2")["layers"]] == [60]


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    result = call(f"{library}:resnet18")
    assert result.exit_code == 1
    assert f"pip install {library}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("their_net:net",), "has no example input: give its shape with --input"),
        (("their_net:number", "--input", "1x3x8x8"), "gave a int, expected a torch.nn.Module"),
        (("their_net:none",), "has no function none"),
        (("their_net",), "names no model"),
        (("their_net:net", "--input", "one"), "is no input"),
        (("their_net:net", "--input", "1x3x8x8:float99"), "is no input"),
        (("their_net:net", "--input", "1x3x8x8", "--input", "x=1x3x8x8"), "all inputs by name, or all by position"),
        (("their_net:net", "--input", "1x4x8x8"), "failed on the example input of shape (1, 4, 8, 8)"),
        (("their_net:net", "--input", "1x3x8x8", "--coupling", "loose"), "the coupling 'loose' is unknown"),
        (("their_net:net", "--input", "1x3x8x8", "--seed", "3"), "--seed does nothing"),
        (("missing.pt2",), "is not there"),
        (("recipe.toml",), "name its run folder with --out"),
    ],
)
def test_bad_input_is_named(here: Path, arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_a_damaged_programme(here: Path) -> None:
    (here / "bad.pt2").write_bytes(b"no archive")
    result = call("bad.pt2")
    assert result.exit_code == 1
    assert "is no programme that torch.export.save wrote" in result.output


def test_the_table_names_every_layer_and_tie(here: Path) -> None:
    output = call("their_net:net_with_input", "--coupling", "strict").output
    for name in ("stem", "one", "two", "head"):
        assert name in output
