"""Uniform policies and the reversed assignment."""

import pytest

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search import Problem, reversed_assignment, solve, uniform
from bitalloc.space import Candidates, SearchSpace, Table

FREE = Candidates((4, 3, 2), (4, 3, 2))
SPACE = SearchSpace({"first": Candidates.pinned(Bits(8, 8)), "a": FREE, "b": FREE, "c": FREE})
IMPORTANCE = {"first": 0.0, "a": 1.0, "b": 10.0, "c": 3.0}
SCORE = Table(
    {name: {p: IMPORTANCE[name] * (1 / p.weight + 1 / p.act) for p in choices.pairs} for name, choices in SPACE.candidates.items()},
    "importance",
)
COST = Table({name: {p: float(p.weight * p.act) for p in choices.pairs} for name, choices in SPACE.candidates.items()}, "bitops")


def problem(limit: float, space: SearchSpace = SPACE) -> Problem:
    return Problem(space, SCORE, (Budget("bitops", limit, COST),))


def like(pair: Bits) -> float:
    return 64.0 + 3 * pair.weight * pair.act


def test_uniform_takes_the_largest_product_that_fits() -> None:
    found = uniform(problem(like(Bits(3, 3)) + 1))
    assert found.bits == {"first": Bits(8, 8), "a": Bits(3, 3), "b": Bits(3, 3), "c": Bits(3, 3)}
    assert found.objective == SCORE.total(found.bits)
    assert found.budgets[0].slack == 1.0


def test_uniform_prefers_activation_bits_at_the_same_product() -> None:
    assert uniform(problem(like(Bits(4, 3)))).bits["a"] == Bits(3, 4)


def test_uniform_prefers_balanced_widths_at_the_same_product() -> None:
    space = SearchSpace({"a": Candidates((8, 4, 2), (8, 4, 2))})
    table = Table({"a": {p: float(p.weight * p.act) for p in space.candidates["a"].pairs}}, "bitops")
    assert uniform(Problem(space, table, (Budget("bitops", 16.0, table),))).bits == {"a": Bits(4, 4)}


def test_uniform_takes_the_given_pair_if_it_fits() -> None:
    assert uniform(problem(like(Bits(4, 4))), Bits(4, 2)).bits["b"] == Bits(4, 2)
    assert uniform(problem(like(Bits(3, 3))), Bits(4, 4)).bits["b"] == Bits(3, 3)
    assert uniform(problem(like(Bits(4, 4))), Bits(6, 2)).bits["b"] == Bits(4, 4)


def test_uniform_takes_a_pair_that_all_free_layers_have() -> None:
    space = SearchSpace({**SPACE.candidates, "b": Candidates((3, 2), (4, 2))})
    assert uniform(problem(1e9, space)).bits["a"] == Bits(3, 4)


def test_uniform_keeps_ties_with_a_pinned_layer() -> None:
    pinned = Candidates.pinned(Bits(3, 4))
    space = SearchSpace({"first": SPACE.candidates["first"], "a": pinned, "b": FREE, "c": FREE}, weight_ties=(("a", "b"),))
    assert uniform(problem(1e9, space)).bits["b"] == Bits(3, 4)


def test_uniform_of_a_pinned_model_is_that_model() -> None:
    space = SearchSpace({"first": SPACE.candidates["first"]})
    found = uniform(problem(1e9, space))
    assert (found.bits, found.status) == ({"first": Bits(8, 8)}, "optimal")


def test_uniform_says_what_does_not_fit() -> None:
    with pytest.raises(InfeasibleError, match="bitops 70 bitops"):
        uniform(problem(70.0))


def test_uniform_is_bounded_and_never_beats_the_search() -> None:
    for limit in (91.0, 95.0, 100.0, 111.0):
        best, found = solve(problem(limit)), uniform(problem(limit))
        assert found.bound <= best.objective <= found.objective
        assert found.status == "feasible"


def test_reversed_gives_the_important_layer_the_fewest_bits() -> None:
    limit = like(Bits(3, 3))
    best, reverse = solve(problem(limit)), reversed_assignment(problem(limit))
    # a < c < b in importance: the layers of rank 1 and 3 change places, the middle one stays.
    swapped = {"first": SCORE.values["first"], "a": SCORE.values["b"], "b": SCORE.values["a"], "c": SCORE.values["c"]}
    expected = solve(Problem(SPACE, Table(swapped, "importance"), problem(limit).budgets))
    assert Table(swapped, "importance").total(reverse.bits) == pytest.approx(expected.objective)
    assert reverse.bits["b"].weight * reverse.bits["b"].act < reverse.bits["a"].weight * reverse.bits["a"].act
    assert best.bits["b"].weight * best.bits["b"].act > best.bits["a"].weight * best.bits["a"].act
    assert reverse.objective == SCORE.total(reverse.bits) > best.objective
    assert problem(limit).fits(reverse.bits)
    assert reverse.bound <= best.objective


def test_reversed_swaps_only_among_layers_with_the_same_candidates() -> None:
    space = SearchSpace({**SPACE.candidates, "b": Candidates((4, 2), (4, 2))})
    limit = like(Bits(3, 3))
    # a and c change places; b, alone in its kind, keeps its scores.
    swapped = Table({**SCORE.values, "a": SCORE.values["c"], "c": SCORE.values["a"]}, "importance")
    expected = solve(Problem(space, swapped, problem(limit).budgets))
    assert swapped.total(reversed_assignment(problem(limit, space)).bits) == pytest.approx(expected.objective)


def test_reversed_of_an_impossible_budget() -> None:
    with pytest.raises(InfeasibleError, match="smallest reachable 76"):
        reversed_assignment(problem(70.0))
