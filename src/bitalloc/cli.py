"""The command line: parse, call, print."""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

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
            _show(summary, as_json, lambda: _print_summary(summary))
        elif until is not None:
            _print_stage(loaded, out, until, as_json)


def _print_stage(recipe: Any, out: Path, stage: str, as_json: bool) -> None:
    from bitalloc.pipeline.run_folder import RunFolder
    from bitalloc.pipeline.training_tasks import read_report

    folder, name = RunFolder(out, recipe), _STAGES[stage][1]
    if stage in ("describe", "measure", "evaluate"):
        report = read_report(folder.path(name))
    else:
        report = {level.name: read_report(folder.level_path(level, name)) for level in recipe.levels}
    if stage == "describe" and not as_json:
        _print_layers(report)
    else:
        _show(report, as_json, lambda: typer.echo(f"{stage}: done, see {folder.path(name)}"))


def _print_plan(recipe: Path, out: Path, data_root: Path | None, seed: int | None, as_json: bool) -> None:
    from bitalloc.pipeline.dry_run import dry_run
    from bitalloc.pipeline.recipe import load_recipe

    plan = dry_run(load_recipe(recipe, _overrides(seed)), out, data_root)
    _show(plan, as_json, lambda: _print_dry_run(plan))


def _show(value: dict[str, Any], as_json: bool, otherwise: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2))
    else:
        otherwise()


def _print_summary(summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['name']}: float {_percent(summary['float_top1'])} top-1, test images")
    for column in ("level", "mixed", "uniform", "reversed", "mean bits w / a", "weight bytes", "BitOps", "search", "ONNX agrees"):
        table.add_column(column, justify="left" if column == "level" else "right")
    for level in summary["levels"]:
        table.add_row(
            level["name"],
            _percent(level["mixed_top1"]),
            _percent(level["uniform_top1"]),
            _percent(level["reversed_top1"]),
            f"{level['mean_weight_bits']:.2f} / {level['mean_act_bits']:.2f}",
            f"{level['weight_bytes']:,.0f}",
            f"{level['bitops']:.4g}",
            f"{level['search_status']}, {1000 * level['search_seconds']:.0f} ms",
            _percent(level["onnx_agreement"]),
        )
    console = Console()
    console.print(table)
    console.print(summary["bitops_convention"])


def _print_layers(report: dict[str, Any]) -> None:
    table = Table(title=f"{len(report['layers'])} quantizable layers; MACs and sizes for one sample")
    for column in ("layer", "kind", "weight shape", "MACs", "weights", "groups", "calls"):
        table.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for layer in report["layers"]:
        shape = " x ".join(map(str, layer["weight_shape"]))
        counts = (f"{layer['macs']:,}", f"{layer['weight_numel']:,}", str(layer["groups"]), str(layer["calls"]))
        table.add_row(layer["name"], layer["kind"], shape, *counts)
    console = Console()
    console.print(table)
    for entry in report["not_counted"]:
        console.print(f"not counted: {entry['name'] or '(the model itself)'} ({entry['type']}): {entry['reason']}")


def _print_dry_run(plan: dict[str, Any]) -> None:
    console = Console()
    console.print(f"{plan['name']}: {plan['layers']} layers, {plan['weights']:,} weights, {plan['macs']:,} MACs")
    console.print(plan["bitops_convention"])
    for level in plan["levels"]:
        for budget in level["budgets"]:
            console.print(
                f"{level['name']}: {budget['name']} at most {budget['limit']:,.0f} {budget['unit']}, smallest {budget['smallest']:,.0f}"
            )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


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
    except BitallocError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except (OSError, MemoryError, RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"Error: {type(error).__name__}: {error}. Run again with --debug for the traceback.", err=True)
        raise typer.Exit(1) from None
