"""The command ``describe``: of a recipe's model, or of any other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bitalloc.cli.common import AsJson, DataRoot, Debug, Quiet, Seed, errors, run_stages, show

_TARGET_HELP = (
    "A RECIPE.toml (needs --out), a torch.export FILE.pt2, package.module:function that returns the model or (model, example input), "
    "torchvision:NAME, timm:NAME or transformers:TYPE."
)


def add_to(app: typer.Typer) -> None:
    """Gives ``app`` the command."""
    app.command()(describe)


def describe(
    target: Annotated[str, typer.Argument(metavar="MODEL", help=_TARGET_HELP)],
    example: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="[NAME=]SHAPE[:DTYPE]", help="An input: 1x3x224x224 or input_ids=1x16:int64; may be repeated."),
    ] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Show what uniform 8, 4 and 2 bits would cost.")] = False,
    coupling: Annotated[
        str | None,
        typer.Option("--coupling", help="Which layers share a width: strict, shared-input (default) or free. Not with a recipe."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder of a recipe.")] = None,
    data_root: DataRoot = None,
    seed: Seed = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the layers of a model with shapes, MACs, shares of the costs, ties, and why a layer is pinned or left out."""
    with errors(debug):
        from bitalloc.pipeline.tables import layers_table, uniform_table

        if target.endswith(".toml"):
            _refuse(target, {"--input": example, "--coupling": coupling})
            report = _of_recipe(Path(target), out, data_root, seed, quiet)
        else:
            _refuse(target, {"--out": out, "--data-root": data_root, "--seed": seed})
            report = _of_model(target, example or [], coupling or "shared-input")
        show(report, as_json, uniform_table if budget else layers_table)


def _refuse(target: str, options: dict[str, Any]) -> None:
    from bitalloc.errors import ConfigError

    given = [name for name, value in options.items() if value not in (None, [])]
    if given:
        raise ConfigError(f"{', '.join(given)} does nothing for {target}: leave it out.")


def _of_recipe(recipe: Path, out: Path | None, data_root: Path | None, seed: int | None, quiet: bool) -> dict[str, Any]:
    from bitalloc.errors import ConfigError
    from bitalloc.pipeline.describe_report import describe_report
    from bitalloc.pipeline.run_folder import RunFolder
    from bitalloc.pipeline.workspace import Workspace
    from bitalloc.training import make_progress

    if out is None:
        raise ConfigError(f"{recipe} is a recipe: name its run folder with --out DIR.")
    loaded, _ = run_stages(recipe, out, data_root, seed, "describe", quiet)
    work = Workspace(loaded, RunFolder(out, loaded), data_root, make_progress(quiet))
    description = work.description()
    return describe_report(description, work.space(description))


def _of_model(target: str, inputs: list[str], coupling: str) -> dict[str, Any]:
    from bitalloc.choices import first_last_pins, search_space
    from bitalloc.pipeline.describe_report import UNIFORM, describe_report
    from bitalloc.pipeline.model_sources import describe_target

    description = describe_target(target, inputs)
    space = search_space(description, UNIFORM, pins=first_last_pins(description), coupling=coupling)  # type: ignore[arg-type]
    return describe_report(description, space)
