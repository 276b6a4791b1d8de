"""``summary.json``: what a run gave, in one file."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

from bitalloc import __version__
from bitalloc.costs import BitOps, WeightBytes
from bitalloc.files import write_json
from bitalloc.layers import Description
from bitalloc.pipeline.recipe import LevelSection
from bitalloc.pipeline.training_tasks import read_report
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Policy

SCHEMA = "bitalloc.summary"
VERSION = 1
_PACKAGES = ("torch", "numpy", "highspy", "onnx", "onnxruntime")


def write_summary(work: Workspace, command: Sequence[str]) -> dict[str, Any]:
    """Writes ``summary.json`` from the stages' reports and returns it."""
    description = work.description()
    evaluation = read_report(work.folder.path("evaluation.json"))
    levels = [_level(work, level, description, evaluation["levels"][level.name]) for level in work.recipe.levels]
    first_search = read_report(work.folder.level_path(work.recipe.levels[0], "search.json"))
    summary = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": work.recipe.name,
        "float_top1": evaluation["float_top1"],
        "levels": levels,
        "measure_seconds": read_report(work.folder.path("measure.json"))["seconds"],
        "bitops_convention": first_search["bitops_convention"],
        "seed": work.recipe.seed,
        "versions": versions(),
        "command": list(command),
    }
    write_json(work.folder.path("summary.json"), summary)
    return summary


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    found = {"bitalloc": __version__, "python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def mean_act_bits(policy: Policy, description: Description) -> float:
    """Mean activation width over all layers, weighted by the elements that a layer reads, pinned layers included."""
    total = sum(layer.input_numel for layer in description.layers)
    return sum(layer.input_numel * policy.bits[layer.name].act for layer in description.layers) / total


def _level(work: Workspace, level: LevelSection, description: Description, top1: dict[str, Any]) -> dict[str, Any]:
    def report(name: str) -> dict[str, Any]:
        return read_report(work.folder.level_path(level, name))

    policy = Policy.load(work.folder.level_path(level, "policy.json"))
    search, export, finetune = report("search.json"), report("export.json"), report("mixed_finetune.json")
    return {
        "name": level.name,
        "budgets": search["budgets"],
        "search_status": search["status"],
        "search_bound": search["bound"],
        "search_objective": search["objective"],
        "search_seconds": search["seconds"],
        "alpha": search["alpha"]["value"],
        "mean_weight_bits": policy.mean_weight_bits(),
        "mean_act_bits": mean_act_bits(policy, description),
        "weight_bytes": WeightBytes().total(description.layers, policy.bits),
        "bitops": BitOps().total(description.layers, policy.bits),
        **top1,
        "mixed_valid_top1": finetune["valid_top1"],
        "uniform_valid_top1": report("uniform_finetune.json")["valid_top1"],
        "finetune_steps": finetune["steps"],
        "finetune_seconds": finetune["seconds"],
        "onnx_agreement": export["agreement"],
        "onnx_max_abs_diff": export["max_abs_diff"],
        "onnx_file_bytes": export["file_bytes"],
    }
