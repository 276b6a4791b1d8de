"""Policies by chance: what a score has to be better than."""

import time
from random import Random
from typing import Final

from bitalloc.errors import BitallocError
from bitalloc.search.links import Links
from bitalloc.search.problem import Problem
from bitalloc.search.repair import drawn, repaired
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.search.starts import starts

_TRIES: Final = 100
"""How often a draw that is outside the budgets is thrown away before one is repaired."""


def random_policies(problem: Problem, draws: int = 10, seed: int = 0) -> tuple[Solution, ...]:
    """Policies inside the budgets, drawn by chance.

    A draw takes a pair for every layer, all equally likely, with tied layers following; with ``max_widths``, of widths drawn
    first. Up to 100 draws outside the budgets are thrown away, so that what is accepted is uniform over the policies inside. After
    that the last one is moved to the nearest policy inside (see :func:`repaired`). That is the rule where the budgets are tighter than
    the mean of all policies and layers are many; such policies use the budgets almost fully, as searched ones do.

    Args:
        problem: space, score and budgets.
        draws: how many policies; 10, enough for a mean and a spread.
        seed: of the draws; the same seed gives the same policies.

    Returns:
        Solutions whose bound is that of no budget at all; the same policy may come twice.

    Raises:
        InfeasibleError: no policy meets the budgets.
        BitallocError: ``draws`` is below 1.
    """
    if draws < 1:
        raise BitallocError(f"draws is {draws}, expected at least one policy.")
    random = Random(seed)
    sources = [(Links(space), bits) for space, bits in starts(problem.space)]
    found = []
    for _ in range(draws):
        start = time.perf_counter()
        for _ in range(_TRIES):
            bits = drawn(*random.choice(sources), random)
            if problem.fits(bits):
                break
        found.append(judged(problem, repaired(problem, bits), loose_bound(problem), time.perf_counter() - start))
    return tuple(found)
