"""Shadow prices, budgets of one name, and many limits for one preparation."""

import numpy as np
import pytest

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, BudgetError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search import Problem, prepare, solve
from bitalloc.search.layout import layout_of
from bitalloc.search.relaxation import Relaxation
from bitalloc.space import Candidates, SearchSpace, Table

NAMES = [f"l{i}" for i in range(30)]
SPACE = SearchSpace(dict.fromkeys(NAMES, Candidates((8, 4, 2), (8, 4))))
PAIRS = SPACE.candidates["l0"].pairs
SCORE = Table({n: {p: (1 + i * 7 % 11) / p.weight + (1 + i * 5 % 13) / p.act for p in PAIRS} for i, n in enumerate(NAMES)}, "importance")
PRODUCT = Table({n: {p: float((1 + i * 3 % 17) * p.weight * p.act) for p in PAIRS} for i, n in enumerate(NAMES)}, "bitops")
SIZE = Table({n: {p: float((3 + i * 9 % 19) * p.weight) for p in PAIRS} for i, n in enumerate(NAMES)}, "bytes")


def problem(product: float, size: float) -> Problem:
    most = (sum(table.values[n][Bits(8, 8)] for n in NAMES) for table in (PRODUCT, SIZE))
    limits = [share * total for share, total in zip((product, size), most, strict=True)]
    return Problem(SPACE, SCORE, (Budget("product", limits[0], PRODUCT), Budget("size", limits[1], SIZE)))


def relaxed(limits: list[float]) -> float:
    layout, offset = layout_of(SPACE, [PAIRS] * len(NAMES), SCORE, [PRODUCT, SIZE])
    return Relaxation(layout, np.array(limits)).bound + offset


def test_a_price_is_the_slope_of_the_relaxation() -> None:
    given = problem(0.4, 0.5)
    found = solve(given)
    limits = [budget.limit for budget in given.budgets]
    for k, use in enumerate(found.budgets):
        assert use.price is not None
        assert use.price > 0
        moved = [limit + (1e-3 if i == k else 0.0) for i, limit in enumerate(limits)]
        assert (relaxed(limits) - relaxed(moved)) / 1e-3 == pytest.approx(use.price, rel=1e-3)


def test_a_loose_budget_has_the_price_zero() -> None:
    product, size = solve(problem(0.3, 2.0)).budgets
    assert product.price is not None
    assert product.price > 0
    assert size.price == 0
    assert [use.price for use in solve(problem(2.0, 2.0)).budgets] == [0, 0]


def test_one_use_for_budgets_of_one_name() -> None:
    # Three moments of an execution, each with some of the layers; the second is the fullest.
    moments = []
    for layers in (range(0, 8), range(5, 25), range(26, 30)):
        table = {n: {p: float(p.act * 100) if i in layers else 0.0 for p in PAIRS} for i, n in enumerate(NAMES)}
        moments.append(Budget("peak", 20 * 600.0, Table(table, "bytes")))
    found = solve(Problem(SPACE, SCORE, (*moments, Budget("size", 1e9, SIZE))))
    peak, size = found.budgets
    assert (peak.name, size.name) == ("peak", "size")
    assert peak.used == moments[1].table.total(found.bits) <= 12000
    assert peak.price is not None
    assert peak.price > 0


def test_prepared_once_solved_for_many_limits() -> None:
    prepared = prepare(problem(0.5, 0.5))
    for share in (0.35, 0.5, 0.8):
        given = problem(share, 0.6)
        again = prepared.solve([budget.limit for budget in given.budgets])
        once = solve(given)
        assert (again.bits, again.objective, again.budgets) == (once.bits, once.objective, once.budgets)
    assert prepared.solve().objective == solve(problem(0.5, 0.5)).objective
    named = prepared.solve({"size": given.budgets[1].limit})
    assert named.budgets == solve(Problem(SPACE, SCORE, (problem(0.5, 0.5).budgets[0], given.budgets[1]))).budgets
    with pytest.raises(InfeasibleError, match="product: limit 1 bitops, smallest reachable .* cannot be met even alone"):
        prepared.solve([1.0, 1.0])
    with pytest.raises(BudgetError, match="the budget 'size' is -1"):
        prepared.solve({"size": -1.0})
    with pytest.raises(BitallocError, match="1 limits for 2 budgets"):
        prepared.solve([1.0])
