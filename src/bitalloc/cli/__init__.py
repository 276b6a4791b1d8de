"""The command line: parse, call, print. One file a family of commands."""

from typing import Annotated

import typer

from bitalloc import __version__
from bitalloc.cli import describe, frontier, stages, sweep

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Mixed-precision quantization of PyTorch models.")
stages.add_to(app)
describe.add_to(app)
frontier.add_to(app)
sweep.add_to(app)


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
