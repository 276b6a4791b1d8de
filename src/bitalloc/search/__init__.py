"""From scores, costs and limits to a policy: the exact solver and the baselines it is compared with."""

from bitalloc.search.evolution import Evolved, evolution
from bitalloc.search.explain import explain
from bitalloc.search.explanation import Explanation
from bitalloc.search.frontier import frontier
from bitalloc.search.frontier_points import Frontier, FrontierPoint
from bitalloc.search.greedy import greedy
from bitalloc.search.highs import solve_with_highs
from bitalloc.search.infeasible import Infeasibility, Reach, explain_infeasible
from bitalloc.search.nearest import Nearest, nearest_feasible
from bitalloc.search.pairwise import solve_pairwise
from bitalloc.search.pairwise_score import PairwiseScore
from bitalloc.search.prepared import Prepared, prepare
from bitalloc.search.problem import Problem
from bitalloc.search.random_policy import random_policies
from bitalloc.search.reversed import reversed_assignment
from bitalloc.search.robust import Robust, solve_robust
from bitalloc.search.solution import BudgetUse, Solution
from bitalloc.search.solver import solve
from bitalloc.search.stability import Stability, stability
from bitalloc.search.surface import Surface, surface
from bitalloc.search.tables import bootstrap
from bitalloc.search.uniform import uniform

__all__ = [
    "BudgetUse",
    "Evolved",
    "Explanation",
    "Frontier",
    "FrontierPoint",
    "Infeasibility",
    "Nearest",
    "PairwiseScore",
    "Prepared",
    "Problem",
    "Reach",
    "Robust",
    "Solution",
    "Stability",
    "Surface",
    "bootstrap",
    "evolution",
    "explain",
    "explain_infeasible",
    "frontier",
    "greedy",
    "nearest_feasible",
    "prepare",
    "random_policies",
    "reversed_assignment",
    "solve",
    "solve_pairwise",
    "solve_robust",
    "solve_with_highs",
    "stability",
    "surface",
    "uniform",
]
