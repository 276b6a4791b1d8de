"""From scores, costs and limits to a policy: the exact solver and the baselines it is compared with."""

from bitalloc.search.baselines import reversed_assignment, uniform
from bitalloc.search.highs import solve
from bitalloc.search.problem import Problem
from bitalloc.search.solution import BudgetUse, Solution

__all__ = ["BudgetUse", "Problem", "Solution", "reversed_assignment", "solve", "uniform"]
