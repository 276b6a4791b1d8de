"""The stage that searches by a supernet, in the place of the joint training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.attribution import AttributionLoss, CapacityAwarePower, FixedPower, PowerRanking, Ranking, SoftSpearman
from bitalloc.budget import Budget
from bitalloc.errors import BudgetError, ConfigError, InfeasibleError
from bitalloc.files import write_json
from bitalloc.layers import Description
from bitalloc.pipeline.attribution_tasks import attribution_of, two_samples
from bitalloc.pipeline.part import part
from bitalloc.pipeline.recipe_sections import LevelSection, SupernetSection
from bitalloc.pipeline.trace_plot import plot_trace
from bitalloc.pipeline.training_notes import training_notes
from bitalloc.pipeline.workspace import Workspace
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace
from bitalloc.supernet import (
    Controller,
    DualAscent,
    FixedLambda,
    GumbelSoftmax,
    Relaxation,
    SearchSettings,
    SinglePath,
    Softmax,
    SupernetResult,
    SupernetSettings,
    entropy,
    expected_bits,
    prepare_supernet,
    supernet_search,
)
from bitalloc.supernet.dry_run import dry_run
from bitalloc.supernet.step import check_reachable
from bitalloc.training import CheckpointConfig, LossFunction, NamedJournal, cross_entropy_loss, device
from bitalloc.training.batches import pair_of
from bitalloc.training.evaluate import cross_entropy
from bitalloc.wrap import calibrate

FILES = ("log_probabilities.json", "search_trace.json", "search_trace.svg", "supernet.json")
"""What the search of a level writes."""

_RELAXATIONS: dict[str, Relaxation] = {"softmax": Softmax(), "gumbel": GumbelSoftmax(), "single-path": SinglePath()}


def search_level(work: Workspace, level: LevelSection, inputs: str) -> None:
    """Writes :data:`FILES` of one level."""
    section = supernet_section(work)
    description, teacher = work.description(), work.float_model()
    loader = part(work.splits.train, section.fraction)
    budgets, task = searched_budgets(work, level), task_name(level)
    result = supernet_search(
        teacher,
        description,
        work.space(description),
        loader,
        _objective(section, teacher),
        steps=work.steps(section.epochs, loader),
        budgets=budgets,
        calibration=work.calibration(),
        method=section.method,
        controller=_controller(section, description),
        settings=search_settings(work),
        engine=work.engine(),
        checkpoint=CheckpointConfig(work.folder.checkpoint(task, inputs), inputs),
        progress=work.progress,
        journal=NamedJournal(work.journal, task),
    )
    log_probabilities, trace, plot, report = (work.folder.level_path(level, name) for name in FILES)
    result.log_probabilities.save(log_probabilities)
    result.trace.save(trace)
    plot_trace(result.trace, plot)
    write_json(report, _report(section, result, budgets))


def task_name(level: LevelSection) -> str:
    """The name of the task that searches a level."""
    return f"supernet/{level.name}"


def supernet_section(work: Workspace) -> SupernetSection:
    """The recipe's section. Raises ConfigError where there is none."""
    if work.recipe.supernet is None:
        raise ConfigError("the recipe has no section [supernet].")
    return work.recipe.supernet


def searched_budgets(
    work: Workspace, level: LevelSection, description: Description | None = None, target: Description | None = None
) -> tuple[Budget, ...]:
    """The budgets that a search is steered to.

    On another dataset than the run's own, an absolute limit of the run says nothing: images of half the size cost a quarter. There each
    limit is the same share of what the widest policy costs as in the run.

    Args:
        work: where the search is done.
        level: of the run.
        description: of the network that is searched; from the run folder by default.
        target: of the run's own network, where it is another one; from its folder by default.

    Raises:
        BudgetError: a budget cannot be understood.
    """
    description = description or work.description()
    space = work.space(description)
    costs = work.costs(description, space)
    if work.target is None:
        return costs.budgets(level.budgets, work.uniform_space(description))
    target = target or work.target.description()
    target_space = work.target.space(target)
    target_costs = work.target.costs(target, target_space)
    here, there = _widest(space), _widest(target_space)
    return costs.recounted(
        [
            replace(budget, limit=budget.limit * costs.used(budget.name, here) / target_costs.used(budget.name, there))
            for budget in searched_budgets(work.target, level, target)
        ]
    )


