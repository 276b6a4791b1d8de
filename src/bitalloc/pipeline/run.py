"""The main job: all stages of a recipe, in order, each done once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from bitalloc.export import require_onnx
from bitalloc.files import dropping_writes
from bitalloc.pipeline import attribution_tasks, result_tasks, supernet_tasks, training_tasks
from bitalloc.pipeline.dry_run import check_plan, check_source
from bitalloc.pipeline.entry_points import source_digest
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.run_journal import run_journal
from bitalloc.pipeline.source import score_files, source_workspace
from bitalloc.pipeline.summary import write_summary
from bitalloc.pipeline.tasks import Task, run_tasks
from bitalloc.pipeline.training_tasks import policy_file
from bitalloc.pipeline.workspace import Workspace
from bitalloc.training import Progress, Silent
from bitalloc.training.ranks import from_main, is_main, together

_UNDER_WAY = {"retries", "split_on_memory", "loss_limit", "keep_freed_memory", "trackers"}
"""Keys of the engine that change nothing in a training that goes smoothly, so that they can be changed for one that did not."""

STAGES = ("describe", "measure", "search", "finetune", "evaluate", "export")


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data_root: Path | None = None,
    until: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Runs a recipe in the folder ``out``; what is done there already with the same inputs is not done again.

    In a distributed launch all ranks call it. They train and evaluate together; rank 0 does the rest, reports, and writes every file.

    Args:
        recipe: what to do.
        out: the run folder.
        data_root: folder that the recipe's data and weights lie in.
        until: the last stage to run, one of :data:`STAGES`; all by default.
        progress: where progress is shown; nowhere by default.
        say: gets one line for every task; ignored by default.
        command: what the user typed, for the summary.

    Returns:
        The summary, or None if the run ends before it.

    Raises:
        BitallocError: anything that the user can mend; nothing finished is lost.
    """
    with together():
        if until in (None, "export"):
            require_onnx()  # not after hours of training
    folder = RunFolder(out, recipe)
    say = say if is_main() else _say_nothing
    with _writing_on_main(), run_journal(folder, recipe) as journal, _locked(folder):
        work = Workspace(recipe, folder, data_root, progress or Silent(), journal)
        folder.claim()
        describing, *others = plan(work)
        run_tasks([describing], folder, say, work.rewind, journal)
        if until == describing.stage:
            return None
        # What the search could not solve is found now, not after hours of training.
        with together():
            if is_main():
                check_plan(work, work.description())
        _score_in_source(work, say)
        last = STAGES[-1] if until is None else until
        wanted = [task for task in others if STAGES.index(task.stage) <= STAGES.index(last)]
        run_tasks(wanted, folder, say, work.rewind, journal)
        if until is not None:
            return None
        with together():
            summary = write_summary(work, command) if is_main() else {}
        return from_main(summary)


def _score_in_source(work: Workspace, say: Callable[[str], None]) -> None:
    """Describes, trains and scores in ``<run>/source``, where the recipe has a source."""
    if work.recipe.source is None:
        return
    source = source_workspace(work, work.recipe.source)
    folder = source.folder

    def told(line: str) -> None:
        say(f"source/{line}")

    with run_journal(folder, source.recipe) as journal, _locked(folder):
        source.journal = journal
        folder.claim()
        run_tasks([_describe(source)], folder, told, source.rewind, journal)
        with together():
            if is_main():
                check_source(source, work.description(), source.description())
        run_tasks([_float(source), *_scoring(source)], folder, told, source.rewind, journal)


def _say_nothing(line: str) -> None:
    pass


def _writing_on_main() -> AbstractContextManager[None]:
    return nullcontext() if is_main() else dropping_writes()


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """The folder's lock, held by rank 0 for all."""
    with ExitStack() as stack:
        with together():
            if is_main():
                stack.enter_context(folder.lock())
        yield


