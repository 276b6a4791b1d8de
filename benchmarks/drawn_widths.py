"""What drawing some of the candidate widths a step does to the indicators: rank correlations on the digits network, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/drawn_widths.py [--seeds 0 1 2] [--drawn 2] [--epochs 6] [--json FILE]

One float network, trained once, is measured from every seed with all widths a step and with ``--drawn`` of them; the seed moves batches,
augmentation and drawn widths. A second column does so many more steps that the passes are as many as with all. Correlations are over
all layers and widths: of the indicators, and of the indicators over the geometric mean of their width, which leaves out that every
indicator falls with the bits.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau, spearmanr  # type: ignore[import-untyped]
from torch import nn

from bitalloc import Indicators, JointSettings, describe, first_last_pins, learned_scale_importance, search_space
from bitalloc.data import digits
from bitalloc.models import digits_net
from bitalloc.training import WarmupCosine, cross_entropy_loss, fit, loss_step, sgd

CANDIDATES = (6, 5, 4, 3, 2)
BATCH = 64


def float_network() -> nn.Module:
    """As ``recipes/digits.toml`` trains it."""
    torch.manual_seed(0)
    model, loader = digits_net(), digits(batch_size=BATCH, seed=0).train
    steps = 20 * len(loader)
    schedule = WarmupCosine(0.1, steps, 2 * len(loader))
    step = loss_step(cross_entropy_loss(0.1))
    fit(model, loader, step=step, optimizer=sgd(model, 0.1, weight_decay=5e-4), schedule=schedule, total_steps=steps)
    return model


def measured(model: nn.Module, seed: int, drawn: int | None, epochs: float) -> tuple[Indicators, float]:
    """The indicators and the seconds of the training."""
    splits = digits(batch_size=BATCH, seed=seed)
    description = describe(model, splits.example)
    space = search_space(description, CANDIDATES, pins=first_last_pins(description))
    start = time.perf_counter()
    result = learned_scale_importance(
        model,
        description,
        space,
        splits.train,
        cross_entropy_loss(0.1),
        steps=math.ceil(epochs * len(splits.train)),
        calibration=list(itertools.islice(splits.calibration, 8)),
        settings=JointSettings(widths_per_step=drawn, seed=seed),
    )
    return result.indicators, time.perf_counter() - start


def logarithms(indicators: Indicators, *, centred: bool) -> list[float]:
    """Of all layers and widths, both sides; ``centred``: less their mean over the layers."""
    values: list[float] = []
    for rows in (indicators.weight, indicators.act):
        for bits in CANDIDATES:
            column = [math.log(row[bits]) for row in rows.values()]
            middle = statistics.mean(column) if centred else 0.0
            values += [value - middle for value in column]
    return values


def correlations(pairs: list[tuple[Indicators, Indicators]]) -> dict[str, float]:
    """Means over the pairs."""
    found: dict[str, list[float]] = {}
    for first, second in pairs:
        for centred in (False, True):
            x, y = logarithms(first, centred=centred), logarithms(second, centred=centred)
            name = " within a width" if centred else ""
            found.setdefault(f"Spearman{name}", []).append(float(spearmanr(x, y).statistic))
            found.setdefault(f"Kendall{name}", []).append(float(kendalltau(x, y).statistic))
    return {name: statistics.mean(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--drawn", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = float_network()
    longer = arguments.epochs * (len(CANDIDATES) + 1) / (arguments.drawn + 1)
    sides: dict[str, tuple[int | None, float]] = {
        "all": (None, arguments.epochs),
        f"{arguments.drawn} drawn": (arguments.drawn, arguments.epochs),
        f"{arguments.drawn} drawn, as many passes": (arguments.drawn, longer),
    }
    runs: dict[str, list[tuple[Indicators, float]]] = {name: [] for name in sides}
    for seed in arguments.seeds:
        for name, (drawn, epochs) in sides.items():
            runs[name].append(measured(model, seed, drawn, epochs))
            print(f"seed {seed}, {name}: {runs[name][-1][1]:.1f} s", flush=True)
    found = {name: [indicators for indicators, _ in results] for name, results in runs.items()}
    report: dict[str, Any] = {"all, two seeds": correlations(list(itertools.combinations(found["all"], 2)))}
    for name in list(sides)[1:]:
        report[f"{name} against all, same seed"] = correlations(list(zip(found[name], found["all"], strict=True)))
        report[f"{name}, two seeds"] = correlations(list(itertools.combinations(found[name], 2)))
    report["seconds"] = {name: statistics.median(seconds for _, seconds in results) for name, results in runs.items()}
    for name, values in report.items():
        print(f"{name:50}", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
