"""Many runs of one recipe with other values: seeds, metrics, budgets, anything in it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitalloc.errors import ConfigError
from bitalloc.files import write_json, write_text
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.sweep_jobs import Executor, Job, OneByOne, Outcome
from bitalloc.pipeline.sweep_ray import RayExecutor
from bitalloc.pipeline.sweep_results import SEED, as_csv, over_seeds
from bitalloc.pipeline.sweep_settings import Axes, Variant, variants
from bitalloc.training import Progress, Silent
from bitalloc.training.ranks import world_size

SCHEMA = "bitalloc.sweep"
VERSION = 1


def run_sweep(
    recipe: Path,
    out: Path,
    axes: Axes,
    *,
    parallel: int = 1,
    data_root: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = (),
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Runs a recipe with every combination of values, each in a run folder of its own in ``out``.

    A run is what ``bitalloc run`` makes of ``<out>/<run>/recipe.toml``. A sweep that was stopped goes on: finished runs are found done,
    the others go on where they were. A run that fails does not stop the others. ``sweep.json`` and ``sweep.csv`` are written after
    every run.

    Args:
        recipe: a TOML file.
        out: the folder of the runs.
        axes: dotted keys of the recipe to the values that each takes, such as ``{"seed": [0, 1], "measure.metric": ["limpq"]}``; a level
            is named in the key: ``levels.w4a4.budgets.bitops``.
        parallel: runs at a time; more than one need Ray.
        data_root: folder that the recipe's data and weights lie in.
        progress: where the progress of runs in this process is shown; nowhere by default.
        say: gets a line for every event; ignored by default.
        command: what the user typed, for the summaries.
        executor: does the runs; by default this process, or Ray if ``parallel`` is more than 1.

    Returns:
        What ``sweep.json`` holds: ``runs``, each with its ``settings``, ``status`` (``done`` or ``failed``), ``error`` and results, and
        ``over_seeds``, see :func:`bitalloc.pipeline.sweep_results.over_seeds`, None if the seed is not varied.

    Raises:
        ConfigError: a key or a value is not allowed in the recipe, or ``out`` is a run folder.
        MissingDependencyError: ``parallel`` is more than 1 and Ray is not installed.
        FileError: another process is at work in ``out``, or it cannot be written.
    """
    if parallel < 1:
        raise ConfigError(f"parallel is {parallel}, expected at least 1.")
    if world_size() > 1:
        raise ConfigError(f"a sweep was launched in {world_size()} processes: start it without a distributed launcher, with --parallel.")
    found = variants(Path(recipe), axes)
    if executor is None:
        executor = RayExecutor(parallel, say) if parallel > 1 else OneByOne(progress or Silent(), say)
    out = Path(os.path.abspath(out))
    if (out / "stages.json").exists():
        raise ConfigError(f"{out} is the folder of a single run: choose another --out for the sweep.")
    with RunFolder(out, found[0].recipe).lock():
        jobs = [_job(variant, out, data_root, command) for variant in found]
        outcomes: dict[str, Outcome] = {}
        for outcome in executor.outcomes(jobs):
            outcomes[outcome.name] = outcome
            say(f"{outcome.name}: {'done' if outcome.error is None else f'failed: {outcome.error}'}")
            report = _write(out, found, axes, outcomes)
    return report


def _job(variant: Variant, out: Path, data_root: Path | None, command: Sequence[str]) -> Job:
    folder = out / variant.name
    write_text(folder / "recipe.toml", variant.text)
    return Job(variant.name, folder, None if data_root is None else data_root.absolute(), Path.cwd(), tuple(command))


def _write(out: Path, found: Sequence[Variant], axes: Axes, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    runs = [_entry(variant, outcomes.get(variant.name)) for variant in found]
    report = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": found[0].recipe.name,
        "axes": {key: list(values) for key, values in axes.items()},
        "runs": runs,
        "over_seeds": over_seeds(runs) if len(axes.get(SEED, ())) > 1 else None,
    }
    write_json(out / "sweep.json", report)
    write_text(out / "sweep.csv", as_csv(axes, runs))
    return report


def _entry(variant: Variant, outcome: Outcome | None) -> dict[str, Any]:
    status = "waiting" if outcome is None else "done" if outcome.error is None else "failed"
    found = (outcome.results if outcome else None) or {"float_top1": None, "policies": []}
    return {
        "name": variant.name,
        "settings": dict(variant.settings),
        "status": status,
        "error": outcome.error if outcome else None,
        **found,
    }
