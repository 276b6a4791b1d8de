"""Explanations against brute force."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError, PolicyError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search import Problem, solve
from bitalloc.search.explain import explain, tied_to
from bitalloc.search.explanation import NextChange
from bitalloc.space import Candidates, SearchSpace, Table

CLOSE = 1e-9
NAMES = ("a", "b", "c")
FREE = Candidates((4, 2), (4,))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Three layers, tied or not, and one or two budgets that can be met."""
    wide = Candidates((8, 4, 2), (4,))
    space = SearchSpace({"a": wide, "b": wide, "c": FREE}, weight_ties=(("b", "c"),) if draw(st.booleans()) else ())
    numbers = st.integers(1, 12).map(float)

    def table(unit: str) -> Table:
        return Table({name: {bits: draw(numbers) for bits in c.pairs} for name, c in space.candidates.items()}, unit)

    policy = draw(st.sampled_from(policies(space)))
    costs = [table(f"unit{i}") for i in range(draw(st.integers(1, 2)))]
    return Problem(space, table("importance"), tuple(Budget(cost.unit, cost.total(policy), cost) for cost in costs))


def policies(space: SearchSpace) -> list[dict[str, Bits]]:
    every = ({"a": a, "b": b, "c": c} for a in space.candidates["a"].pairs for b in space.candidates["b"].pairs for c in FREE.pairs)
    return [bits for bits in every if not space.weight_ties or bits["b"].weight == bits["c"].weight]


def best(problem: Problem, name: str, limit: float, layer: str) -> dict[Bits, float]:
    """The best score at every candidate of the layer with another limit on one budget; candidates that do not fit are left out."""
    found: dict[Bits, float] = {}
    for bits in policies(problem.space):
        limits = (limit if budget.name == name else budget.limit for budget in problem.budgets)
        if all(budget.table.total(bits) <= most for budget, most in zip(problem.budgets, limits, strict=True)):
            found[bits[layer]] = min(found.get(bits[layer], math.inf), problem.score.total(bits))
    return found


def turns(problem: Problem, name: str, layer: str, bits: Bits) -> dict[str, float]:
    """Direction to limit of the layer's next change, by trying every limit: costs here are whole numbers."""
    (budget,) = (budget for budget in problem.budgets if budget.name == name)
    limits = range(1, 40)
    changed = []
    for limit in limits:
        scores = best(problem, name, limit, layer)
        kept = scores.pop(bits, math.inf)
        changed.append(min(scores.values(), default=math.inf) < kept)
    found: dict[str, float] = {}
    smaller = [limit for limit, other in zip(limits, changed, strict=True) if other and limit < budget.limit]
    larger = [limit for limit, other in zip(limits, changed, strict=True) if other and limit > budget.limit]
    if smaller:
        found["shrinks"] = max(smaller)
    if larger:
        found["grows"] = min(larger)
    return found


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(NAMES))
def test_the_next_changes_are_those_of_brute_force(problem: Problem, layer: str) -> None:
    solution = solve(problem)
    found = explain(problem, solution, layer)
    for budget in problem.budgets:
        expected = turns(problem, budget.name, layer, solution.bits[layer])
        changes = {change.direction: change for change in found.changes if change.budget == budget.name}
        assert set(changes) == set(expected)
        for direction, change in changes.items():
            # The widths stay down to the limit of a shrinking budget, and up to that of a growing one without it.
            at = expected[direction]
            assert change.limit == (at + 1 if direction == "shrinks" else at)
            scores = best(problem, budget.name, at, layer)
            assert change.old == solution.bits[layer] != change.new
            assert scores[change.new] == min(scores.values()) == pytest.approx(change.objective)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_prices_maximise_the_lagrangian_bound(problem: Problem) -> None:
    """The relaxation is concave in the prices, so no step in any direction may raise it above that at the prices."""
    found = explain(problem, solve(problem))
    prices = [entry.price for entry in found.prices]
    assert min(prices) >= 0
    if problem.space.weight_ties:
        return  # there the linear relaxation is looser than the enumeration below
    at = lagrangian(problem, prices)
    assert at <= found.objective + CLOSE
    for k, price in enumerate(prices):
        for step in (-1.0, -0.1, -0.001, 0.001, 0.1, 1.0):
            moved = [*prices[:k], max(price + step, 0.0), *prices[k + 1 :]]
            assert lagrangian(problem, moved) <= at + 1e-6


