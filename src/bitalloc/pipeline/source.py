"""Scores from another dataset: measured or searched in ``<run>/source``, applied to the run's own network by layer names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bitalloc.errors import PolicyError
from bitalloc.layers import Description
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection, SourceSection
from bitalloc.pipeline.run_folder import RunFolder, damage
from bitalloc.pipeline.workspace import Workspace
from bitalloc.sensitivity import Indicators
from bitalloc.supernet import LogProbabilities
from bitalloc.training import Journal, NoJournal
from bitalloc.transfer import same_layers

FOLDER = "source"


def source_workspace(work: Workspace, section: SourceSection, journal: Journal | None = None) -> Workspace:
    """The workspace in ``<run>/source``: the recipe with the section's model, data and float model in the place of its own."""
    recipe = source_recipe(work.recipe, section)
    folder = RunFolder(work.folder.path(FOLDER), recipe)
    return Workspace(recipe, folder, work.data_root, work.progress, journal or NoJournal(), target=work)


def source_recipe(recipe: Recipe, section: SourceSection) -> Recipe:
    """The recipe of the source."""
    changes: dict[str, Any] = {
        "name": f"{recipe.name} source",
        "model": section.model or recipe.model,
        "model_options": recipe.model_options if section.model_options is None else section.model_options,
        "data": section.data,
        "data_options": section.data_options,
        "input_shape": section.input_shape,
        "batch_size": section.batch_size or recipe.batch_size,
        "float_": section.float_,
        "source": None,
    }
    return recipe.model_copy(update=changes)


def scored(work: Workspace) -> Workspace:
    """Where the widths are scored: in the run itself, or in its source."""
    return work if work.recipe.source is None else source_workspace(work, work.recipe.source)


def check_same(work: Workspace, target: Description, source: Description) -> None:
    """Raises PolicyError if the networks have different layers, or the name map leaves out one that is to be searched."""
    shapes = {layer.name: layer.weight_shape for layer in source.layers}
    known = same_layers(target.layers, shapes, source.last, _names(work))
    missing = [name for name in work.space(target).free if name not in known]
    if missing:
        raise PolicyError(f"[source.names] leaves out {', '.join(missing)}, which are to be searched: map them too, or pin them.")


def score_files(work: Workspace, level: LevelSection) -> tuple[Path, ...]:
    """The files that hold the scores of a level, and what says which layers they are of."""
    home = scored(work).folder
    scores = home.path("importance.json") if work.recipe.supernet is None else home.level_path(level, "log_probabilities.json")
    return tuple(dict.fromkeys((work.folder.path("layers.json"), home.path("layers.json"), scores)))


def load_indicators(work: Workspace) -> Indicators:
    """The measured importance of the run's layers. Raises FileError or PolicyError, naming the file, if that fails."""
    home = scored(work)
    path = home.folder.path("importance.json")
    with damage(path):
        found = Indicators.load(path)
    if home is work:
        return found
    applied = found.transferred(work.description().layers, home.description(), _names(work))
    return replace(applied, provenance={**found.provenance, "source": provenance(work)})


def load_probabilities(work: Workspace, level: LevelSection) -> LogProbabilities:
    """What the search of a level learned about the run's layers. Raises FileError or PolicyError, naming the file, if that fails."""
    home = scored(work)
    path = home.folder.level_path(level, "log_probabilities.json")
    with damage(path):
        found = LogProbabilities.load(path)
    if work.recipe.source is None:
        return found
    return found.transferred(work.description().layers, work.recipe.source.names)


def provenance(work: Workspace) -> dict[str, Any] | None:
    """Which data the widths were scored on, where they are not the run's own."""
    section = work.recipe.source
    return None if section is None else {"data": section.data, "data_options": section.data_options}


def _names(work: Workspace) -> dict[str, str] | None:
    return None if work.recipe.source is None else work.recipe.source.names
