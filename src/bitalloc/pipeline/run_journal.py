"""What a run writes down while it goes on: ``training.jsonl`` always, trackers on request."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.training import Journal, Journals, JsonLines, NoJournal, open_trackers
from bitalloc.training.ranks import is_main

FILE = "training.jsonl"


@contextmanager
def run_journal(folder: RunFolder, recipe: Recipe) -> Iterator[Journal]:
    """The journal of a run, ended when the block ends. In a distributed launch rank 0 writes it.

    Raises:
        MissingDependencyError: a tracker that the recipe asks for is not installed.
    """
    name = f"{recipe.name} {folder.root.name}"
    with open_trackers(recipe.engine.trackers, name, folder.path("tracking"), flat(recipe.model_dump(by_alias=True))) as trackers:
        yield Journals(JsonLines(folder.path(FILE)), trackers) if is_main() else NoJournal()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float]:
    """Nested values by dotted key, as trackers want them: what is neither text nor a number, as text."""
    found: dict[str, str | float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str | bool | int | float) else str(value)
    return found
