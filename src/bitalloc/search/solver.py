"""The exact solver."""

from bitalloc.search.prepared import prepare
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution


def solve(problem: Problem, *, gap: float = 0.0, time_limit: float | None = None) -> Solution:
    """The best policy inside all budgets, proven.

    The problem is a multiple-choice knapsack with several constraints (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004,
    chapter 11). In this order: tied layers become one choice; the budgets are priced (Lagrangian bound); a first solution comes from
    repairing what is best at these prices; choices that another one beats in score and every cost, and choices whose bound exceeds
    the first solution, are dropped; a dynamic programme over the layers searches what is left, below cutoffs that move away from
    the bound, so that what it finds is the optimum. Where it would hold too many partial solutions, HiGHS solves what is left.

    The same problem gives the same policy at every call, unless ``time_limit`` ends the search.

    Args:
        problem: space, score and budgets.
        gap: the search may stop at a solution proven to be within this share of the optimum; 0, the default, means the optimum,
            which takes milliseconds for networks of a hundred layers.
        time_limit: seconds after which the best solution found so far is returned with status ``feasible``; no limit by default.

    Raises:
        InfeasibleError: no policy meets the budgets; the message gives every limit, the smallest reachable values and which budgets
            conflict, see :func:`bitalloc.search.explain_infeasible`.
        BitallocError: ``gap`` is negative, ``time_limit`` is not positive, or the time is over before any solution is found.
    """
    return prepare(problem).solve(gap=gap, time_limit=time_limit)
