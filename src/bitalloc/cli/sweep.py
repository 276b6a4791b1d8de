"""The command ``sweep``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitalloc.cli.common import AsJson, DataRoot, Debug, Quiet, RecipePath, errors, say, show

_SET_HELP = "A key of the recipe and its values: seed=0,1,2 or measure.metric=limpq,divergence; may be repeated, all combinations run."


def add_to(app: typer.Typer) -> None:
    """Gives ``app`` the command."""
    app.command()(sweep)


def sweep(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the runs; what is done there is not done again.")],
    settings: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUES", help=_SET_HELP)],
    parallel: Annotated[int, typer.Option("--parallel", min=1, metavar="N", help="Runs at a time; more than one need Ray.")] = 1,
    data_root: DataRoot = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a recipe with every combination of some values, such as seeds, metrics and budgets, and compare the results."""
    with errors(debug):
        # Imported here, because PyTorch takes seconds and --help should not.
        from bitalloc.pipeline.sweep import run_sweep
        from bitalloc.pipeline.sweep_settings import parse_axes
        from bitalloc.pipeline.sweep_tables import sweep_table
        from bitalloc.training import make_progress

        report = run_sweep(
            recipe,
            out,
            parse_axes(settings),
            parallel=parallel,
            data_root=data_root,
            progress=make_progress(quiet),
            say=say(quiet),
            command=["bitalloc", *sys.argv[1:]],
        )
        show(report, as_json, sweep_table)
    failed = [run["name"] for run in report["runs"] if run["status"] == "failed"]
    if failed:
        typer.echo(
            f"Error: {len(failed)} of {len(report['runs'])} runs failed: {', '.join(failed)}. The same command tries them again.", err=True
        )
        raise typer.Exit(1)