def fitting(problem: Problem) -> list[dict[str, Bits]]:
    """The policies without the choices that exceed a limit even with the least of all other layers, budget after budget."""
    open_pairs = {name: set(choices.pairs) for name, choices in problem.space.candidates.items()}
    for budget in problem.budgets:
        costs = {name: {pair: budget.table.values[name][pair] for pair in pairs} for name, pairs in open_pairs.items()}
        room = budget.limit - sum(min(row.values()) for row in costs.values())
        open_pairs = {name: {pair for pair, cost in row.items() if cost - min(row.values()) <= room} for name, row in costs.items()}
    return [bits for bits in policies(problem.space) if all(pair in open_pairs[name] for name, pair in bits.items())]


def lagrangian(problem: Problem, prices: list[float]) -> float:
    tables = [(price, budget) for price, budget in zip(prices, problem.budgets, strict=True)]
    return min(
        problem.score.total(bits) + math.fsum(price * (budget.table.total(bits) - budget.limit) for price, budget in tables)
        for bits in fitting(problem)
    )


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from(NAMES))
def test_reduced_costs_are_those_of_the_priced_policies(problem: Problem, layer: str) -> None:
    """The layers outside the tie contribute the same to every candidate, so whole policies may be compared."""
    found = explain(problem, solve(problem), layer)
    prices = [entry.price for entry in found.prices]
    (entry,) = found.layers
    best_of: dict[Bits, float] = {}
    for bits in policies(problem.space):
        costs = (price * budget.table.total(bits) for price, budget in zip(prices, problem.budgets, strict=True))
        best_of[bits[layer]] = min(best_of.get(bits[layer], math.inf), problem.score.total(bits) + math.fsum(costs))
    least = min(best_of.values())
    for choice in entry.choices:
        assert choice.reduced_cost == pytest.approx(best_of.get(choice.bits, math.inf) - least, abs=CLOSE)
        assert choice.score == problem.score.values[layer][choice.bits]
        assert choice.costs == {budget.name: budget.table.values[layer][choice.bits] for budget in problem.budgets}


@settings(max_examples=30, deadline=None)
@given(problems())
def test_of_all_layers_the_changes_are_those_of_the_neighbours_on_the_frontier(problem: Problem) -> None:
    solution = solve(problem)
    for change in explain(problem, solution).changes:
        (budget,) = (budget for budget in problem.budgets if budget.name == change.budget)
        limit = change.limit - 1 if change.direction == "shrinks" else change.limit
        budgets = tuple(Budget(b.name, limit, b.table) if b is budget else b for b in problem.budgets)
        there = solve(Problem(problem.space, problem.score, budgets))
        assert there.objective == pytest.approx(change.objective)
        assert (there.objective > solution.objective) == (change.direction == "shrinks")
        nearer = limit + 1 if change.direction == "shrinks" else limit - 1
        budgets = tuple(Budget(b.name, nearer, b.table) if b is budget else b for b in problem.budgets)
        try:
            here = solve(Problem(problem.space, problem.score, budgets))
        except InfeasibleError:
            continue
        assert here.objective == pytest.approx(solution.objective) or nearer < budget.limit


SPACE = SearchSpace({"first": Candidates.pinned(Bits(8, 8)), "body.a": FREE, "body.b": FREE})
SCORE = Table(
    {"first": {Bits(8, 8): 0.0}, "body.a": {Bits(4, 4): 0.0, Bits(2, 4): 1.0}, "body.b": {Bits(4, 4): 0.0, Bits(2, 4): 3.0}}, "importance"
)
COST = Table({"first": {Bits(8, 8): 64.0}, **{n: {Bits(4, 4): 16.0, Bits(2, 4): 8.0} for n in ("body.a", "body.b")}}, "bitops")
PROBLEM = Problem(SPACE, SCORE, (Budget("bitops", 88.0, COST),))


def test_an_explanation_counted_by_hand() -> None:
    """64 + 8 + 16 fit: a is the cheaper one to narrow. At 80 both are narrow, at 96 neither."""
    found = explain(PROBLEM, solve(PROBLEM), "body.b")
    assert found.changes == (NextChange("body.b", "bitops", "shrinks", 88.0, Bits(4, 4), Bits(2, 4), 4.0),)
    found = explain(PROBLEM, solve(PROBLEM), "body.a")
    assert found.changes == (NextChange("body.a", "bitops", "grows", 96.0, Bits(2, 4), Bits(4, 4), 0.0),)
    (price,) = found.prices
    assert 1 / 8 - CLOSE <= price.price <= 3 / 8 + CLOSE
    assert (price.used, price.limit) == (88.0, 88.0)


