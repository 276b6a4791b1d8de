"""What the commands share: their common options, how a result is shown, how an error is."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from bitalloc.errors import BitallocError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to do; see recipes/ for examples.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder; what is done there is not done again.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", metavar="DIR", help="Folder of the recipe's data and float weights.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no log.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def show(value: dict[str, Any], as_json: bool, view: Callable[[dict[str, Any]], RenderableType]) -> None:
    """Prints ``value`` on standard output: as JSON, or as ``view`` draws it. In a distributed launch, on rank 0."""
    if not _is_main():
        return
    if as_json:
        typer.echo(json.dumps(value, indent=2))
    else:
        Console(highlight=False, markup=False).print(view(value))


def run_stages(recipe: Path, out: Path, data_root: Path | None, seed: int | None, until: str | None, quiet: bool) -> tuple[Any, Any]:
    """Does a recipe's stages, all of them or ``until`` one; gives the recipe and, if all are done, the summary."""
    # Imported here, because PyTorch takes seconds and --help should not.
    from bitalloc.pipeline.recipe import load_recipe
    from bitalloc.pipeline.run import run_recipe
    from bitalloc.training import make_progress
    from bitalloc.training.ranks import is_main, together

    with together():
        loaded = load_recipe(recipe, overrides(seed))
    quiet = quiet or not is_main()
    summary = run_recipe(
        loaded,
        out,
        data_root=data_root,
        until=until,
        progress=make_progress(quiet),
        say=say(quiet),
        command=["bitalloc", *sys.argv[1:]],
    )
    return loaded, summary


def overrides(seed: int | None) -> dict[str, Any]:
    """The recipe keys that options replace."""
    return {} if seed is None else {"seed": seed}


def say(quiet: bool) -> Callable[[str], None]:
    """Prints a line on standard error, or drops it."""
    return (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    """One sentence and an exit code instead of a traceback: 1 for an error, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if _is_main():
            typer.echo("Interrupted. What was finished is kept: the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    except Exception as error:  # a user's model, data or loss may raise anything
        if debug:
            traceback.print_exc()
        if _is_main() or not getattr(error, "told_to_all_ranks", False):
            typer.echo(f"Error: {_sentence(error)}", err=True)
        raise typer.Exit(1) from None


def _is_main() -> bool:
    # As launchers say it: bitalloc.training.ranks would load PyTorch.
    return int(os.environ.get("RANK", "0")) == 0


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, BitallocError) else f"{type(error).__name__}: {text}. Run again with --debug for the traceback."
