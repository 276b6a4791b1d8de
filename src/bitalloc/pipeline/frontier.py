"""Frontier, surface and explanations of a run, from the importance that it measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bitalloc.errors import ConfigError, SpaceError
from bitalloc.pipeline.allocate import Allocation
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.result_tasks import allocate_level
from bitalloc.pipeline.run import run_recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.workspace import Workspace
from bitalloc.search import Problem
from bitalloc.search.explain import explain
from bitalloc.search.explanation import Explanation
from bitalloc.search.frontier import frontier
from bitalloc.search.frontier_points import Frontier
from bitalloc.search.surface import Surface, surface
from bitalloc.training import Progress, Silent

Say = Callable[[str], None]


class MeasuredRun:
    """A recipe in its run folder, one level of it, and what can be asked once the importance is measured.

    Every question does the stages before it that are missing. Names are checked before anything is trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        level: str | None = None,
        data_root: Path | None = None,
        progress: Progress | None = None,
        say: Say = lambda _: None,
    ) -> None:
        """Takes what :func:`bitalloc.pipeline.run.run_recipe` takes.

        Args:
            recipe: what to do.
            out: the run folder.
            level: name of the level; the first one by default.
            data_root: folder that the recipe's data and weights lie in.
            progress: where progress is shown; nowhere by default.
            say: gets one line for every task; ignored by default.

        Raises:
            ConfigError: the recipe has no such level.
        """
        self._recipe = recipe
        self._out = out
        self._data_root = data_root
        self._progress = progress or Silent()
        self._say = say
        self._level = _level_named(recipe, level)
        self._work = Workspace(recipe, RunFolder(out, recipe), data_root, self._progress)

    def frontier(self, budget: str | None = None, *, points: int | None = None, gap: float = 0.0) -> Frontier:
        """The best policies over one budget with the level's other budgets held, written to ``frontier.json`` and ``frontier.csv``.

        Args:
            budget: one of the level's budgets or any other that a level can have; the level's first by default.
            points: see :func:`bitalloc.search.frontier.frontier`.
            gap: see there.

        Raises:
            BudgetError: there is no such budget.
            BitallocError: anything that the user can mend.
        """
        name = budget or next(iter(self._level.budgets))
        found = frontier(self._problem((name,)), name, points=points, gap=gap)
        self._save(found, "frontier")
        return found

    def surface(self, first: str, second: str, *, points: int = 10, gap: float = 0.0) -> Surface:
        """The best policies over two budgets, ``points`` limits each, written to ``surface.json`` and ``surface.csv``.

        Raises:
            BudgetError: there is no such budget.
            BitallocError: anything that the user can mend.
        """
        found = surface(self._problem((first, second)), first, second, points=(points, points), gap=gap)
        self._save(found, "surface")
        return found

    def explain(self, layer: str | None = None) -> Explanation:
        """Why one layer of the level's policy, or every layer, has its widths.

        Raises:
            SpaceError: there is no such layer.
            BitallocError: anything that the user can mend.
        """
        self._run("describe", lambda _: None)
        known = [entry.name for entry in self._work.description().layers]
        if layer is not None and layer not in known:
            raise SpaceError(f"the model has no layer {layer!r}: expected one of {', '.join(known)}.")
        allocation = self._allocation()
        return explain(allocation.problem, allocation.solution, layer)

    def path(self, name: str) -> Path:
        """A file of the level."""
        return self._work.folder.level_path(self._level, name)

    def _problem(self, names: Sequence[str]) -> Problem:
        """The level's problem with the budgets ``names`` in it, whose limits do not count, so that all sums of a peak are there."""
        self._run("describe", lambda _: None)
        description = self._work.description()
        varied = self._work.costs(description, self._work.space(description)).budgets(dict.fromkeys(names, 1.0))
        problem = self._allocation().problem
        held = tuple(budget for budget in problem.budgets if budget.name not in names)
        return replace(problem, budgets=(*varied, *held))

    def _allocation(self) -> Allocation:
        self._run("measure", self._say)
        return allocate_level(self._work, self._level)

    def _run(self, until: str, say: Say) -> None:
        run_recipe(self._recipe, self._out, data_root=self._data_root, until=until, progress=self._progress, say=say)

    def _save(self, found: Frontier | Surface, name: str) -> None:
        with self._work.folder.lock():
            found.save(self.path(f"{name}.json"))
            found.save_csv(self.path(f"{name}.csv"))


def _level_named(recipe: Recipe, name: str | None) -> LevelSection:
    levels = {level.name: level for level in recipe.levels}
    if name is not None and name not in levels:
        raise ConfigError(f"the recipe has no level {name!r}: expected one of {', '.join(levels)}.")
    return recipe.levels[0] if name is None else levels[name]