def plan(work: Workspace) -> list[Task]:
    """All tasks of a run, in order."""
    levels = work.recipe.levels
    trained = [(level, kind) for level in levels for kind in result_tasks.kinds(level)]
    return [
        _describe(work),
        _float(work),
        *(_scoring(work) if work.recipe.source is None else ()),
        *(_search(work, level) for level in levels),
        *(_finetune(work, level, kind) for level, kind in trained),
        _evaluate(work, trained),
        *([_attribution(work, trained)] if attribution_tasks.wanted_files(work) else ()),
        *(_export(work, level) for level in levels),
    ]


def _scoring(work: Workspace) -> list[Task]:
    """The tasks that score the widths."""
    if work.recipe.supernet is None:
        return [_measure(work), _importance(work)]
    return [_supernet(work, level) for level in work.recipe.levels]


def _model(work: Workspace) -> dict[str, Any]:
    recipe = work.recipe
    source = source_digest(recipe.model, "model")
    return {"model": recipe.model, "model_options": recipe.model_options, "model_source": source, "seed": recipe.seed}


def _data(work: Workspace) -> dict[str, Any]:
    recipe = work.recipe
    named = {
        "data": recipe.data,
        "data_options": recipe.data_options,
        "data_source": source_digest(recipe.data, "data"),
        "batch_size": recipe.batch_size,
        "engine": recipe.engine.model_dump(exclude=_UNDER_WAY),
    }
    return {**_model(work), **named, "fingerprint": work.data_fingerprint}


def _quantized(work: Workspace) -> dict[str, Any]:
    recipe = work.recipe
    return {**_data(work), "quantizers": recipe.quantizers.model_dump(), "calibration_batches": recipe.calibration_batches}


def _space(work: Workspace) -> dict[str, Any]:
    return {"space": work.recipe.space.model_dump()}


def _joint(work: Workspace) -> tuple[Path, ...]:
    return (work.folder.path("joint.safetensors"),) if work.recipe.finetune.start == "joint" else ()


def _describe(work: Workspace) -> Task:
    def values() -> dict[str, Any]:
        return {**_model(work), "example": list(work.example.shape)}

    return Task("describe", "describe", lambda _: result_tasks.describe_model(work), (work.folder.path("layers.json"),), values)


def _float(work: Workspace) -> Task:
    weights = work.weights_path()
    return Task(
        "float",
        "measure",
        partial(training_tasks.train_float, work),
        (work.folder.path("float.safetensors"), work.folder.path("float.json")),
        lambda: {**_data(work), "float": work.recipe.float_.model_dump()},
        () if weights is None else (weights,),
        by_all=True,
    )


def _measure(work: Workspace) -> Task:
    section = work.recipe.measure.model_dump(exclude={"metric", "alpha", "projection"})
    return Task(
        "measure",
        "measure",
        partial(training_tasks.measure, work),
        tuple(work.folder.path(name) for name in ("joint.safetensors", "step_sizes.json", "measure.json")),
        lambda: {**_quantized(work), **_space(work), "measure": section},
        (work.folder.path("layers.json"), work.folder.path("float.safetensors")),
        by_all=True,
    )


def _importance(work: Workspace) -> Task:
    reads = ("layers.json", "float.safetensors", "joint.safetensors", "step_sizes.json")
    return Task(
        "importance",
        "measure",
        lambda _: training_tasks.rate_importance(work),
        (work.folder.path("importance.json"), work.folder.path("metric.json")),
        lambda: {**_quantized(work), **_space(work), "metric": work.recipe.measure.metric},
        tuple(work.folder.path(name) for name in reads),
    )


def _supernet(work: Workspace, level: LevelSection) -> Task:
    folder = work.folder

    def values() -> dict[str, Any]:
        # How full the budgets are to be is a matter of the solve.
        section = supernet_tasks.supernet_section(work).model_dump(exclude={"least_use"})
        budgets = [[budget.name, budget.limit, budget.unit] for budget in supernet_tasks.searched_budgets(work, level)]
        return {**_quantized(work), **_space(work), "supernet": section, "budgets": budgets}

    return Task(
        supernet_tasks.task_name(level),
        "measure",
        partial(supernet_tasks.search_level, work, level),
        tuple(folder.level_path(level, name) for name in supernet_tasks.FILES),
        values,
        (folder.path("layers.json"), folder.path("float.safetensors"), *map(Path, work.recipe.tables.values())),
        by_all=True,
    )