def test_a_score_that_forbids_a_choice_does_not_drown_the_prices() -> None:
    wide = SearchSpace({**SPACE.candidates, "body.a": Candidates((8, 4, 2), (4,))})
    scores = {**SCORE.values, "body.a": {**SCORE.values["body.a"], Bits(8, 4): 1e12}}
    costs = {**COST.values, "body.a": {**COST.values["body.a"], Bits(8, 4): 32.0}}
    problem = Problem(wide, Table(scores, "importance"), (Budget("bitops", 92.0, Table(costs, "bitops")),))
    found = explain(problem, solve(problem), "body.a")
    # At 92 the relaxation splits a, which loses 1 in 8; the integer policy has it narrow.
    assert found.objective == 1.0
    assert found.prices[0].price == pytest.approx(1 / 8)


def test_the_moments_of_a_peak_have_one_price_and_all_count_in_reduced_costs() -> None:
    # Narrowing a or b saves 8 of the moment that each is in; both moments leave room for one and a half of the two together.
    space = SearchSpace(dict.fromkeys("abc", FREE))
    score = Table({n: {Bits(4, 4): 0.0, Bits(2, 4): loss} for n, loss in (("a", 1.0), ("b", 3.0), ("c", 2.0))}, "importance")
    moments = [Table({n: {Bits(4, 4): 16.0 * (n in at), Bits(2, 4): 8.0 * (n in at)} for n in "abc"}, "bytes") for at in ("ab", "bc")]
    problem = Problem(space, score, tuple(Budget("peak", 28.0, table) for table in moments))
    found = explain(problem, solve(problem))
    # Half of a is narrowed for the first moment (1/8 a byte), half of c for the second (2/8): that is less than half of b (3/8).
    assert found.objective == pytest.approx(3.0)
    assert [(price.budget, price.limit, price.used) for price in found.prices] == [("peak", 28.0, 24.0)]
    assert found.prices[0].price == pytest.approx(3 / 8)
    reduced = {entry.layer: {c.bits.weight: c.reduced_cost for c in entry.choices} for entry in found.layers}
    assert reduced["a"][4] - reduced["a"][2] + reduced["c"][4] - reduced["c"][2] == pytest.approx(0.0)
    assert reduced["b"][4] == pytest.approx(reduced["b"][2])


def test_a_pinned_layer_never_changes() -> None:
    found = explain(PROBLEM, solve(PROBLEM), "first")
    assert found.changes == ()
    assert found.layers[0].closest() is None
    assert "first: w8a8" in found.as_text()


def test_the_text_has_every_layer_and_the_next_changes() -> None:
    text = explain(PROBLEM, solve(PROBLEM)).as_text()
    lines = text.splitlines()
    assert lines[0] == "total importance 1"
    assert lines[1].startswith("bitops: 88 bitops of at most 88 bitops; 1 % more would lower the score by about ")
    assert [line.split()[:2] for line in lines[4:7]] == [["first", "w8a8"], ["body.a", "w2a4"], ["body.b", "w4a4"]]
    assert lines[-2:] == [
        "body.b: w2a4 instead of w4a4 when bitops shrinks, below 88 bitops",
        "body.a: w4a4 instead of w2a4 when bitops grows, from 96 bitops",
    ]


def test_json_is_json_where_a_tie_forbids_a_candidate() -> None:
    space = SearchSpace({"a": FREE, "b": Candidates.pinned(Bits(4, 4))}, weight_ties=(("a", "b"),))
    table = Table({name: {bits: float(bits.weight) for bits in c.pairs} for name, c in space.candidates.items()}, "importance")
    problem = Problem(space, table, (Budget("bitops", 8.0, table),))
    value = json.loads(json.dumps(explain(problem, solve(problem), "a").to_json(), allow_nan=False))
    (entry,) = value["layers"]
    assert entry["tied"] == ["b"]
    assert [(choice["bits"], choice["reduced_cost"]) for choice in entry["choices"]] == [("w4a4", 0.0), ("w2a4", None)]


def test_ties_reach_over_other_layers() -> None:
    space = SearchSpace(dict.fromkeys(("a", "b", "c", "d"), FREE), weight_ties=(("a", "b"),), act_ties=(("b", "c"),))
    assert tied_to(space, "a") == ("b", "c")
    assert tied_to(space, "d") == ()


def test_bad_input_is_named() -> None:
    solution = solve(PROBLEM)
    with pytest.raises(SpaceError, match=r"no layer 'body\.c': expected one of first, body\.a, body\.b"):
        explain(PROBLEM, solution, "body.c")
    space = SearchSpace({"other": FREE})
    score = Table({"other": {bits: 0.0 for bits in FREE.pairs}}, "importance")
    with pytest.raises(PolicyError, match="the solution is for other layers"):
        explain(Problem(space, score, ()), solution)
