"""What a recipe would do, found out without data or training."""

from pathlib import Path
from typing import Any

from bitalloc.costs import BitOps, resolve_budgets
from bitalloc.errors import InfeasibleError
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.workspace import Workspace
from bitalloc.search import Problem, solve
from bitalloc.space import SearchSpace, Table
from bitalloc.training import Silent
from bitalloc.wrap.describe import describe


def dry_run(recipe: Recipe, out: Path, data_root: Path | None) -> dict[str, Any]:
    """Builds the model, describes it, and checks that every level's budgets can be met; writes nothing.

    The data is loaded only if the recipe has no ``input_shape``.

    Returns:
        Counts of the model, the BitOps convention, and for each level its budgets with limit and smallest reachable value.

    Raises:
        InfeasibleError: a level cannot be met; the message says what can.
        BitallocError: anything else that would stop the run.
    """
    work = Workspace(recipe, RunFolder(out, recipe), data_root, Silent())
    description = describe(work.new_model(), work.example)
    space, reference = work.space(description), work.uniform_space(description)
    flat = _flat(space)
    levels = []
    for level in recipe.levels:
        budgets = resolve_budgets(level.budgets, description.layers, space, reference.pinned)
        try:
            solve(Problem(space, flat, budgets))
        except InfeasibleError as error:
            raise InfeasibleError(f"level {level.name}: {error}") from error
        shown = [
            {"name": b.name, "limit": b.limit, "unit": b.unit, "smallest": _smallest(b.table)} for b in budgets
        ]
        levels.append({"name": level.name, "budgets": shown})
    return {
        "name": recipe.name,
        "layers": len(description.layers),
        "weights": sum(layer.weight_numel for layer in description.layers),
        "macs": sum(layer.macs for layer in description.layers),
        "bitops_convention": BitOps().convention(reference, description.layers),
        "levels": levels,
    }


def _flat(space: SearchSpace) -> Table:
    return Table({name: dict.fromkeys(choices.pairs, 0.0) for name, choices in space.candidates.items()}, "importance")


def _smallest(table: Table) -> float:
    return sum(min(row.values()) for row in table.values.values())
