"""Why a layer has its widths: what the candidates cost at the optimum's prices, and where the widths change next."""

import math
from collections.abc import Iterator, Mapping, Sequence

from bitalloc.errors import InfeasibleError, PolicyError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search.explanation import Choice, Direction, Explanation, LayerChoices, NextChange, Price
from bitalloc.search.instance import instance_of
from bitalloc.search.links import Links
from bitalloc.search.next_change import Turn, growing, next_larger, next_smaller, shrinking
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution
from bitalloc.search.solver import solve
from bitalloc.search.tables import mapped
from bitalloc.space import Candidates, SearchSpace, Table


def explain(problem: Problem, solution: Solution, layer: str | None = None) -> Explanation:
    """Why a layer, or every layer, has its widths in the best policy.

    The prices are the multipliers of the Lagrangian relaxation (Everett, "Generalized Lagrange multiplier method", 1963). A layer's best
    candidate at these prices has reduced cost 0. Integer policies seldom fill a budget exactly, so the chosen candidate may have a reduced
    cost above 0: what the layer gives to make the whole fit. ``max_widths`` is left out of prices and reduced costs.

    Choices that exceed a limit even with the least of all other layers are left out of prices.

    The next changes are exact: integer programmes are solved for them, some of one layer and about four for all.

    Args:
        problem: what was solved.
        solution: its solution, proven optimal.
        layer: the layer to explain; all by default.

    Raises:
        SpaceError: ``problem`` has no such layer; the message names those it has.
        PolicyError: the solution is for other layers.
    """
    names = list(problem.space.candidates)
    if set(solution.bits) != set(names):
        raise PolicyError("the solution is for other layers than the problem: explain the solution of this problem.")
    if layer is not None and layer not in problem.space.candidates:
        raise SpaceError(f"the search space has no layer {layer!r}: expected one of {', '.join(names)}.")
    each = instance_of(problem).prices(problem)
    prices = tuple(_prices(problem, solution, each))
    priced = _priced(problem, each)
    rows = tuple(_choices(problem, priced, name, solution.bits[name]) for name in (names if layer is None else [layer]))
    changes = _all_changes(problem, solution) if layer is None else _changes(problem, layer, solution.bits[layer])
    return Explanation(problem.score.unit, solution.objective, prices, rows, tuple(changes))


def _changes(problem: Problem, layer: str, bits: Bits) -> Iterator[NextChange]:
    for name in _names(problem):
        yield from _told(shrinking(problem, name, layer, bits), name, "shrinks", {layer: bits})
        yield from _told(growing(problem, name, layer, bits), name, "grows", {layer: bits})


def _all_changes(problem: Problem, solution: Solution) -> Iterator[NextChange]:
    for name in _names(problem):
        yield from _told(next_smaller(problem, name, solution.objective), name, "shrinks", solution.bits)
        yield from _told(next_larger(problem, name, solution.objective), name, "grows", solution.bits)


def _told(turn: Turn | None, name: str, direction: Direction, now: Mapping[str, Bits]) -> Iterator[NextChange]:
    if turn is not None:
        for layer, old in now.items():
            new = turn.solution.bits[layer]
            if new != old:
                yield NextChange(layer, name, direction, turn.limit, old, new, turn.solution.objective)


def _names(problem: Problem) -> list[str]:
    return list(dict.fromkeys(budget.name for budget in problem.budgets))


def _prices(problem: Problem, solution: Solution, each: Sequence[float]) -> Iterator[Price]:
    """By name: a peak's price is the sum of those of its moments."""
    for use in solution.budgets:
        price = math.fsum(price for budget, price in zip(problem.budgets, each, strict=True) if budget.name == use.name)
        yield Price(use.name, use.unit, use.limit, use.used, price)


def _priced(problem: Problem, prices: Sequence[float]) -> Table:
    """Score + sum of price x cost of every choice."""
    tables = [(price, budget.table) for price, budget in zip(prices, problem.budgets, strict=True) if price > 0]

    def value(name: str, bits: Bits) -> float:
        return math.fsum((problem.score.values[name][bits], *(price * table.values[name][bits] for price, table in tables)))

    return mapped(problem.space, problem.score.unit, value)


def _choices(problem: Problem, priced: Table, layer: str, bits: Bits) -> LayerChoices:
    tied = tied_to(problem.space, layer)
    pairs = sorted(problem.space.candidates[layer].pairs, reverse=True)
    totals = {pair: _with_tied(problem.space, priced, layer, pair, tied) for pair in pairs}
    least = min(totals.values())
    choices = (
        Choice(
            pair,
            problem.score.values[layer][pair],
            _costs(problem, layer, pair),
            totals[pair] - least,
        )
        for pair in pairs
    )
    return LayerChoices(layer, bits, tied, tuple(choices))


def _costs(problem: Problem, layer: str, bits: Bits) -> dict[str, float]:
    """By budget; of a peak the largest of the layer's shares."""
    tables = {name: [b.table for b in problem.budgets if b.name == name] for name in _names(problem)}
    return {name: max(table.values[layer][bits] for table in sums) for name, sums in tables.items()}


def _with_tied(space: SearchSpace, priced: Table, layer: str, bits: Bits, tied: tuple[str, ...]) -> float:
    """The least priced total of the layer at ``bits`` and of the layers tied to it; infinity where the ties allow none."""
    if not tied:
        return priced.values[layer][bits]
    block = {layer, *tied}
    candidates: Mapping[str, Candidates] = {
        name: Candidates.pinned(bits) if name == layer else choices for name, choices in space.candidates.items() if name in block
    }

    def within(groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(group for group in groups if block.issuperset(group))

    try:
        part = SearchSpace(candidates, within(space.weight_ties), within(space.act_ties))
        return solve(Problem(part, priced, ())).objective
    except (SpaceError, InfeasibleError):
        return math.inf


def tied_to(space: SearchSpace, layer: str) -> tuple[str, ...]:
    """The layers whose widths depend on this layer's through ties, over other layers too, in the order of the space."""
    together = next(names for names in Links(space).components if layer in names)
    return tuple(name for name in together if name != layer)
