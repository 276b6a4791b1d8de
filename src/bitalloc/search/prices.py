"""The shadow prices of the budgets, from the linear relaxation."""

import math
from collections.abc import Mapping
from typing import Final

import highspy
import numpy as np

from bitalloc.policy import Bits
from bitalloc.search.problem import Problem

_NOTHING: Final = 1e-9
"""A multiplier below this, where scores and budgets are scaled to 1, is the solver's rounding."""


def shadow_prices(problem: Problem, objective: float) -> tuple[float, ...]:
    """By how much one unit more of every budget would lower the score, if layers could be split between candidates.

        min  sum s[l, p] x[l, p]   over 0 <= x <= 1,   one choice a layer, every budget, ties

    The prices are the multipliers of the budgets' rows, in the score's unit per unit of the budget; in the order of the problem, 0
    for a budget that does not bind.

    Args:
        problem: space, score and budgets, which can be met.
        objective: score of a good solution, which sets the scale: a score that is there to forbid a choice would drown the others.
    """
    columns = [(name, bits) for name, choices in problem.space.candidates.items() for bits in choices.pairs]
    scores = [problem.score.values[name][bits] for name, bits in columns]
    least = (min(problem.score.values[name][bits] for bits in choices.pairs) for name, choices in problem.space.candidates.items())
    scale = objective - math.fsum(least)
    scale = scale if scale > 0 else 1.0
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("parallel", "off")
    for score in scores:
        solver.addVar(0.0, 1.0)
        solver.changeColCost(solver.getNumCol() - 1, score / scale)
    for budget in problem.budgets:
        spent = {i: budget.table.values[name][bits] / budget.limit for i, (name, bits) in enumerate(columns)}
        _add(solver, spent, -math.inf, 1.0)
    for name in problem.space.candidates:
        _add(solver, {i: 1.0 for i, (other, _) in enumerate(columns) if other == name}, 1.0, 1.0)
    _add_ties(solver, problem, columns)
    solver.run()
    duals = solver.getSolution().row_dual[: len(problem.budgets)]
    return tuple(-dual * scale / b.limit if -dual > _NOTHING else 0.0 for dual, b in zip(duals, problem.budgets, strict=True))


def _add_ties(solver: highspy.Highs, problem: Problem, columns: list[tuple[str, Bits]]) -> None:
    for side, groups in (("weight", problem.space.weight_ties), ("act", problem.space.act_ties)):
        for first, *others in groups:
            for other in others:
                signs = {first: 1.0, other: -1.0}
                for width in {getattr(bits, side) for name, bits in columns if name in signs}:
                    same = {i: signs[n] for i, (n, bits) in enumerate(columns) if n in signs and getattr(bits, side) == width}
                    _add(solver, same, 0.0, 0.0)


def _add(solver: highspy.Highs, row: Mapping[int, float], lower: float, upper: float) -> None:
    solver.addRow(lower, upper, len(row), np.array(list(row), dtype=np.int32), np.array(list(row.values())))
