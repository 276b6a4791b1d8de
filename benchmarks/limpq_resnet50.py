"""Reproduces the published search of LIMPQ on ResNet-50 (Tang et al., ECCV 2022) and prints every figure beside its reference.

Usage: python benchmarks/limpq_resnet50.py INSTANCE.json

INSTANCE.json holds the released importance indicators of 52 layers, their MACs (correct, and as the published search counted
them), their numbers of weights, and the published policy.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, resolve_budgets
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits
from bitalloc.search import Problem, Solution, solve
from bitalloc.sensitivity.indicators import Indicators
from bitalloc.space import SearchSpace

ALPHA = 2.0  # as published for ResNet-50
PIN = Bits(8, 8)
PINS = {"conv1": PIN, "linear": PIN}
BOTH: dict[str, str | int | float] = {"bitops": "w3a4", "compression": 12.2}
# The optimum that an independent solver finds for each of these.
CASES: tuple[tuple[str, str, dict[str, str | int | float], float], ...] = (
    ("W3A4 and 12.2x", "macs", BOTH, 4.630866),
    ("W3A3", "macs", {"bitops": "w3a3"}, 5.500032),
    ("W4A4", "macs", {"bitops": "w4a4"}, 3.434700),
    ("W3A4", "macs", {"bitops": "w3a4"}, 4.396540),
    ("W3A4 and 12.2x, published MACs", "macs_search_py", BOTH, 4.617439),
)


def model(instance: dict[str, Any], macs: str) -> tuple[list[LayerInfo], SearchSpace]:
    """The 52 searched layers between the first and the last, which are pinned at 8 bits."""
    first, last = instance["fixed"]["first_layer"], instance["fixed"]["linear"]
    rows = [
        ("conv1", first["params"], first["macs"]),
        *((layer["name"], layer["params"], layer[macs]) for layer in instance["layers"]),
        ("linear", last["params"], last["macs"]),
    ]
    # Shapes of inputs and outputs are not in the file, and neither cost needs them.
    layers = [LayerInfo(name, "linear" if name == "linear" else "conv2d", (params,), count, 0, 0) for name, params, count in rows]
    return layers, search_space(layers, instance["bits"], pins=PINS)


def indicators(instance: dict[str, Any]) -> Indicators:
    """The released indicators, as measured."""
    weight, act = ({x["name"]: {int(w): v for w, v in x[side].items()} for x in instance["layers"]} for side in ("weight", "act"))
    return Indicators(weight, act)


def search(instance: dict[str, Any], macs: str, budgets: dict[str, str | int | float]) -> Solution:
    """The optimum with the published erasing rule."""
    layers, space = model(instance, macs)
    erased, _ = indicators(instance).erased()
    return solve(Problem(space, erased.table(ALPHA, space), resolve_budgets(budgets, layers, space)))


def excess(instance: dict[str, Any]) -> float:
    """By how many per cent the published policy exceeds its own BitOps budget when MACs are counted correctly."""
    layers = model(instance, "macs")[0][1:-1]  # the published budget counts the searched layers only
    published = instance["published"]
    widths = zip(layers, published["weight_bits"], published["act_bits"], strict=True)
    used = BitOps().total(layers, {layer.name: Bits(weight, act) for layer, weight, act in widths})
    return 100 * (used / BitOps().total(layers, {layer.name: Bits(3, 4) for layer in layers}) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reproduces the published search of LIMPQ on ResNet-50.")
    parser.add_argument("instance", type=Path, help="instance.json with the released indicators")
    instance = json.loads(parser.parse_args().instance.read_text(encoding="utf-8"))
    layers, space = model(instance, "macs")
    print(BitOps.convention(space, layers))
    print(f"{'budgets':32}{'expected':>10}{'found':>10}{'difference':>12}{'status':>9}{'seconds':>9}")
    for name, macs, budgets, expected in CASES:
        found = search(instance, macs, budgets)
        row = f"{name:32}{expected:10.6f}{found.objective:10.6f}{found.objective - expected:12.1e}"
        print(f"{row}{found.status:>9}{found.seconds:9.2f}")
    names = [layer["name"] for layer in instance["layers"]]
    published = instance["published"]
    for side, key in (("weight", "weight_bits"), ("act", "act_bits")):
        same = sum(getattr(found.bits[name], side) == width for name, width in zip(names, published[key], strict=True))
        print(f"{side} widths as published, with the published MACs: {same} of {len(names)} (expected 52)")
    print(f"published policy above its BitOps budget, with correct MACs: {excess(instance):.2f} % (expected 0.49 %)")
    monotone, changes = indicators(instance).isotonic()
    print(f"isotonic projection changes {', '.join(dict.fromkeys(change.layer for change in changes))}")
    print(f"automatic alpha {monotone.automatic_alpha().value:.3f} ({monotone.automatic_alpha().reason}); published: {ALPHA:g}")


if __name__ == "__main__":
    main()
