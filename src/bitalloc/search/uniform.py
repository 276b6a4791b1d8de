"""The same widths everywhere: what a searched policy has to beat first."""

import time
from collections.abc import Iterable, Mapping
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
    widths = {knob: links.widths(knob) for knob in range(len(links.knobs))}
    rows = [[widths[knob] for knob in knobs] for knobs in (links.weight_knobs, links.act_knobs)]
    common = _pairs(*(_common(side) for side in rows))
    every = _pairs(*({width for row in side for width in row} for side in rows))
    asked = [bits] if bits is not None and _known(bits, rows) else []
    policies = (_everywhere(links, widths, pair) for pair in (*asked, *common, *every))
    wanted = next((policy for policy in policies if problem.fits(policy)), None)
    if wanted is None:
        limits = ", ".join(dict.fromkeys(f"{budget.name} {amount(budget.limit, budget.unit)}" for budget in problem.budgets)) or "none"
        raise InfeasibleError(
            f"no uniform policy meets all budgets ({limits}): no pair of widths fits, "
            "nor one with the layers that cannot be so narrow at their least. "
            "Raise the limits or add narrower candidates."
        )
    return judged(problem, wanted, loose_bound(problem), time.perf_counter() - start)


def _pairs(weights: Iterable[int], acts: Iterable[int]) -> list[Bits]:
    """Every combination, the largest first."""
    return sorted((Bits(weight, act) for weight, act in product(weights, acts)), key=_size, reverse=True)


def _common(rows: list[list[int]]) -> list[int]:
    """The widths that all free knobs have; where none is free, any width stands for the one policy that there is."""
    free = [row for row in rows if len(row) > 1]
    return [width for width in free[0] if all(width in row for row in free)] if free else [FLOAT]


def _known(bits: Bits, rows: list[list[list[int]]]) -> bool:
    """Whether every knob that has a choice has the width."""
    return all(width in row for width, side in zip((bits.weight, bits.act), rows, strict=True) for row in side if len(row) > 1)


def _everywhere(links: Links, widths: Mapping[int, list[int]], pair: Bits) -> dict[str, Bits]:
    """Every knob at the pair's width, or where it does not have that at the next one above; at its widest where there is none."""
    sides = dict.fromkeys(links.weight_knobs, pair.weight) | dict.fromkeys(links.act_knobs, pair.act)
    chosen = {knob: min((width for width in widths[knob] if width >= asked), default=max(widths[knob])) for knob, asked in sides.items()}
    knobs = {name: links.knobs_of(name) for name in links.pairs}
    return {name: Bits(chosen[weight], chosen[act]) for name, (weight, act) in knobs.items()}


def _size(pair: Bits) -> tuple[int, int, int]:
    return pair.weight * pair.act, -abs(pair.weight - pair.act), pair.act
