"""The best policy under a score with terms between two layers: proven on small networks, with a stated gap on larger ones."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search.links import Links
from bitalloc.search.model import Found, Model
from bitalloc.search.pairwise_score import PairwiseScore
from bitalloc.search.problem import Problem
from bitalloc.search.quadratic import Quadratic
from bitalloc.search.solution import Solution, judged
from bitalloc.search.solver import solve
from bitalloc.search.tables import mapped

_PRODUCTS: Final = 300_000
"""Above that many products of two choices HiGHS does not come to its first bound in minutes: the simple bound is stated then."""
_MARGIN: Final = 1e-9
"""How much of bound and best score a comparison of the two leaves to rounding."""
_GAP: Final = 1e-4
"""Of a step of the local search: a linear approximation is not worth more."""


def solve_pairwise(problem: Problem, pairwise: PairwiseScore, *, gap: float = 0.0, time_limit: float | None = None) -> Solution:
    """The policy inside the budgets with the least score and pairwise terms.

        min  sum_l s[l, p] x[l, p] + sum_(l, m) g[l, p, m, q] x[l, p] x[m, q]

    Three steps. A local search gives a policy: the terms are linearised at the best policy so far, and the exact solver minimises
    that inside a number of layers that may change, which is halved until no single layer's change helps. A bound
    comes from giving each of the two layers half of a term, at the least over the other's choices; it closes the choices that no
    better policy can have. On what is left HiGHS solves the quadratic programme, linearised exactly with one continuous column
    y[l, p, m, q] for a product, between 0 and 1, and the rows

        sum_q y[l, p, m, q] = x[l, p]  for every p,     sum_p y[l, p, m, q] = x[m, q]  for every q

    (Adams and Johnson, "Improved Linear Programming-based Lower Bounds for the Quadratic Assignment Problem", 1994). CLADO
    (arXiv 2307.05657) has the same programme with a matrix made positive semi-definite, which this needs not.

    Args:
        problem: space, score (what the layers add alone) and budgets.
        pairwise: the terms between two layers, in the unit of the score.
        gap: the search may stop at a solution proven to be within this share of the optimum.
        time_limit: seconds after which the best policy found so far is returned with its bound; no limit by default, which is for
            networks of up to about thirty layers that all interact. The local search is finished in any case.

    Returns:
        A solution whose objective holds the pairwise terms. Where more than 300 000 products are left, its bound is the simple one.

    Raises:
        InfeasibleError: no policy meets the budgets.
        SpaceError: the terms lack a choice, name a layer that the space lacks, or have another unit than the score.
        BitallocError: ``gap`` is negative or ``time_limit`` is not positive.
    """
    if not 0 <= gap < math.inf:
        raise BitallocError(f"gap is {gap}, expected a share of the objective that is 0 or more, for example 0.01.")
    if time_limit is not None and not time_limit > 0:
        raise BitallocError(f"time_limit is {time_limit}, expected a positive number of seconds or None.")
    start = time.perf_counter()
    deadline = math.inf if time_limit is None else start + time_limit
    quadratic = Quadratic(problem, pairwise)
    simple = solve(replace(problem, score=quadratic.halves))
    best = min((improved(quadratic, found.bits) for found in (solve(problem), simple)), key=quadratic.total)
    bound = simple.bound
    if quadratic.total(best) - bound > gap * abs(quadratic.total(best)) and time.perf_counter() < deadline:
        found = _linearised(quadratic, best, gap, deadline)
        if found is not None:
            best = min((bits for bits in (best, found.bits) if bits is not None), key=quadratic.total)
            bound = max(bound, found.bound)
    value = quadratic.total(best)
    return judged(problem, best, min(bound, value), time.perf_counter() - start, objective=value)


def improved(quadratic: Quadratic, bits: Mapping[str, Bits]) -> Mapping[str, Bits]:
    """A policy that no change of a single layer, and no change that its linear approximation promises, makes better.

    A set of tied layers counts as one layer.
    """
    problem = quadratic.problem
    share = {name: 1 / len(names) for names in Links(problem.space).components for name in names}
    value = quadratic.total(bits)
    radius = len(problem.space.free)
    while radius >= 1:
        # The lambda is called before bits changes.
        changes = mapped(problem.space, "changes", lambda name, pair: 0.0 if pair == bits[name] else share[name])  # noqa: B023
        near = Budget("changes", float(radius), changes)
        trial = solve(Problem(problem.space, quadratic.linear(bits), (*problem.budgets, near)), gap=_GAP).bits
        if quadratic.total(trial) < value:
            bits, value = trial, quadratic.total(trial)
        else:
            radius //= 2
    return bits


def _linearised(quadratic: Quadratic, start: Mapping[str, Bits], gap: float, deadline: float) -> Found | None:
    """The programme with a column for every product, ``None`` if it would be too large."""
    problem = quadratic.problem
    model = Model(problem.space)
    for budget in problem.budgets:
        model.limit(budget)
    model.add(quadratic.halves.values)
    spans, least = model.spans(quadratic.halves.values)
    room = (quadratic.total(start) - least) * (1 + _MARGIN) + _MARGIN * abs(least)
    model.close(column for column, span in spans.items() if span > room)
    open_pairs = {
        name: [pair for pair in choices.pairs if model.open(model.choice[name, pair])] for name, choices in problem.space.candidates.items()
    }
    if sum(len(open_pairs[first]) * len(open_pairs[second]) for first, second in quadratic.rest) > _PRODUCTS:
        return None
    for (first, second), rest in quadratic.rest.items():
        products = {(p, q): model.column(rest[p, q]) for p in open_pairs[first] for q in open_pairs[second]}
        for p in open_pairs[first]:
            model.row({**{products[p, q]: 1.0 for q in open_pairs[second]}, model.choice[first, p]: -1.0}, 0.0, 0.0)
        for q in open_pairs[second]:
            model.row({**{products[p, q]: 1.0 for p in open_pairs[first]}, model.choice[second, q]: -1.0}, 0.0, 0.0)
    return model.minimise(gap, deadline, start)
