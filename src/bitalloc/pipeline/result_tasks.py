"""The stages that decide and report: describe, search, evaluate, export."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from bitalloc.errors import BitallocError, ExportError, FileError
from bitalloc.export import deploy, export_onnx, load_checkpoint, verify_onnx
from bitalloc.files import write_json
from bitalloc.pipeline.allocate import Allocation, allocate, reversed_policy
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.run_folder import damage, digest, read_report
from bitalloc.pipeline.source import load_indicators, load_probabilities, score_files
from bitalloc.pipeline.source import provenance as source_provenance
from bitalloc.pipeline.supernet_allocate import allocate_probabilities, reversed_search
from bitalloc.pipeline.training_tasks import policy_file, starting_model
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Bits, Policy
from bitalloc.quantizers import cached_weights
from bitalloc.training import Entry, device, evaluate
from bitalloc.wrap import QuantizerSettings, quantize
from bitalloc.wrap.describe import describe


def describe_model(work: Workspace) -> None:
    """Writes ``layers.json``."""
    describe(work.new_model(), work.example).save(work.folder.path("layers.json"))


def allocate_level(work: Workspace, level: LevelSection, provenance: Mapping[str, Any] | None = None) -> Allocation:
    """The policies of one level from what was measured or searched; ``provenance`` is kept in them."""
    description = work.description()
    space = work.space(description)
    common: dict[str, Any] = {
        "uniform_bits": None if level.uniform is None else Bits.parse(level.uniform),
        "uniform_space": work.uniform_space(description),
        "tables": work.tables(),
        "per_channel": work.recipe.quantizers.per_channel,
        "provenance": provenance,
    }
    if work.recipe.supernet is not None:
        found = load_probabilities(work, level)
        return allocate_probabilities(found, description, space, level.budgets, least_use=work.recipe.supernet.least_use, **common)
    section = work.recipe.measure
    indicators = load_indicators(work)
    with damage(score_files(work, level)[-1]):
        indicators.table(1.0, space)  # raises where a layer or a width is missing
    alpha = None if section.alpha == "auto" else section.alpha
    return allocate(indicators, description, space, level.budgets, alpha=alpha, projection=section.projection, **common)


def search(work: Workspace, level: LevelSection) -> None:
    """Writes the policies of one level and ``search.json``."""
    provenance = {
        **work.space_options(),
        "recipe": work.recipe.name,
        "level": level.name,
        "seed": work.recipe.seed,
        "data": work.data_fingerprint,
        **({} if work.recipe.source is None else {"source": source_provenance(work)}),
    }
    allocation = allocate_level(work, level, provenance)
    solution = allocation.solution
    _keep_edited(work, level)
    allocation.policy.save(work.folder.level_path(level, policy_file("mixed")))
    allocation.uniform.save(work.folder.level_path(level, policy_file("uniform")))
    if level.reversed:
        _reversed(work, level, allocation).save(work.folder.level_path(level, policy_file("reversed")))
    report = {
        "status": solution.status,
        "objective": solution.objective,
        "bound": solution.bound,
        "gap": solution.gap,
        "seconds": solution.seconds,
        "budgets": [asdict(use) for use in allocation.uses],
        "alpha": None if allocation.alpha is None else asdict(allocation.alpha),
        "log_probability": allocation.policy.provenance.get("log_probability"),
        "changes": [asdict(change) for change in allocation.changes],
        "bitops_convention": allocation.convention,
        "policy": allocation.policy.as_text(),
    }
    write_json(work.folder.level_path(level, "search.json"), report)


def _reversed(work: Workspace, level: LevelSection, allocation: Allocation) -> Policy:
    if work.recipe.supernet is None:
        return reversed_policy(allocation, work.description())
    return reversed_search(allocation, load_probabilities(work, level), work.description(), work.recipe.supernet.least_use)


def _keep_edited(work: Workspace, level: LevelSection) -> None:
    """Renames a policy that was edited by hand to ``policy.edited.json``, so that a new search does not lose it."""
    policy, report = (work.folder.level_path(level, name) for name in ("policy.json", "search.json"))
    if not (policy.is_file() and report.is_file()):
        return
    try:
        edited = Policy.load(policy).as_text() != read_report(report).get("policy")
    except BitallocError:  # damaged: nothing worth keeping
        return
    if edited:
        policy.replace(policy.with_name("policy.edited.json"))


def evaluate_all(work: Workspace) -> None:
    """Writes ``evaluation.json``: top-1 on the test images of the float model and of every quantized one, as it is deployed."""
    levels: dict[str, dict[str, float | None]] = {}
    for level in work.recipe.levels:
        levels[level.name] = {
            f"{kind}_top1": _test_top1(work, deployed(work, level, kind), f"test {level.name} {kind}") for kind in kinds(level)
        }
        levels[level.name].setdefault("reversed_top1", None)
    float_top1 = _test_top1(work, work.float_model(), "test float")
    report = {"float_top1": float_top1, "levels": levels}
    found = {f"{name}/{kind}": top1 for name, level in levels.items() for kind, top1 in level.items() if top1 is not None}
    work.journal.write(Entry("evaluate", "result", 0, {"float_top1": float_top1, **found}))
    write_json(work.folder.path("evaluation.json"), report)


def export_level(work: Workspace, level: LevelSection) -> None:
    """Writes ``model.onnx`` of one level, and in ``export.json`` how far ONNX Runtime agrees with PyTorch on the test images."""
    model = deployed(work, level, "mixed").cpu()
    path = work.folder.level_path(level, "model.onnx")
    try:
        export_onnx(model, work.splits.example, path)
        agreement = verify_onnx(path, model, work.splits.test)
    except ExportError as error:
        raise ExportError(
            f"level {level.name}: {error} All models are trained and tested nevertheless: their accuracies are in "
            f"{work.folder.path('evaluation.json')}, the weights in mixed.safetensors."
        ) from error
    report = {"file_bytes": path.stat().st_size, "file_sha256": digest({}, (path,)), **asdict(agreement)}
    write_json(work.folder.level_path(level, "export.json"), report)


def kinds(level: LevelSection) -> tuple[str, ...]:
    """The policies of a level."""
    return ("mixed", "uniform", "reversed") if level.reversed else ("mixed", "uniform")


def deployed(work: Workspace, level: LevelSection, kind: str) -> nn.Module:
    """The fine-tuned model of a policy in its integer form, on the training device."""
    model = finetuned(work, level, kind).to(device())
    example: Any = work.splits.example.to(device())
    return deploy(model, example, work.description().producers).model


def finetuned(work: Workspace, level: LevelSection, kind: str) -> nn.Module:
    """The fine-tuned model of a policy, as it was trained."""
    path = work.folder.level_path(level, f"{kind}.safetensors")
    with damage(path):
        state, policy, settings = load_checkpoint(path)
        model = quantize(starting_model(work), policy, settings=QuantizerSettings(**settings))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise FileError(f"the tensors in {path} do not fit the model ({error}).") from error
    return model


def _test_top1(work: Workspace, model: nn.Module, name: str) -> float:
    with cached_weights():
        return evaluate(model, work.splits.test, work.progress, name).accuracy