def check_supernet(work: Workspace, description: Description) -> None:
    """Makes the supernet of an untrained model and, for ``gmpq``, does one step of the search on the example, before any training.

    Raises:
        SpaceError: nothing is to be chosen, or tied layers have different candidates.
        BudgetError: a fixed lambda with a budget that is not BitOps.
        TrainingError: there are no logits, no feature map or no module that ``layers`` matches, or an operation has no second derivative.
    """
    section = supernet_section(work)
    model = work.new_model()
    supernet = prepare_supernet(model, work.space(description), description, search_settings(work).supernet)
    if section.price != "steered" and any(tuple(level.budgets) != ("bitops",) for level in work.recipe.levels):
        raise BudgetError(
            'supernet.price is a number, the published weight of BitOps: give every level the budget bitops alone, or "steered".'
        )
    _controller(section, description)
    if section.method == "gmpq":
        few = two_samples(work)
        calibrate(supernet, [few])
        # Weights that nobody trained may give anything: what is not finite is looked for when the search begins.
        objective = _objective(section, model.to(device()))
        dry_run(supernet.to(device()), [(few, torch.zeros(len(few), dtype=torch.int64))], objective, None, work.engine(), trained=False)


def check_reach(work: Workspace, description: Description, target: Description) -> None:
    """Raises InfeasibleError for a level whose search on a source would be steered to a budget below the smallest policy."""
    for level in work.recipe.levels:
        try:
            check_reachable(searched_budgets(work, level, description, target), work.space(description))
        except InfeasibleError as error:
            raise InfeasibleError(f"level {level.name}, searched on the source: {error}") from error


def search_settings(work: Workspace) -> SearchSettings:
    """The section as settings of the search."""
    section = supernet_section(work)
    return SearchSettings(
        learning_rate=section.learning_rate,
        logit_rate=section.logit_rate,
        weight_decay=section.weight_decay,
        decay_after=section.decay_after,
        decay=section.decay,
        scale_rate=section.step_size_rate,
        logit_clip=section.logit_clip,
        supernet=SupernetSettings(
            pair=section.pair,
            relaxation=_RELAXATIONS[section.relaxation],
            pinned_in_float=section.pinned_in_float,
            range_start=None if section.range_start == "auto" else section.range_start,
            quantizers=work.quantizers(),
        ),
        seed=work.recipe.seed,
    )


def _objective(section: SupernetSection, teacher: nn.Module) -> LossFunction:
    """The loss of the task, for ``gmpq`` with the attribution term, from one forward pass."""
    if section.method == "edmips":
        return cross_entropy_loss(section.label_smoothing)

    def task(logits: Tensor, batch: Any) -> Tensor:
        return cross_entropy(logits, pair_of(batch)[1], section.label_smoothing)

    return AttributionLoss(teacher, attribution_of(section), _ranking(section), section.eta).with_task(task)


def _ranking(section: SupernetSection) -> Ranking:
    if section.ranking == "spearman":
        return SoftSpearman()
    if section.power == "adaptive":
        return PowerRanking(CapacityAwarePower(lambda supernet: expected_bits(supernet).values()))
    return PowerRanking(FixedPower(section.power))


def _controller(section: SupernetSection, description: Description) -> Controller:
    if section.price == "steered":
        return DualAscent()
    # The unit is the first layer's MACs; looking up a table, as an embedding does, takes none.
    return FixedLambda(section.price, next((layer.macs for layer in description.layers if layer.macs > 0), 0))


def _report(section: SupernetSection, result: SupernetResult, budgets: Sequence[Budget]) -> dict[str, Any]:
    expected = [
        {"name": budget.name, "expected": value, "limit": budget.limit, "unit": budget.unit}
        for budget, value in zip(budgets, result.expected, strict=True)
    ]
    return {
        "method": section.method,
        "seconds": result.seconds,
        "images": result.images,
        "steps": len(result.losses),
        "budgets": expected,
        "entropy": float(entropy(result.supernet).detach()),
        "losses": list(result.losses),
        **training_notes(result.retries, result.parts, result.findings),
    }


def _widest(space: SearchSpace) -> dict[str, Bits]:
    return {
        name: max(candidates.pairs, key=lambda bits: (bits.weight * bits.act, bits.weight)) for name, candidates in space.candidates.items()
    }
