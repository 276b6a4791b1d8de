"""What attribution needs of a model and its images is tried before any training, wherever a recipe asks for attribution."""

import json
from pathlib import Path
from typing import Any

import pytest

MODULE = '''\
from types import SimpleNamespace

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.data import Splits
from tiny_module import Net, data, pixels


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


def pair():
    return Pair()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


class Single(Net):
    def forward(self, x):
        return super().forward(Once.apply(x))


def single():
    return Single()


def two_channels():
    model = Net()
    model.stem[0] = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    return model


def zeros():
    """As transformers and residual networks begin: layers whose weights are zero."""
    model = Net()
    for weight in (model.body[3].weight, model.body[4].weight, model.head.weight):
        nn.init.zeros_(weight)
    return model


class Body(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.relu(x + self.inner(x))


def renamed():
    """The layers of the target by other names."""
    model = Net()
    return nn.Sequential(model.stem, Body(model.body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head)


def sentences():
    return nn.Sequential(nn.Embedding(250, 4), nn.Flatten(), nn.Linear(64 * 4, 8), nn.ReLU(), nn.Linear(8, 3))


def words(*, batch_size, seed, root=None):
    def part(count, number):
        images, labels = pixels(count, number)
        return DataLoader(TensorDataset(images.flatten(1).long(), labels), batch_size)

    return SimpleNamespace(
        train=part(24, 1), calibration=part(24, 1), valid=part(24, 2), test=part(24, 3), example=torch.zeros(1, 64, dtype=torch.int64)
    )
'''
GMPQ = {"supernet": {"epochs": 0.5, "range_start": "auto"}, "levels": [{"name": "first", "budgets": {"mean_bits": 5}}]}
SCORED = {"measure": {"metric": "attribution"}}
COMPARED = {"evaluate": {"attribution_images": 4}}
PRICED = {
    "model": "models_module:sentences",
    "data": "models_module:words",
    "supernet": {"method": "edmips", "epochs": 1, "price": 0.01, "range_start": "auto"},
    "space": {"first_last_candidates": [8, 4]},
    "levels": [{"name": "first", "budgets": {"bitops": "w5a5"}}],
}

ERRORS: list[tuple[dict[str, Any], str]] = [
    ({**GMPQ, "model": "models_module:perceptron"}, "the float model: no feature map was found"),
    ({**GMPQ, "model": "models_module:pair"}, "the float model: the model gave a tuple, expected logits"),
    (
        {**GMPQ, "model": "models_module:single", "supernet": {**GMPQ["supernet"], "attribution": "input-gradient"}},
        "the loss cannot be differentiated: trying to differentiate twice a function that was marked with @once_differentiable",
    ),
    ({**GMPQ, "model": "models_module:sentences", "data": "models_module:words"}, "the input is torch.int64 of shape (2, 64)"),
    ({**SCORED, "model": "models_module:perceptron"}, 'measure.metric = "attribution": no feature map was found'),
    ({**SCORED, "model": "models_module:pair"}, 'measure.metric = "attribution": the model gave a tuple, expected logits'),
    ({**COMPARED, "model": "models_module:perceptron"}, "[evaluate] attribution_images and attribution_pictures: no feature map"),
    ({**COMPARED, "model": "models_module:pair"}, "attribution_pictures: the model gave a tuple, expected logits"),
    (
        {"evaluate": {"attribution_pictures": 2}, "model": "models_module:two_channels", "input_shape": [2, 8, 8]},
        "evaluate.attribution_pictures: the images have shape (2, 2, 8, 8), expected (N, 1 or 3, H, W)",
    ),
]


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch, project: Any) -> None:
    (project.folder / "models_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.delitem(__import__("sys").modules, "models_module", raising=False)


def _recipe(project: Any, changes: dict[str, Any]) -> Path:
    path: Path = project.recipe(*(["measure"] if "supernet" in changes else []), **changes)
    return path


@pytest.mark.parametrize(("changes", "sentence"), ERRORS, ids=[sentence for _, sentence in ERRORS])
def test_it_is_told_by_a_dry_run_and_before_any_training(project: Any, changes: dict[str, Any], sentence: str) -> None:
    recipe = _recipe(project, changes)
    assert sentence in project.error("run", recipe, "--out", "out", "--dry-run")
    assert not Path("out").exists()
    assert sentence in project.error("run", recipe, "--out", "out")
    assert not Path("out/float.json").exists()


@pytest.mark.parametrize("pair", ["pact", "lsq"])
@pytest.mark.parametrize("attribution", ["gradcam", "input-gradient"])
def test_weights_of_zeros_pass(project: Any, pair: str, attribution: str) -> None:
    section = {**GMPQ["supernet"], "pair": pair, "attribution": attribution}
    recipe = _recipe(project, {**GMPQ, "supernet": section, "model": "models_module:zeros", "input_shape": [1, 8, 8]})
    project.good("run", recipe, "--out", "out", "--dry-run")


@pytest.mark.parametrize("scores", [{"supernet": {"epochs": 0.5}}, SCORED])
def test_it_is_tried_where_the_widths_are_scored(project: Any, scores: dict[str, Any]) -> None:
    """Of an image of 2 x 2 the network's feature map has one position."""
    shared = {**scores, "levels": GMPQ["levels"], "model": "tiny_module:net"}
    source = {"data": "tiny_module:data", "float": {"epochs": 1}}
    small = _recipe(project, {**shared, "input_shape": [1, 8, 8], "source": {**source, "input_shape": [1, 2, 2]}})
    assert "no feature map was found" in project.error("run", small, "--out", "out", "--dry-run")
    large = _recipe(project, {**shared, "input_shape": [1, 2, 2], "source": {**source, "input_shape": [1, 8, 8]}})
    project.good("run", large, "--out", "out", "--dry-run")


def test_layers_that_are_called_otherwise_in_the_source_are_not_looked_for_in_the_target(project: Any) -> None:
    names = {"body.0": "1.inner.0", "body.3": "1.inner.3"}
    source = {"model": "models_module:renamed", "data": "tiny_module:data", "float": {"epochs": 1}, "names": names}
    section = {**GMPQ["supernet"], "layers": ["1"]}
    project.good("run", _recipe(project, {**GMPQ, **COMPARED, "supernet": section, "source": source}), "--out", "out", "--dry-run")


def test_a_price_is_in_units_of_the_first_layer_that_multiplies(project: Any) -> None:
    recipe = _recipe(project, PRICED)
    project.good("run", recipe, "--out", "out", "--dry-run")
    project.good("search", recipe, "--out", "out")
    found = {layer["name"]: layer["macs"] for layer in json.loads(Path("out/layers.json").read_text())["layers"]}
    assert (found["0"], found["2"]) == (0, 64 * 4 * 8)


def test_the_networks_are_compared_by_what_the_search_looks_at(project: Any) -> None:
    changes = {
        "levels": GMPQ["levels"],
        "evaluate": {"attribution_images": 4, "attribution_pictures": 1},
        "finetune": {"epochs": 0.25, "warmup_epochs": 0},
    }
    search = {"method": "edmips", "epochs": 0.25, "range_start": "auto"}
    for attribution, name in (("input-gradient", "InputGradient"), ("gradcam", "GradCAM")):
        recipe = _recipe(project, {**changes, "supernet": {**search, "attribution": attribution}})
        result = project.good("evaluate", recipe, "--out", "out")
        assert "attribution: started" in result.stderr
        assert json.loads(Path("out/attribution.json").read_text())["attribution"] == name
    assert "finetune/first/mixed: done before" in result.stderr  # EdMIPS finds the same policy
