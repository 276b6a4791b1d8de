"""Random policies, and the nearest one inside the budgets."""

from collections.abc import Mapping
from random import Random
from typing import Final

from bitalloc.policy import Bits
from bitalloc.search.links import Links
from bitalloc.search.problem import Problem
from bitalloc.search.solver import solve
from bitalloc.space import Table

_GAP: Final = 0.05
"""How much farther than the nearest policy a repaired one may be: to prove the last few per cent takes most of the time."""


def drawn(links: Links, bits: Mapping[str, Bits], random: Random) -> dict[str, Bits]:
    """Every layer at one of its pairs by chance, starting from ``bits``, which keeps the ties; tied layers follow.

    Without ties every policy of the space is equally likely. Budgets and ``max_widths`` are not looked at.
    """
    found = dict(bits)
    for name, pairs in links.pairs.items():
        if len(pairs) > 1:
            found.update(links.changes(found, name, random.choice(pairs)) or {})
    return found


def repaired(problem: Problem, bits: Mapping[str, Bits]) -> Mapping[str, Bits]:
    """``bits`` if it fits, else the policy of the problem that is nearest to it.

    The distance is the sum over layers of the difference of weight widths and of activation widths; it is minimised by the exact
    solver to a gap of 5 %.

    Raises:
        InfeasibleError: no policy meets the budgets.
    """
    if problem.fits(bits):
        return bits
    distance = {
        name: {pair: float(abs(pair.weight - bits[name].weight) + abs(pair.act - bits[name].act)) for pair in choices.pairs}
        for name, choices in problem.space.candidates.items()
    }
    return solve(Problem(problem.space, Table(distance, "bits"), problem.budgets), gap=_GAP).bits