def _search(work: Workspace, level: LevelSection) -> Task:
    recipe, folder = work.recipe, work.folder
    names = (*(policy_file(kind) for kind in result_tasks.kinds(level)), "search.json")
    choices = {
        **_solving(recipe),
        "level": level.model_dump(),
        "tables": list(recipe.tables),
        "per_channel": recipe.quantizers.per_channel,
    }
    return Task(
        f"search/{level.name}",
        "search",
        lambda _: result_tasks.search(work, level),
        tuple(folder.level_path(level, name) for name in names),
        lambda: {**_space(work), **choices},
        (*score_files(work, level), *map(Path, recipe.tables.values())),
    )


def _solving(recipe: Recipe) -> dict[str, Any]:
    """What decides how the scores are made of what was measured or searched."""
    names = {} if recipe.source is None else {"names": recipe.source.names}
    if recipe.supernet is not None:
        return {"least_use": recipe.supernet.least_use, **names}
    return {"alpha": recipe.measure.alpha, "projection": recipe.measure.projection, **names}


def _finetune(work: Workspace, level: LevelSection, kind: str) -> Task:
    folder = work.folder

    def values() -> dict[str, Any]:
        # Of the policy only what decides the result: not how good the search found it.
        policy = training_tasks.load_policy(work, level, kind)
        chosen: dict[str, Any] = {name: [str(bits), list(policy.weight_shapes[name])] for name, bits in policy.bits.items()}
        shared = [list(group) for group in policy.shared_inputs]
        searched = _space(work) if _joint(work) else {}
        return {**_quantized(work), **searched, "finetune": work.recipe.finetune.model_dump(), "policy": chosen, "shared": shared}

    return Task(
        f"finetune/{level.name}/{kind}",
        "finetune",
        partial(training_tasks.finetune_level, work, level, kind),
        tuple(folder.level_path(level, name) for name in (f"{kind}.safetensors", f"{kind}_finetune.json")),
        values,
        (folder.path("float.safetensors"), *_joint(work)),
        by_all=True,
    )


def _evaluate(work: Workspace, trained: Sequence[tuple[LevelSection, str]]) -> Task:
    folder = work.folder
    models = (folder.level_path(level, f"{kind}.safetensors") for level, kind in trained)
    return Task(
        "evaluate",
        "evaluate",
        lambda _: result_tasks.evaluate_all(work),
        (folder.path("evaluation.json"),),
        lambda: {**_data(work), "levels": [level.name for level in work.recipe.levels]},
        (folder.path("float.safetensors"), folder.path("layers.json"), *models),
        by_all=True,
    )


def _attribution(work: Workspace, trained: Sequence[tuple[LevelSection, str]]) -> Task:
    folder = work.folder
    models = (folder.level_path(level, f"{kind}.safetensors") for level, kind in trained)
    asked = work.recipe.evaluate.model_dump()
    return Task(
        "attribution",
        "evaluate",
        lambda _: attribution_tasks.compare_attributions(work),
        attribution_tasks.wanted_files(work),
        lambda: {
            **_data(work),
            "levels": [level.name for level in work.recipe.levels],
            "evaluate": asked,
            **attribution_tasks.attribution_values(work),
        },
        (folder.path("float.safetensors"), folder.path("layers.json"), *models),
    )


def _export(work: Workspace, level: LevelSection) -> Task:
    folder = work.folder
    return Task(
        f"export/{level.name}",
        "export",
        lambda _: result_tasks.export_level(work, level),
        tuple(folder.level_path(level, name) for name in ("model.onnx", "export.json")),
        lambda: _data(work),
        (folder.level_path(level, "mixed.safetensors"), folder.path("layers.json")),
    )
