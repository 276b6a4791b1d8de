"""``summary.json``: what a run gave, in one file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from bitalloc import __version__
from bitalloc.coupling import requantizations
from bitalloc.errors import FileError
from bitalloc.files import write_json
from bitalloc.layers import Description
from bitalloc.pipeline.attribution_tasks import rank_distances
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.result_tasks import kinds
from bitalloc.pipeline.run_folder import damage, digest, read_report
from bitalloc.pipeline.source import provenance, scored
from bitalloc.pipeline.training_notes import notes
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Policy

SCHEMA = "bitalloc.summary"
VERSION = 1
_PACKAGES = ("torch", "numpy", "highspy", "onnx", "onnxruntime")


def write_summary(work: Workspace, command: Sequence[str]) -> dict[str, Any]:
    """Writes ``summary.json`` from the stages' reports and returns it."""
    description = work.description()
    evaluation = read_report(work.folder.path("evaluation.json"), "float_top1", "levels")
    levels = [_level(work, level, description, _top1(work, level, evaluation)) for level in work.recipe.levels]
    scoring = _scoring(work)
    first_search = read_report(work.folder.level_path(work.recipe.levels[0], "search.json"), "bitops_convention")
    summary = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": work.recipe.name,
        "float_top1": evaluation["float_top1"],
        "levels": levels,
        "training_notes": [note for name, path in _trainings(work) for note in notes(name, path, work.recipe.engine.accumulate)],
        "measure_seconds": scoring["seconds"],
        "scoring": scoring,
        "bitops_convention": first_search["bitops_convention"],
        "seed": work.recipe.seed,
        "versions": versions(),
        "command": list(command),
    }
    path = work.folder.path("summary.json")
    if not _is(path, summary):  # a run that does nothing changes nothing
        write_json(path, summary)
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


def _trainings(work: Workspace) -> Iterator[tuple[str, Path]]:
    """Every training of the run, and the file that tells of it."""
    home, told = scored(work), "" if work.recipe.source is None else "source "
    yield "float training", work.folder.path("float.json")
    if home is not work:
        yield f"{told}float training", home.folder.path("float.json")
    if work.recipe.supernet is None:
        yield f"{told}joint training", home.folder.path("measure.json")
    else:
        yield from ((f"{told}supernet {level.name}", _searched(home, level)) for level in work.recipe.levels)
    for level in work.recipe.levels:
        for kind in kinds(level):
            yield f"fine-tuning {level.name} {kind}", work.folder.level_path(level, f"{kind}_finetune.json")


def _scoring(work: Workspace) -> dict[str, Any]:
    """How the widths were scored, and what that cost: seconds of training and probing, and images seen in training."""
    home, section = scored(work).folder, work.recipe.supernet
    if section is None:
        reports = [read_report(home.path("measure.json"), "seconds", "images"), read_report(home.path("metric.json"), "seconds")]
    else:
        reports = [read_report(_searched(scored(work), level), "seconds", "images") for level in work.recipe.levels]
    return {
        "method": work.recipe.measure.metric if section is None else section.method,
        "source": provenance(work),
        "seconds": sum(report["seconds"] for report in reports),
        "images": sum(report.get("images", 0) for report in reports),
    }


def _searched(home: Workspace, level: LevelSection) -> Path:
    return home.folder.level_path(level, "supernet.json")


def _search_end(work: Workspace, level: LevelSection) -> dict[str, Any] | None:
    """Where the search of a level ended, None without one: cost and images, expected costs against the budgets, and the entropy."""
    if work.recipe.supernet is None:
        return None
    keys = ("method", "seconds", "images", "budgets", "entropy")
    report = read_report(_searched(scored(work), level), *keys)
    return {key: report[key] for key in keys}


def _level(work: Workspace, level: LevelSection, description: Description, top1: dict[str, Any]) -> dict[str, Any]:
    def report(name: str, *keys: str) -> dict[str, Any]:
        return read_report(work.folder.level_path(level, name), *keys)

    path = work.folder.level_path(level, "policy.json")
    with damage(path):
        policy = Policy.load(path)
        policy.check(description.layers)
    search = report("search.json", "status", "objective", "bound", "seconds", "budgets", "alpha")
    finetune = report("mixed_finetune.json", "valid_top1", "steps", "seconds")
    export = report("export.json", "agreement", "max_abs_diff", "file_bytes", "file_sha256")
    model = work.folder.level_path(level, "model.onnx")
    with damage(model):
        if digest({}, (model,)) != export["file_sha256"]:
            raise FileError(f"{model} is not the file that was compared with PyTorch: it was truncated or edited.")
    alpha = search["alpha"] or {"value": None, "reason": None}  # probabilities have none
    widths = policy.as_text()
    edited = widths != search.get("policy", widths)
    costs = work.costs(description, work.space(description))
    return {
        "name": level.name,
        "budgets": [_use(budget, costs.used(budget["name"], policy.bits)) for budget in search["budgets"]] if edited else search["budgets"],
        "policy_edited": edited,
        "search_status": search["status"],
        "search_bound": search["bound"],
        "search_objective": search["objective"],
        "search_seconds": search["seconds"],
        "alpha": alpha["value"],
        "alpha_reason": alpha["reason"],
        "log_probability": search.get("log_probability"),
        "supernet": _search_end(work, level),
        "projected": [_change(change) for change in search.get("changes", [])],
        "mean_weight_bits": policy.mean_weight_bits(),
        "mean_act_bits": mean_act_bits(policy, description),
        "weight_bytes": costs.used("weight_bytes", policy.bits),
        "bitops": costs.used("bitops", policy.bits),
        "model_bytes": costs.used("model_bytes", policy.bits),
        "requantizations": asdict(requantizations(description, policy.bits)),
        **top1,
        "attribution_distance": rank_distances(work, level),
        "mixed_valid_top1": finetune["valid_top1"],
        "uniform_valid_top1": report("uniform_finetune.json", "valid_top1")["valid_top1"],
        "finetune_steps": finetune["steps"],
        "finetune_seconds": finetune["seconds"],
        "onnx_agreement": export["agreement"],
        "onnx_max_abs_diff": export["max_abs_diff"],
        "onnx_file_bytes": export["file_bytes"],
    }


def _change(change: dict[str, Any]) -> str:
    return f"{change['layer']} {change['side']} at {change['width']} bits: {change['before']:.4g} to {change['after']:.4g}"


def _use(budget: dict[str, Any], used: float) -> dict[str, Any]:
    """The use of a budget by a policy that was edited by hand, which may well exceed it."""
    return {**budget, "used": used, "slack": budget["limit"] - used}


def _top1(work: Workspace, level: LevelSection, evaluation: dict[str, Any]) -> dict[str, Any]:
    path = work.folder.path("evaluation.json")
    with damage(path):
        found = evaluation["levels"].get(level.name) if isinstance(evaluation["levels"], dict) else None
        if not isinstance(found, dict):
            raise FileError(f"{path} was edited: it has no level {level.name}.")
        return found


def _is(path: Path, summary: dict[str, Any]) -> bool:
    try:
        return read_report(path) == summary
    except FileError:
        return False
