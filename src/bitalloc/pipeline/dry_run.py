"""What a recipe would do, found out without data or training."""

from pathlib import Path
from typing import Any

from torch import nn

from bitalloc.choices import matching
from bitalloc.errors import BudgetError, ConfigError, InfeasibleError, PolicyError, SpaceError
from bitalloc.layers import Description
from bitalloc.pipeline.allocate import bitops_convention, flat_score, uniform_policy
from bitalloc.pipeline.attribution_tasks import check_attribution, check_metric
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.pipeline.source import check_same, source_workspace
from bitalloc.pipeline.supernet_tasks import check_reach, check_supernet
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Bits
from bitalloc.search import Problem, solve
from bitalloc.space import SearchSpace, Table
from bitalloc.training import Silent
from bitalloc.wrap.describe import describe
from bitalloc.wrap.target import find_targets, weight_of


def dry_run(recipe: Recipe, out: Path, data_root: Path | None) -> dict[str, Any]:
    """Builds the model, describes it, and checks that every level's budgets can be met; writes nothing.

    The data is loaded only if the recipe has no ``input_shape``; weight files are not looked for.

    Returns:
        Counts of the model, the BitOps convention, and for each level its budgets with limit and smallest reachable value.

    Raises:
        InfeasibleError: a level cannot be met; the message says what can.
        BitallocError: anything else that would stop the run.
    """
    work = Workspace(recipe, RunFolder(out, recipe), data_root, Silent())
    description = describe(work.new_model(), work.example)
    levels = check_plan(work, description)
    if recipe.source is not None:
        source = source_workspace(work, recipe.source)
        check_source(source, description, describe(source.new_model(), source.example))
    return {
        "name": recipe.name,
        "layers": len(description.layers),
        "weights": sum(layer.weight_numel for layer in description.layers),
        "macs": sum(layer.macs for layer in description.layers),
        "bitops_convention": bitops_convention(description, work.space(description), work.uniform_space(description)),
        "levels": levels,
    }


def check_plan(work: Workspace, description: Description) -> list[dict[str, Any]]:
    """Checks what can be checked before any training: model, patterns, widths, and the budgets of every level.

    Returns:
        For each level its name and budgets, with limit and smallest reachable value.

    Raises:
        ConfigError: the description is of another model.
        SpaceError: a pattern matches no layer, or no layer has a choice.
        BudgetError: a budget cannot be understood.
        InfeasibleError: no policy, or no uniform policy, meets the budgets of a level.
        TrainingError: there is nothing to attribute, or the search's loss cannot be differentiated.
    """
    _check_model(work, description)
    space, reference = work.space(description), work.uniform_space(description)
    if not space.free:
        raise SpaceError("every layer has one candidate only, so there is nothing to search: give at least two bit-widths.")
    for pattern in work.recipe.quantizers.act_grids:
        matching(pattern, [layer.name for layer in description.layers])
    _check_joint_start(work, space, reference)
    check_attribution(work)
    if work.recipe.source is None:
        _check_scoring(work, description)
    return [{"name": level.name, "budgets": _check_level(work, level, description)} for level in work.recipe.levels]


def check_source(source: Workspace, target: Description, description: Description) -> None:
    """Checks what can be checked of the source of a run before any training.

    Args:
        source: its workspace.
        target: of the run's own network.
        description: of the source's network.

    Raises:
        PolicyError: the networks have different layers.
        InfeasibleError: a level is below the smallest policy on the source.
        BitallocError: see :func:`check_plan`.
    """
    assert source.target is not None
    check_same(source.target, target, description)
    if source.recipe.supernet is not None:
        check_reach(source, description, target)
    _check_scoring(source, description)


def _check_scoring(work: Workspace, description: Description) -> None:
    if work.recipe.supernet is not None:
        check_supernet(work, description)
    check_metric(work)


def _check_joint_start(work: Workspace, space: SearchSpace, reference: SearchSpace) -> None:
    """The uniform policy starts from the joint training too, which must have step sizes for its widths."""
    if work.recipe.finetune.start != "joint":
        return
    for name, bits in reference.pinned.items():
        candidates = space.candidates[name]
        if bits.weight not in candidates.weight or bits.act not in candidates.act:
            raise ConfigError(
                f"finetune.start = 'joint', but the uniform policy has layer {name} at {bits}, which first_last_candidates does not "
                "measure: add that width to first_last_candidates, or start from 'float'."
            )


def _check_level(work: Workspace, level: LevelSection, description: Description) -> list[dict[str, Any]]:
    space, reference = work.space(description), work.uniform_space(description)
    uniform_bits = None if level.uniform is None else Bits.parse(level.uniform)
    try:
        budgets = work.costs(description, space).budgets(level.budgets, reference)
        solve(Problem(space, flat_score(space), budgets))
        uniform_policy(budgets, level.budgets, work.costs(description, reference), reference, uniform_bits)
    except (BudgetError, InfeasibleError) as error:
        raise type(error)(f"level {level.name}: {error}") from error
    # A peak is several sums of one name, of which the largest counts.
    smallest = {b.name: max(_smallest(other.table) for other in budgets if other.name == b.name) for b in budgets}
    return [{"name": b.name, "limit": b.limit, "unit": b.unit, "smallest": smallest[b.name]} for b in {b.name: b for b in budgets}.values()]


def _check_model(work: Workspace, description: Description) -> None:
    model = work.new_model()
    other = [layer.name for layer in description.layers if _weight_shape(model, layer.name) != layer.weight_shape]
    if other:
        raise ConfigError(
            f"{work.folder.path('layers.json')} describes another model than model = {work.recipe.model!r} returns now; "
            f"the layers {', '.join(other)} are not in it with these shapes. Choose another --out, or delete that folder."
        )


def _weight_shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """The shape of a layer's weight, whether the layer is named after its module or its parameter; None if there is no such layer."""
    try:
        target = find_targets(model, [name])[name]
    except PolicyError:
        return None
    return tuple(weight_of(dict(model.named_modules()), target).shape)


def _smallest(table: Table) -> float:
    return sum(min(row.values()) for row in table.values.values())
