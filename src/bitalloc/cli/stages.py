"""The commands ``run`` and one for every stage but ``describe``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bitalloc.cli.common import AsJson, DataRoot, Debug, Out, Quiet, RecipePath, Seed, errors, overrides, run_stages, show

_STAGES = {
    "measure": ("Get the float model and measure the importance of every layer at every width.", "importance.json"),
    "search": ("Find the best policy inside the budgets of every level.", "search.json"),
    "finetune": ("Fine-tune the mixed-precision model and the uniform one.", "mixed_finetune.json"),
    "evaluate": ("Evaluate all models on the test images.", "evaluation.json"),
    "export": ("Write the ONNX file of every level and compare ONNX Runtime with PyTorch.", "export.json"),
}


def add_to(app: typer.Typer) -> None:
    """Gives ``app`` the commands."""
    app.command()(run)
    for name, (text, _) in _STAGES.items():
        _add_stage(app, name, text)


def run(
    recipe: RecipePath,
    out: Out,
    data_root: DataRoot = None,
    seed: Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe, model and budgets and print the plan; write nothing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Do the whole job of a recipe: describe, measure, search, finetune, evaluate, export."""
    if dry_run:
        with errors(debug):
            _print_plan(recipe, out, data_root, seed, as_json)
        return
    _run(recipe, out, data_root, seed, None, quiet, as_json, debug)


def _add_stage(app: typer.Typer, name: str, text: str) -> None:
    def command(
        recipe: RecipePath,
        out: Out,
        data_root: DataRoot = None,
        seed: Seed = None,
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        _run(recipe, out, data_root, seed, name, quiet, as_json, debug)

    app.command(name, help=f"{text} Stages before it that are not done yet are done first.")(command)


def _run(
    recipe: Path, out: Path, data_root: Path | None, seed: int | None, until: str | None, quiet: bool, as_json: bool, debug: bool
) -> None:
    with errors(debug):
        loaded, summary = run_stages(recipe, out, data_root, seed, until, quiet)
        if summary is not None:
            from bitalloc.pipeline.tables import summary_table

            show(summary, as_json, summary_table)
        elif until is not None:
            _print_stage(loaded, out, until, as_json)


def _print_stage(recipe: Any, out: Path, stage: str, as_json: bool) -> None:
    from bitalloc.pipeline import tables
    from bitalloc.pipeline.run_folder import RunFolder, read_report

    folder, name = RunFolder(out, recipe), _STAGES[stage][1]
    views = {"search": tables.policy_table, "evaluate": tables.accuracy_table}
    if stage == "measure":
        home = folder if recipe.source is None else RunFolder(folder.path("source"), recipe)
        if recipe.supernet is None:
            report = read_report(home.path(name))
        else:
            report = {level.name: read_report(home.level_path(level, "supernet.json")) for level in recipe.levels}
            views["measure"] = tables.supernet_table
        folder = home
    elif stage == "evaluate":
        report = read_report(folder.path(name))
    else:
        report = {level.name: read_report(folder.level_path(level, name)) for level in recipe.levels}
    if stage == "search":
        report = {level.name: _with_present_policy(report[level.name], folder.level_path(level, "policy.json")) for level in recipe.levels}
    show(report, as_json, views.get(stage, lambda _: f"{stage}: done, see {folder.path(name)}"))


def _with_present_policy(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """A search report with the widths that the policy file has now, which may have been edited."""
    from bitalloc.policy import Policy

    present = Policy.load(path).as_text()
    return {**report, "policy": present, "policy_edited": present != report.get("policy")}


def _print_plan(recipe: Path, out: Path, data_root: Path | None, seed: int | None, as_json: bool) -> None:
    from bitalloc.pipeline.dry_run import dry_run
    from bitalloc.pipeline.recipe import load_recipe
    from bitalloc.pipeline.tables import plan_text

    show(dry_run(load_recipe(recipe, overrides(seed)), out, data_root), as_json, plan_text)
