"""The published search of LIMPQ on ResNet-50, where its released indicators lie beside the project.

Set BITALLOC_SHARED to the folder that holds data/limpq_resnet50/instance.json to find them elsewhere.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, resolve_budgets
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits
from bitalloc.search import Problem, Solution, solve
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.space import SearchSpace

ROOT = Path(__file__).resolve().parents[2]
INSTANCE = Path(os.environ.get("BITALLOC_SHARED", ROOT.parent / "shared")) / "data" / "limpq_resnet50" / "instance.json"
PIN = Bits(8, 8)

pytestmark = pytest.mark.skipif(not INSTANCE.is_file(), reason="the released ResNet-50 indicators are not beside the project")


@pytest.fixture(scope="module")
def instance() -> dict[str, Any]:
    return json.loads(INSTANCE.read_text())


def indicators(instance: dict[str, Any]) -> Indicators:
    weight, act = ({x["name"]: {int(w): v for w, v in x[side].items()} for x in instance["layers"]} for side in ("weight", "act"))
    return Indicators(weight, act)


def model(instance: dict[str, Any], macs: str) -> tuple[list[LayerInfo], SearchSpace]:
    """All 54 layers; the first and the last are pinned at 8 bits, as published, and so cost the same in every policy."""
    first, last = instance["fixed"]["first_layer"], instance["fixed"]["linear"]
    rows = [
        ("conv1", first["params"], first["macs"]),
        *((x["name"], x["params"], x[macs]) for x in instance["layers"]),
        ("linear", last["params"], last["macs"]),
    ]
    layers = [LayerInfo(name, "conv2d", (params,), count, 1, 1) for name, params, count in rows]
    return layers, search_space(layers, instance["bits"], pins={"conv1": PIN, "linear": PIN})


def search(instance: dict[str, Any], macs: str, budgets: dict[str, str | float]) -> Solution:
    layers, space = model(instance, macs)
    published, _ = indicators(instance).erased()
    return solve(Problem(space, published.table(2.0, space), resolve_budgets(budgets, layers, space)))


@pytest.mark.parametrize(
    ("budgets", "optimum"),
    [
        ({"bitops": "w3a4", "compression": 12.2}, 4.630866),
        ({"bitops": "w3a3"}, 5.500032),
        ({"bitops": "w4a4"}, 3.434700),
        ({"bitops": "w3a4"}, 4.396540),
    ],
)
def test_optima_with_correct_macs(instance: dict[str, Any], budgets: dict[str, str | float], optimum: float) -> None:
    found = search(instance, "macs", budgets)
    assert found.objective == pytest.approx(optimum, abs=1e-5)
    assert (found.status, found.gap) == ("optimal", 0.0)


def test_the_published_policy_comes_out_of_the_published_counts(instance: dict[str, Any]) -> None:
    found = search(instance, "macs_search_py", {"bitops": "w3a4", "compression": 12.2})
    assert found.objective == pytest.approx(4.617439, abs=1e-5)
    names = [layer["name"] for layer in instance["layers"]]
    assert [found.bits[name].weight for name in names] == instance["published"]["weight_bits"]
    assert [found.bits[name].act for name in names] == instance["published"]["act_bits"]


def test_the_published_policy_exceeds_its_budget_with_correct_macs(instance: dict[str, Any]) -> None:
    layers, _ = model(instance, "macs")
    searched = layers[1:-1]  # the published budget counts these 52 only
    published = instance["published"]
    widths = zip(searched, published["weight_bits"], published["act_bits"], strict=True)
    policy = {layer.name: Bits(weight, act) for layer, weight, act in widths}
    limit = BitOps().total(searched, {layer.name: Bits(3, 4) for layer in searched})
    assert round(100 * (BitOps().total(searched, policy) / limit - 1), 2) == 0.49


def test_erasing_erases_what_was_erased(instance: dict[str, Any]) -> None:
    _, changes = indicators(instance).erased()
    listed = {(layer["name"], side, int(width)) for layer in instance["layers"] for side, width in layer["erased"]}
    assert {(change.layer, change.side, change.width) for change in changes} == listed


def test_isotonic_needs_the_same_layers_and_alpha_is_about_two(instance: dict[str, Any]) -> None:
    monotone, changes = indicators(instance).isotonic()
    assert {change.layer for change in changes} == {layer["name"] for layer in instance["layers"] if layer["erased"]}
    assert monotone.automatic_alpha().value == pytest.approx(2.2, abs=0.05)
