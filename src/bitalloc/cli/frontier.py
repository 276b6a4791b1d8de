"""The commands ``frontier`` and ``explain``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitalloc.cli.common import AsJson, DataRoot, Debug, Out, Quiet, RecipePath, Seed, errors, overrides, say, show
from bitalloc.errors import ConfigError

if TYPE_CHECKING:
    from bitalloc.pipeline.frontier import MeasuredRun

_POINTS = 50
_GRID = 10

Level = Annotated[str | None, typer.Option("--level", metavar="NAME", help="A level of the recipe; the first one by default.")]


def add_to(app: typer.Typer) -> None:
    """Gives ``app`` the commands."""
    app.command()(frontier)
    app.command()(explain)


def frontier(
    recipe: RecipePath,
    out: Out,
    data_root: DataRoot = None,
    seed: Seed = None,
    level: Level = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="NAME", help="Budget to vary; the level's first by default.")] = None,
    points: Annotated[
        int | None, typer.Option("--points", min=2, help=f"Limits to try, evenly spaced; {_POINTS}, or {_GRID} a budget for a surface.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All Pareto-optimal policies (at most 1000) instead of even limits.")] = False,
    surface: Annotated[str | None, typer.Option("--surface", metavar="NAME,NAME", help="Vary two budgets together, on a grid.")] = None,
    gap: Annotated[float, typer.Option("--gap", min=0.0, help="Share of the optimum within which every policy is proven.")] = 0.0,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the CSV here too.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find the best policies over one budget, or over two, with the level's other budgets held.

    Writes frontier.json and frontier.csv (or surface.json and surface.csv) beside the level's policy. Stages before it that are not
    done yet are done first.
    """
    with errors(debug):
        pair = _pair(surface)
        if every and (pair or points is not None):
            raise ConfigError("--all goes neither with --points nor with --surface: leave one of them out.")
        if pair and budget is not None:
            raise ConfigError("--surface names its budgets itself: leave --budget out.")
        from bitalloc.pipeline.frontier_tables import frontier_table, surface_table

        run = _measured(recipe, out, data_root, seed, level, quiet)
        found = (
            run.surface(*pair, points=points or _GRID, gap=gap)
            if pair
            else run.frontier(budget, points=None if every else points or _POINTS, gap=gap)
        )
        if csv is not None:
            found.save_csv(csv)
        show(found.to_json(), as_json, surface_table if pair else frontier_table)


def explain(
    recipe: RecipePath,
    out: Out,
    data_root: DataRoot = None,
    seed: Seed = None,
    level: Level = None,
    layer: Annotated[str | None, typer.Option("--layer", metavar="NAME", help="Explain one layer in detail; all by default.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say why layers have their widths: prices of the budgets, reduced costs of the candidates, the next changes.

    It is about the policy that the search finds, whatever was edited in policy.json. Stages before it that are not done yet are done first.
    """
    with errors(debug):
        found = _measured(recipe, out, data_root, seed, level, quiet).explain(layer)
        # Not drawn by rich, which would fold the lines of the tables.
        if as_json:
            show(found.to_json(), as_json, str)
        else:
            typer.echo(found.as_text())


def _measured(recipe: Path, out: Path, data_root: Path | None, seed: int | None, level: str | None, quiet: bool) -> "MeasuredRun":
    # Imported here, because PyTorch takes seconds and --help should not.
    from bitalloc.pipeline.frontier import MeasuredRun
    from bitalloc.pipeline.recipe import load_recipe
    from bitalloc.training import make_progress

    loaded = load_recipe(recipe, overrides(seed))
    return MeasuredRun(loaded, out, level=level, data_root=data_root, progress=make_progress(quiet), say=say(quiet))


def _pair(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ConfigError(f"--surface is {text!r}, expected two different budgets, for example bitops,weight_bytes.")
    return names[0], names[1]
