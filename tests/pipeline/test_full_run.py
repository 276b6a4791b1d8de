"""The whole job on a tiny network: every file, every figure, nothing done twice."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitalloc import Policy, load_checkpoint

MACS = {"stem.0": 4 * 9 * 16, "body.0": 4 * 9 * 16, "body.3": 4 * 4 * 16, "head": 12}
WEIGHTS = {"stem.0": 36, "body.0": 36, "body.3": 16, "head": 12}
INPUTS = {"stem.0": 64, "body.0": 64, "body.3": 64, "head": 4}
OF_THE_RUN = {"layers.json", "float.safetensors", "float.json", "joint.safetensors", "step_sizes.json", "measure.json"}
OF_THE_RUN |= {"importance.json", "metric.json", "evaluation.json", "summary.json"}
OF_A_LEVEL = {"policy.json", "uniform_policy.json", "search.json", "mixed.safetensors", "mixed_finetune.json", "uniform.safetensors"}
OF_A_LEVEL |= {"uniform_finetune.json", "model.onnx", "export.json"}
REVERSED = {"reversed_policy.json", "reversed.safetensors", "reversed_finetune.json"}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_leaves_just_the_promised_files(finished: Path, contents: Callable[[Path], dict[str, bytes]]) -> None:
    second = {f"second/{name}" for name in OF_A_LEVEL}
    assert set(contents(finished)) == OF_THE_RUN | OF_A_LEVEL | REVERSED | second | {"stages.json", "data.json", "training.jsonl"}


def test_the_summary_has_every_promised_figure(finished: Path) -> None:
    summary = _read(finished / "summary.json")
    assert [level["name"] for level in summary["levels"]] == ["first", "second"]
    share, positive = (lambda value: 0 <= value <= 1), (lambda value: value > 0)
    checks: dict[str, Callable[[Any], bool]] = {
        "search_status": lambda value: value == "optimal",
        "search_bound": lambda value: isinstance(value, float),
        "search_objective": lambda value: isinstance(value, float),
        "search_seconds": positive,
        "mean_weight_bits": lambda value: 2 <= value <= 8,
        "mean_act_bits": lambda value: 2 <= value <= 8,
        "weight_bytes": positive,
        "bitops": positive,
        "mixed_top1": share,
        "uniform_top1": share,
        "finetune_seconds": positive,
        "onnx_agreement": share,
        "onnx_max_abs_diff": lambda value: 0 <= value < 1,
    }
    for level in summary["levels"]:
        failed = {key: level[key] for key, check in checks.items() if not check(level[key])}
        assert failed == {}
        assert level["search_objective"] == level["search_bound"]
        assert level["policy_edited"] is False
        for budget in level["budgets"]:
            assert set(budget) >= {"name", "limit", "unit", "used"}
            assert 0 < budget["used"] <= budget["limit"]
    assert share(summary["levels"][0]["reversed_top1"])
    assert summary["levels"][1]["reversed_top1"] is None
    assert share(summary["float_top1"])
    assert summary["measure_seconds"] > 0
    assert summary["seed"] == 0
    assert summary["command"][:2] == ["bitalloc", "run"]
    assert {"torch", "python", "bitalloc", "highspy", "onnxruntime"} <= set(summary["versions"])
    assert "stem.0 at w8a8, head at w8a8" in summary["bitops_convention"]


@pytest.mark.parametrize(("level", "folder"), [(0, "."), (1, "second")])
def test_the_figures_equal_a_count_by_hand(finished: Path, level: int, folder: str) -> None:
    figures = _read(finished / "summary.json")["levels"][level]
    bits = Policy.load(finished / folder / "policy.json").bits
    assert (str(bits["stem.0"]), str(bits["head"])) == ("w8a8", "w8a8")
    assert figures["bitops"] == sum(MACS[name] * b.weight * b.act for name, b in bits.items())
    assert figures["weight_bytes"] == sum(-(-WEIGHTS[name] * b.weight // 8) for name, b in bits.items())
    assert figures["mean_weight_bits"] == pytest.approx(sum(WEIGHTS[name] * b.weight for name, b in bits.items()) / 100)
    assert figures["mean_act_bits"] == pytest.approx(sum(INPUTS[name] * b.act for name, b in bits.items()) / 196)
    used = {budget["unit"]: budget["used"] for budget in figures["budgets"]}
    assert all(figures[unit] == value for unit, value in used.items())


def test_the_limits_are_those_of_the_recipe(finished: Path) -> None:
    first, second = (level["budgets"] for level in _read(finished / "summary.json")["levels"])
    assert [(budget["name"], budget["limit"], budget["unit"]) for budget in first] == [
        ("bitops", 45120, "bitops"),
        ("compression", 4 * 100 / 5, "weight_bytes"),
    ]
    assert [(budget["name"], budget["limit"]) for budget in second] == [("weight_bytes", 70)]


@pytest.mark.parametrize(("folder", "kinds"), [(".", ("mixed", "uniform", "reversed")), ("second", ("mixed", "uniform"))])
def test_all_policies_of_a_level_keep_its_budgets_and_get_the_same_training(finished: Path, folder: str, kinds: tuple[str, ...]) -> None:
    limits = {use["unit"]: use["limit"] for use in _read(finished / folder / "search.json")["budgets"]}
    steps = set()
    for kind in kinds:
        _, policy, _ = load_checkpoint(finished / folder / f"{kind}.safetensors")
        bitops = sum(MACS[name] * b.weight * b.act for name, b in policy.bits.items())
        size = sum(-(-WEIGHTS[name] * b.weight // 8) for name, b in policy.bits.items())
        assert bitops <= limits.get("bitops", bitops)
        assert size <= limits.get("weight_bytes", size)
        report = _read(finished / folder / f"{kind}_finetune.json")
        assert len(report["losses"]) == report["steps"]
        steps.add(report["steps"])
    assert steps == {4}  # one epoch of 48 images in batches of 12


def test_the_uniform_policy_has_one_pair_in_all_free_layers(finished: Path) -> None:
    bits = Policy.load(finished / "uniform_policy.json").bits
    assert bits["body.0"] == bits["body.3"]


def test_a_finished_run_is_left_as_it_is(finished: Path, project: Any, contents: Callable[[Path], dict[str, bytes]]) -> None:
    def times() -> dict[Path, int]:
        return {path: os.stat(path).st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}

    summary = _read(finished / "summary.json")
    before, times_before = contents(finished), times()
    result = project.good(*summary["command"][1:])
    assert contents(finished) == before
    assert times() == times_before
    assert {line.split(": ")[1] for line in result.stderr.splitlines()} == {"done before"}


def test_the_log_names_every_task(finished_output: tuple[str, str]) -> None:
    started = [line.removesuffix(": started") for line in finished_output[1].splitlines() if line.endswith(": started")]
    trained = ["first/mixed", "first/uniform", "first/reversed", "second/mixed", "second/uniform"]
    tasks = ["describe", "float", "measure", "importance", "search/first", "search/second", *(f"finetune/{name}" for name in trained)]
    assert started == [*tasks, "evaluate", "export/first", "export/second"]
