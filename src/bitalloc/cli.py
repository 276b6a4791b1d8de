"""The command line: parse, call, print."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from bitalloc import __version__
from bitalloc.errors import BitallocError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Mixed-precision quantization of PyTorch models.")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to do; see recipes/ for examples.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder; what is done there is not done again.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", metavar="DIR", help="Folder of the recipe's data and float weights.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no log.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Entry point of the ``bitalloc`` command."""
    app()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"bitalloc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


@app.command()
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
        with _errors(debug):
            _print_plan(recipe, out, data_root, seed, as_json)
        return
    _run(recipe, out, data_root, seed, None, quiet, as_json, debug)


def _stage(name: str, text: str) -> None:
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


_STAGES = {
    "describe": ("List the layers of the recipe's model with shapes, MACs and sizes.", "layers.json"),
    "measure": ("Get the float model and measure the importance of every layer at every width.", "importance.json"),
    "search": ("Find the best policy inside the budgets of every level.", "search.json"),
    "finetune": ("Fine-tune the mixed-precision model and the uniform one.", "mixed_finetune.json"),
    "evaluate": ("Evaluate all models on the test images.", "evaluation.json"),
    "export": ("Write the ONNX file of every level and compare ONNX Runtime with PyTorch.", "export.json"),
}
for _name, (_text, _) in _STAGES.items():
    _stage(_name, _text)


def _run(
    recipe: Path, out: Path, data_root: Path | None, seed: int | None, until: str | None, quiet: bool, as_json: bool, debug: bool
) -> None:
    with _errors(debug):
        # Imported here, because PyTorch takes seconds and --help should not.
        from bitalloc.pipeline.recipe import load_recipe
        from bitalloc.pipeline.run import run_recipe
        from bitalloc.pipeline.tables import summary_table
        from bitalloc.training import make_progress

        loaded = load_recipe(recipe, _overrides(seed))
        summary = run_recipe(
            loaded,
            out,
            data_root=data_root,
            until=until,
            progress=make_progress(quiet),
            say=_say(quiet),
            command=["bitalloc", *sys.argv[1:]],
        )
        if summary is not None:
            _show(summary, as_json, summary_table)
        elif until is not None:
            _print_stage(loaded, out, until, as_json)


def _print_stage(recipe: Any, out: Path, stage: str, as_json: bool) -> None:
    from bitalloc.pipeline import tables
    from bitalloc.pipeline.run_folder import RunFolder, read_report

    folder, name = RunFolder(out, recipe), _STAGES[stage][1]
    if stage in ("describe", "measure", "evaluate"):
        report = read_report(folder.path(name))
    else:
        report = {level.name: read_report(folder.level_path(level, name)) for level in recipe.levels}
    if stage == "search":
        report = {level.name: _with_present_policy(report[level.name], folder.level_path(level, "policy.json")) for level in recipe.levels}
    views = {"describe": tables.layers_table, "search": tables.policy_table, "evaluate": tables.accuracy_table}
    _show(report, as_json, views.get(stage, lambda _: f"{stage}: done, see {folder.path(name)}"))


def _with_present_policy(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """A search report with the widths that the policy file has now, which may have been edited."""
    from bitalloc.policy import Policy

    present = Policy.load(path).as_text()
    return {**report, "policy": present, "policy_edited": present != report.get("policy")}


def _print_plan(recipe: Path, out: Path, data_root: Path | None, seed: int | None, as_json: bool) -> None:
    from bitalloc.pipeline.dry_run import dry_run
    from bitalloc.pipeline.recipe import load_recipe
    from bitalloc.pipeline.tables import plan_text

    _show(dry_run(load_recipe(recipe, _overrides(seed)), out, data_root), as_json, plan_text)


def _show(value: dict[str, Any], as_json: bool, view: Callable[[dict[str, Any]], RenderableType]) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2))
    else:
        Console(highlight=False, markup=False).print(view(value))


def _overrides(seed: int | None) -> dict[str, Any]:
    return {} if seed is None else {"seed": seed}


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """One sentence and an exit code instead of a traceback: 1 for an error, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted. What was finished is kept: the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    except Exception as error:  # a user's model, data or loss may raise anything
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {_sentence(error)}", err=True)
        raise typer.Exit(1) from None


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, BitallocError) else f"{type(error).__name__}: {text}. Run again with --debug for the traceback."
