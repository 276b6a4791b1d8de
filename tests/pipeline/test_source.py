"""Widths that are scored on another dataset, and applied to the run's own network by layer names."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitalloc import Policy
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.sensitivity import Indicators
from bitalloc.supernet import LogProbabilities

MODULE = '''\
import torch
from torch import nn

from bitalloc.data import ImageBatches, Splits
from tiny_module import Net, data, pixels


def net(classes=3):
    """The network of the tests with another head."""
    model = Net()
    model.head = nn.Linear(4, classes)
    return model


def renamed(classes=3):
    """The same layers in the same order under other names."""
    model = net(classes)
    return nn.Sequential(model.stem, Body(model.body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head)


class Body(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.relu(x + self.inner(x))


def wide(classes=3):
    model = Net(8)
    model.head = nn.Linear(8, classes)
    return model


def large(*, batch_size, seed, root=None):
    """16 x 16 pixels in two classes."""

    def part(count, number, shuffle=False):
        images, labels = pixels(count, number)
        images = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return ImageBatches(images, labels % 2, batch_size, (0.2,), (0.2,), seed=seed, shuffle=shuffle)

    train = part(24, 1, shuffle=True)
    return Splits(train, part(24, 1), part(24, 2), part(24, 3), train.batch(0)[0][:1], 2)
'''
SOURCE: dict[str, Any] = {
    "data": "source_module:large",
    "model_options": {"classes": 2},
    "float": {"epochs": 1},
    "batch_size": 8,
}
SUPERNET = {"epochs": 3, "learning_rate": 0.01, "logit_rate": 0.1, "range_start": "auto"}
# On 8 x 8 images stem.0 and head cost (4 * 9 * 16 + 12) * 64 at w8a8; body.0 and body.3 have 576 and 256 MACs.
LEVEL = {"name": "first", "budgets": {"bitops": 45120}}


@pytest.fixture
def transfer(project: Any) -> Any:
    (project.folder / "source_module.py").write_text(MODULE)
    return project


def _recipe(project: Any, *without: str, **changes: Any) -> Path:
    path: Path = project.recipe(*without, **{"model": "source_module:net", "source": SOURCE, "levels": [LEVEL], **changes})
    return path


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _fresh_module(monkeypatch: pytest.MonkeyPatch, project: Any) -> None:
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.delitem(__import__("sys").modules, "source_module", raising=False)


def test_a_search_on_the_source_is_solved_on_the_target(transfer: Any) -> None:
    result = transfer.good("search", _recipe(transfer, "measure", supernet=SUPERNET), "--out", "out")
    started = [line.removesuffix(": started") for line in result.stderr.splitlines() if line.endswith(": started")]
    assert started == ["describe", "source/describe", "source/float", "source/supernet/first", "float", "search/first"]
    assert not Path("out/log_probabilities.json").exists()
    found = LogProbabilities.load("out/source/log_probabilities.json")
    assert found.weight_shapes["head"] == (2, 4)
    # Four times the positions, all but the head, whose 8 MACs are of two classes: the limit is the same share of the widest policy.
    stem, body, head = 4 * 9 * 16 * 64, (576 + 256) * 16, 12 * 64
    (searched,) = _read("out/source/supernet.json")["budgets"]
    assert searched["limit"] == pytest.approx(45120 * (4 * stem + 4 * body + 8 * 64) / (stem + body + head))
    (use,) = _read("out/search.json")["budgets"]
    policy = Policy.load("out/policy.json")
    assert use["limit"] == 45120
    assert use["used"] == stem + head + sum(macs * b.weight * b.act for macs, b in _body(policy)) <= 45120
    assert policy.weight_shapes["head"] == (3, 4)
    assert policy.provenance["source"] == {"data": "source_module:large", "data_options": {}}


def _body(policy: Policy) -> list[Any]:
    return [(576, policy.bits["body.0"]), (256, policy.bits["body.3"])]


def test_importance_that_was_measured_on_the_source_is_solved_on_the_target(transfer: Any) -> None:
    transfer.good("run", _recipe(transfer), "--out", "out")
    summary = _read("out/summary.json")
    assert summary["scoring"]["source"]["data"] == "source_module:large"
    # Three quarters of an epoch of three batches of eight.
    assert summary["scoring"]["images"] == 16
    assert set(Indicators.load("out/source/importance.json").weight) == {"body.0", "body.3"}
    assert not Path("out/importance.json").exists()
    again = transfer.good("run", _recipe(transfer), "--out", "out")
    assert {line.split(": ")[1] for line in again.stderr.splitlines()} == {"done before"}
    # Another target budget is solved anew from the same importance.
    other = transfer.good("search", _recipe(transfer, levels=[{"name": "first", "budgets": {"bitops": 44000}}]), "--out", "out")
    assert "source/measure: done before" in other.stderr
    assert _read("out/search.json")["budgets"][0]["limit"] == 44000
    assert transfer.good("measure", _recipe(transfer), "--out", "out").stdout.strip()
    assert "body.0" in transfer.good("explain", _recipe(transfer), "--out", "out").stdout


def test_other_layer_names_need_a_map(transfer: Any) -> None:
    source = {**SOURCE, "model": "source_module:renamed"}
    message = transfer.error("measure", _recipe(transfer, source=source), "--out", "out")
    assert "only there 0.0, 1.inner.0, 1.inner.3, 4; only here stem.0, body.0, body.3, head" in message
    names = {"body.0": "1.inner.0", "body.3": "1.inner.3"}
    transfer.good("search", _recipe(transfer, source={**source, "names": names}), "--out", "mapped")
    found = Indicators.load("mapped/source/importance.json")
    policy = Policy.load("mapped/policy.json")
    assert set(policy.bits) == {"stem.0", "body.0", "body.3", "head"}
    assert set(found.weight) == set(names.values())
    half = {**source, "names": {"body.0": "1.inner.0"}}
    assert "[source.names] leaves out body.3" in transfer.error("measure", _recipe(transfer, source=half), "--out", "half")


def test_what_is_wrong_is_told_before_any_training(transfer: Any) -> None:
    source = {**SOURCE, "model": "source_module:wide"}
    message = transfer.error("measure", _recipe(transfer, source=source), "--out", "out")
    assert "body.0 (source (8, 1, 3, 3), here (4, 1, 3, 3))" in message
    assert not Path("out/float.json").exists()
    assert not Path("out/source/float.json").exists()
    path = _recipe(transfer, source={**source, "input_shape": [1, 16, 16]}, input_shape=[1, 8, 8])
    assert "other weight shapes" in transfer.error("run", path, "--out", "dry", "--dry-run")
    without = {key: value for key, value in SOURCE.items() if key != "float"}
    assert "'source.float': is missing" in transfer.error("run", _recipe(transfer, source=without), "--out", "out")
    message = transfer.error("run", _recipe(transfer, finetune={"start": "joint"}), "--out", "out")
    assert "[source] replaces" in message


def test_a_level_below_the_smallest_policy_of_the_source_is_told_before_any_training(transfer: Any) -> None:
    # With 200 classes pinned at w8a8 the smallest policy of the source costs 84 % of its widest; 41.5k is 81 % of the run's.
    source = {**SOURCE, "model_options": {"classes": 200}}
    path = _recipe(transfer, "measure", supernet=SUPERNET, source=source, levels=[{"name": "small", "budgets": {"bitops": 41500}}])
    message = transfer.error("search", path, "--out", "out")
    assert "level small, searched on the source: the budget 'bitops' is 205206 bitops" in message
    assert "costs 211968" in message
    assert not Path("out/source/float.json").exists()
    assert message == transfer.error("run", path, "--out", "dry", "--dry-run")


def test_no_level_can_have_the_folder_of_the_source(transfer: Any) -> None:
    levels = [{**LEVEL, "name": "source"}]
    assert "no level can be named source" in transfer.error("run", _recipe(transfer, levels=levels), "--out", "out")


def test_the_recipe_of_the_transfer_scores_on_a_tenth_of_the_source() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "gmpq_cifar10_to_tiny_imagenet.toml")
    assert recipe.source is not None
    assert recipe.source.data_options == {"fraction": 0.1}
