"""Uniform, reversed, greedy, random and evolved policies."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search import Problem, evolution, greedy, random_policies, reversed_assignment, solve, uniform
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


def test_uniform_raises_layers_that_cannot_be_so_narrow() -> None:
    least = SearchSpace({**SPACE.candidates, "b": Candidates((4, 3), (4,))})
    limit = 64.0 + 4 + 3 * 4 + 4  # a and c at w2a2, b at its least
    found = uniform(problem(limit, least))
    assert found.bits == {"first": Bits(8, 8), "a": Bits(2, 2), "b": Bits(3, 4), "c": Bits(2, 2)}
    with pytest.raises(InfeasibleError, match="no uniform policy meets all budgets"):
        uniform(problem(limit - 1, least))


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


def test_uniform_leaves_sides_alone_that_a_tie_or_the_candidates_set() -> None:
    wide = Candidates((4, 3, 2), (8, 4, 3))
    space = SearchSpace(
        {"stem": Candidates.pinned(Bits(8, 8)), "twin": wide, "embedding": Candidates((4, 3, 2), (32,)), "a": wide, "b": wide},
        act_ties=(("stem", "twin"),),
    )
    table = Table({name: {p: float(p.weight * p.act) for p in c.pairs} for name, c in space.candidates.items()}, "bitops")
    expected = {"stem": Bits(8, 8), "twin": Bits(3, 8), "embedding": Bits(3, 32), "a": Bits(3, 3), "b": Bits(3, 3)}
    assert uniform(Problem(space, table, ()), Bits(3, 3)).bits == expected
    widest = {"stem": Bits(8, 8), "twin": Bits(4, 8), "embedding": Bits(4, 32), "a": Bits(4, 8), "b": Bits(4, 8)}
    assert uniform(Problem(space, table, (Budget("bitops", table.total(widest), table),))).bits == widest


def test_uniform_where_only_weights_are_searched() -> None:
    space = SearchSpace({name: Candidates((8, 4, 2), (8,)) for name in "ab"})
    table = Table({name: {p: float(p.weight) for p in c.pairs} for name, c in space.candidates.items()}, "bytes")
    problem = Problem(space, table, (Budget("bytes", 9.0, table),))
    assert uniform(problem).bits == {"a": Bits(4, 8), "b": Bits(4, 8)}
    assert uniform(problem, Bits(2, 2)).bits == {"a": Bits(2, 8), "b": Bits(2, 8)}


def test_uniform_takes_pairs_that_are_allowed_everywhere() -> None:
    pairs = frozenset({Bits(4, 4), Bits(4, 8), Bits(8, 8)})
    space = SearchSpace({name: Candidates((8, 4), (8, 4), pairs) for name in "ab"})
    table = Table({name: {p: float(p.weight * p.act) for p in c.pairs} for name, c in space.candidates.items()}, "bitops")
    assert uniform(Problem(space, table, (Budget("bitops", 64.0, table),)), Bits(8, 4)).bits == {"a": Bits(4, 8), "b": Bits(4, 8)}


def test_uniform_keeps_the_limit_on_the_number_of_widths() -> None:
    space = SearchSpace({"first": Candidates.pinned(Bits(8, 8)), "a": Candidates((8, 4), (8, 4))}, max_widths=1)
    table = Table({name: {p: float(p.weight * p.act) for p in c.pairs} for name, c in space.candidates.items()}, "bitops")
    assert uniform(Problem(space, table, ()), Bits(4, 4)).bits["a"] == Bits(8, 8)


def assignments(space: SearchSpace) -> Iterator[dict[str, Bits]]:
    """Every policy of the space, by the definition."""
    for choice in itertools.product(*(c.pairs for c in space.candidates.values())):
        bits = dict(zip(space.candidates, choice, strict=True))
        tied = all(len({bits[n].weight for n in group}) == 1 for group in space.weight_ties)
        tied = tied and all(len({bits[n].act for n in group}) == 1 for group in space.act_ties)
        counts = [len({getattr(b, side) for b in bits.values()} - {32}) for side in ("weight", "act")]
        if tied and (space.max_widths is None or max(counts) <= space.max_widths):
            yield bits


def random_problem(random: Random, budgets: int = 2) -> Problem:
    """Up to four layers, some tied, restricted to pairs or to a number of widths; budgets that some policy meets."""
    common = Candidates((8, 4, 2), (8, 4), frozenset({Bits(8, 8), Bits(4, 8), Bits(4, 4), Bits(2, 4)}))
    kinds = (Candidates((8, 4, 2), (8, 4)), Candidates((8, 4, 2), (8, 4)), common, Candidates((8, 2), (32,)), Candidates.pinned(Bits(8, 8)))
    candidates = {f"l{i}": random.choice(kinds) for i in range(random.randint(1, 4))}
    group = tuple(name for name, c in candidates.items() if c.act != (32,))
    ties = [(group[:2],) if len(group) > 1 and random.random() < 0.4 else () for _ in range(2)]
    space = SearchSpace(candidates, *ties, max_widths=random.choice((None, None, 2)))

    def table(least: float, unit: str) -> Table:
        return Table({n: {p: random.uniform(least, 10) for p in c.pairs} for n, c in space.candidates.items()}, unit)

    met = random.choice(list(assignments(space)))
    costs = [table(0.1, f"unit{k}") for k in range(budgets)]
    return Problem(space, table(-5, "score"), tuple(Budget(t.unit, t.total(met) * random.uniform(1, 1.3), t) for t in costs))


randoms = st.randoms(use_true_random=False)


@settings(phases=(Phase.generate,))  # to shrink a failure would take minutes: every example is several searches
@given(randoms)
def test_no_baseline_is_outside_the_problem_or_better_than_the_optimum(random: Random) -> None:
    problem = random_problem(random)
    inside = [bits for bits in assignments(problem.space) if all(b.table.total(bits) <= b.limit * (1 + 1e-12) for b in problem.budgets)]
    best = min(problem.score.total(bits) for bits in inside)
    found = [*random_policies(problem, 3, seed=1), evolution(problem, evaluations=12, population=4, tournament=2).solution]
    for baseline in (uniform, greedy):
        with contextlib.suppress(InfeasibleError):
            found.append(baseline(problem))
    for solution in found:
        assert solution.bits in inside
        assert solution.objective >= best - 1e-9
        assert solution.bound <= best + 1e-9


def monotone(random: Random, names: int) -> Problem:
    """Scores that fall and costs that rise with every width: what greedy was made for."""
    space = SearchSpace({f"l{i}": Candidates((8, 6, 4, 3, 2), (8, 4)) for i in range(names)})
    size = {name: random.uniform(1, 10) for name in space.candidates}
    pain = {name: random.uniform(1, 10) for name in space.candidates}
    cost = Table({n: {p: size[n] * p.weight * p.act for p in c.pairs} for n, c in space.candidates.items()}, "bitops")
    score = Table({n: {p: pain[n] * (2.0**-p.weight + 2.0**-p.act) for p in c.pairs} for n, c in space.candidates.items()}, "score")
    return Problem(space, score, (Budget("bitops", sum(size.values()) * 16.5, cost),))


@given(randoms)
def test_greedy_meets_every_budget_that_the_narrowest_policy_meets(random: Random) -> None:
    problem = monotone(random, 5)
    found = greedy(problem)
    assert problem.fits(found.bits)
    assert found.objective >= solve(problem).objective - 1e-9


def test_greedy_by_hand() -> None:
    # Ratios of rise to saving: a 1/4 to 4 bits, 6/6 to 2 bits; b 3/4 and 4/6. Ten bits are to be saved: a to 4, b to 2, that is enough.
    space = SearchSpace({name: Candidates((8, 4, 2), (8,)) for name in "ab"})
    score = Table(
        {"a": dict(zip(space.candidates["a"].pairs, (0, 1, 6), strict=True)), "b": {Bits(8, 8): 0, Bits(4, 8): 3, Bits(2, 8): 4}}, "s"
    )
    cost = Table({name: {p: float(p.weight) for p in c.pairs} for name, c in space.candidates.items()}, "bytes")
    assert greedy(Problem(space, score, (Budget("bytes", 6.0, cost),))).bits == {"a": Bits(4, 8), "b": Bits(2, 8)}
    assert greedy(Problem(space, score, (Budget("bytes", 12.0, cost),))).bits == {"a": Bits(4, 8), "b": Bits(8, 8)}


def test_greedy_moves_tied_layers_together() -> None:
    space = SearchSpace(dict.fromkeys("ab", FREE), weight_ties=(("a", "b"),), act_ties=(("a", "b"),))
    found = greedy(Problem(space, SCORE, (Budget("bitops", 12.0 * 2, COST),)))
    assert found.bits["a"] == found.bits["b"]
    assert found.budgets[0].used <= 24


def test_greedy_says_which_budget_it_cannot_keep() -> None:
    with pytest.raises(InfeasibleError, match="bitops cannot be kept"):
        greedy(problem(70.0))


def test_greedy_keeps_the_limit_on_the_number_of_widths() -> None:
    space = SearchSpace(dict.fromkeys("abc", Candidates((8, 6, 4, 3, 2), (8,))), max_widths=1)
    cost = Table({name: {p: float(p.weight) for p in c.pairs} for name, c in space.candidates.items()}, "bytes")
    score = Table({name: {p: 1.0 / p.weight for p in c.pairs} for name, c in space.candidates.items()}, "score")
    assert set(greedy(Problem(space, score, (Budget("bytes", 14.0, cost),))).bits.values()) == {Bits(4, 8)}


def test_random_policies_are_uniform_over_what_is_inside() -> None:
    space = SearchSpace(dict.fromkeys("ab", Candidates((4, 2), (8,))))
    cost = Table({name: {p: float(p.weight) for p in c.pairs} for name, c in space.candidates.items()}, "bytes")
    found = random_policies(Problem(space, cost, (Budget("bytes", 6.0, cost),)), draws=600, seed=5)
    counts = Counter((s.bits["a"].weight, s.bits["b"].weight) for s in found)
    assert set(counts) == {(4, 2), (2, 4), (2, 2)}
    assert all(150 < count < 250 for count in counts.values())  # 200 each in the mean, with a standard deviation of 12


def test_random_policies_of_a_tight_budget_are_repaired() -> None:
    space = SearchSpace({f"l{i}": Candidates((8, 4, 2), (8, 4, 2)) for i in range(30)})
    cost = Table({name: {p: float(p.weight * p.act) for p in c.pairs} for name, c in space.candidates.items()}, "bitops")
    problem = Problem(space, cost, (Budget("bitops", 30 * 6.0, cost),))
    first, second = random_policies(problem, draws=2, seed=0)
    assert problem.fits(first.bits)
    assert problem.fits(second.bits)
    assert first.bits != second.bits
    assert [s.bits for s in random_policies(problem, draws=2, seed=0)] == [first.bits, second.bits]
    assert random_policies(problem, draws=1, seed=1)[0].bits != first.bits


@pytest.mark.parametrize("search", [lambda p: random_policies(p, 1), lambda p: evolution(p, evaluations=3)])
def test_searches_by_chance_say_that_nothing_fits(search: Callable[[Problem], object]) -> None:
    with pytest.raises(InfeasibleError, match="smallest reachable"):
        search(problem(70.0))


def test_random_policies_need_a_draw() -> None:
    with pytest.raises(BitallocError, match="draws is 0"):
        random_policies(problem(100.0), 0)


def test_evolution_comes_to_the_optimum_of_a_small_space() -> None:
    # A search by chance: 393 policies are inside, every run is near the best of them, and the best of two has it.
    here = problem(like(Bits(3, 3)))
    best = solve(here).objective
    runs = [evolution(here, evaluations=150, population=20, tournament=4, seed=seed) for seed in range(2)]
    assert min(run.objective for run in runs) == pytest.approx(best)
    for run in runs:
        assert best - 1e-9 <= run.objective <= 1.05 * best
        assert run.solution.objective == run.objective == run.history[-1]


def test_evolution_takes_an_objective_that_does_not_add_up() -> None:
    asked: list[tuple[Bits, ...]] = []

    def clash(bits: Mapping[str, Bits]) -> float:
        asked.append(tuple(bits.values()))
        return abs(bits["a"].weight - bits["b"].weight) - bits["a"].weight * bits["b"].weight * bits["c"].act

    found = evolution(problem(1e9), clash, evaluations=150, population=10, tournament=3, seed=1)
    assert found.objective == -64
    assert (found.solution.bits["a"].weight, found.solution.bits["b"].weight, found.solution.bits["c"].act) == (4, 4, 4)
    assert len(asked) == len(set(asked)) == found.evaluations == len(found.history) == 150
    assert list(found.history) == sorted(found.history, reverse=True)


def test_evolution_is_the_same_under_a_seed() -> None:
    runs = [evolution(problem(100.0), evaluations=40, population=8, tournament=3, seed=s) for s in (7, 7, 8)]
    assert runs[0].history == runs[1].history
    assert runs[0].solution.bits == runs[1].solution.bits
    assert runs[0].history != runs[2].history


def test_evolution_starts_with_the_policies_it_is_given() -> None:
    here = problem(like(Bits(3, 3)))
    best = solve(here)
    assert evolution(here, evaluations=1, start=[best.bits]).history == (best.objective,)
    outside = dict.fromkeys(SPACE.candidates, Bits(4, 4))
    assert here.fits(evolution(here, evaluations=1, start=[outside]).solution.bits)


def test_evolution_ends_when_every_policy_is_known() -> None:
    space = SearchSpace(dict.fromkeys("ab", Candidates((4, 2), (8,))))
    table = Table({name: {p: float(p.weight) for p in c.pairs} for name, c in space.candidates.items()}, "score")
    found = evolution(Problem(space, table, ()), evaluations=100, population=4, tournament=2)
    assert (found.evaluations, found.objective) == (4, 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "evaluations is 0"),
        ({"population": 1}, "population is 1"),
        ({"tournament": 60}, "at most the population of 50"),
        ({"mutations": 0.0}, "mutations is 0.0"),
        ({"objective": lambda bits: math.nan}, "not a number.*first w8a8"),
        ({"start": [{"first": Bits(8, 8)}]}, "no widths for a"),
    ],
)
def test_evolution_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BitallocError, match=message):
        evolution(problem(100.0), **options)
