"""The same widths everywhere: what a searched policy has to beat first."""

import time
from itertools import product

from bitalloc.errors import InfeasibleError
from bitalloc.policy import FLOAT, Bits
from bitalloc.search.links import Links
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.search.units import amount


def uniform(problem: Problem, bits: Bits | None = None) -> Solution:
    """One weight width wherever a weight width can be chosen, and one activation width wherever an activation width can.

    A side that has one width, by its candidates, by a tie or by a pin, keeps it: an embedding that reads no activation gets the
    common weight width, a layer whose input is tied to that of a layer pinned at 8 bits keeps 8 bits there.

    Args:
        problem: space, score and budgets.
        bits: the pair to use if every free layer can have it and it is inside the budgets, for example the pair that a budget was
            written with. Otherwise, and by default, the pair of largest weight width x activation width among the common
            pairs inside the budgets; of several, the one with the widths closest together, then with more activation bits.
            Where none fits, layers that cannot be as narrow as the others, by a minimum say, take their narrowest width above the pair.

    Returns:
        A solution whose bound is that of no budget at all: no search is made, so it is ``optimal`` only where nothing could be
        better.

    Raises:
        InfeasibleError: no pair is inside all budgets and keeps the ties.
    """
    start = time.perf_counter()
    links = Links(problem.space)
    weight, act = (_common([links.widths(knob) for knob in knobs]) for knobs in (links.weight_knobs, links.act_knobs))
    wanted = None if bits is None else _everywhere(links, bits)
    if wanted is None or not problem.fits(wanted):
        pairs = sorted((Bits(*pair) for pair in product(weight, act)), key=_size, reverse=True)
        wanted = next((policy for policy in (_everywhere(links, pair) for pair in pairs) if problem.fits(policy)), None)
    if wanted is None:
        wanted = _raised(problem, links)
    if wanted is None:
        limits = ", ".join(dict.fromkeys(f"{budget.name} {amount(budget.limit, budget.unit)}" for budget in problem.budgets)) or "none"
        raise InfeasibleError(
            f"no uniform policy meets all budgets ({limits}): no pair of widths fits, "
            "nor one with the layers that cannot be so narrow at their least. "
            "Raise the limits or add narrower candidates."
        )
    return judged(problem, wanted, loose_bound(problem), time.perf_counter() - start)


def _common(rows: list[list[int]]) -> list[int]:
    """The widths that all free knobs have; where none is free, any width stands for the one policy that there is."""
    free = [row for row in rows if len(row) > 1]
    return [width for width in free[0] if all(width in row for row in free)] if free else [FLOAT]


def _raised(problem: Problem, links: Links) -> dict[str, Bits] | None:
    """The largest policy inside the budgets in which each knob has the pair's width, or the next one above that it can have."""
    weights, acts = (
        sorted({width for knob in knobs for width in links.widths(knob)}, reverse=True) for knobs in (links.weight_knobs, links.act_knobs)
    )
    for pair in sorted((Bits(*pair) for pair in product(weights, acts)), key=_size, reverse=True):
        sides = dict.fromkeys(links.weight_knobs, pair.weight) | dict.fromkeys(links.act_knobs, pair.act)
        chosen = {
            knob: min((width for width in links.widths(knob) if width >= asked), default=max(links.widths(knob)))
            for knob, asked in sides.items()
        }
        policy = {name: Bits(chosen[weight], chosen[act]) for name, (weight, act) in ((n, links.knobs_of(n)) for n in links.pairs)}
        if problem.fits(policy):
            return policy
    return None


def _everywhere(links: Links, pair: Bits) -> dict[str, Bits]:
    fixed = {knob: row[0] for knob in range(len(links.knobs)) if len(row := links.widths(knob)) == 1}
    knobs = {name: links.knobs_of(name) for name in links.pairs}
    return {name: Bits(fixed.get(weight, pair.weight), fixed.get(act, pair.act)) for name, (weight, act) in knobs.items()}


def _size(pair: Bits) -> tuple[int, int, int]:
    return pair.weight * pair.act, -abs(pair.weight - pair.act), pair.act
