"""A solution whose objective is not the sum of the problem's score."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from bitalloc.policy import Bits
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged

_EXACT: Final = 1e-9
"""A relative gap up to this is the solver's rounding, not a worse solution."""


def scored(problem: Problem, bits: Mapping[str, Bits], objective: float, bound: float, seconds: float) -> Solution:
    """The solution with these widths: the budgets are counted anew, objective and bound are what is given."""
    gap = (objective - bound) / abs(objective) if objective > bound and objective != 0 else max(objective - bound, 0.0)
    optimal = gap <= _EXACT
    return replace(
        judged(problem, bits, problem.score.total(bits), seconds),
        status="optimal" if optimal else "feasible",
        objective=objective,
        bound=objective if optimal else bound,
        gap=0.0 if optimal else gap,
    )
