"""Why nothing fits, and what comes closest, against brute force."""

import itertools
import json
from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search import Problem, explain_infeasible, nearest_feasible, solve
from bitalloc.space import Candidates, SearchSpace, Table

randoms = st.randoms(use_true_random=False)


def assignments(space: SearchSpace) -> Iterator[dict[str, Bits]]:
    for choice in itertools.product(*(c.pairs for c in space.candidates.values())):
        bits = dict(zip(space.candidates, choice, strict=True))
        counts = [len({getattr(b, side) for b in bits.values()}) for side in ("weight", "act")]
        tied = all(len({bits[n].weight for n in group}) == 1 for group in space.weight_ties)
        if tied and (space.max_widths is None or max(counts) <= space.max_widths):
            yield bits


def least(space: SearchSpace, table: Table, kept: Sequence[Budget]) -> float | None:
    inside = (bits for bits in assignments(space) if all(b.table.total(bits) <= b.limit for b in kept))
    return min((table.total(bits) for bits in inside), default=None)


def tight_problem(random: Random) -> Problem:
    """Two or three layers and one to three budgets near the smallest sums, so that most cannot be met together."""
    kinds = (Candidates((8, 4, 2), (8, 4)), Candidates((8, 4), (8,)), Candidates((8, 4, 2), (4,)))
    candidates = {f"l{i}": random.choice(kinds) for i in range(random.randint(2, 3))}
    ties = (("l0", "l1"),) if random.random() < 0.3 else ()
    space = SearchSpace(candidates, ties, max_widths=random.choice((None, None, 2)))

    def table(unit: str) -> Table:
        return Table({n: {p: random.uniform(1, 10) for p in c.pairs} for n, c in space.candidates.items()}, unit)

    costs = [table(f"unit{k}") for k in range(random.randint(1, 3))]
    limits = [(least(space, cost, ()) or 1.0) * random.uniform(0.9, 1.4) for cost in costs]
    return Problem(space, table("score"), tuple(Budget(f"b{k}", limits[k], cost) for k, cost in enumerate(costs)))


@given(randoms)
def test_reaches_and_conflicts_equal_brute_force(random: Random) -> None:
    problem = tight_problem(random)
    budgets = problem.budgets
    if least(problem.space, problem.score, budgets) is not None:
        with pytest.raises(BitallocError, match="inside all budgets"):
            explain_infeasible(problem)
        return
    found = explain_infeasible(problem)
    for k, (reach, budget) in enumerate(zip(found.reaches, budgets, strict=True)):
        assert (reach.name, reach.limit, reach.unit) == (budget.name, budget.limit, budget.unit)
        assert reach.alone == pytest.approx(least(problem.space, budget.table, ()))
        together = least(problem.space, budget.table, budgets[:k] + budgets[k + 1 :])
        assert (reach.together is None) == (together is None)
        assert together is None or reach.together == pytest.approx(together)
    sets = [c for size in (1, 2, 3) for c in itertools.combinations(budgets, size) if least(problem.space, problem.score, c) is None]
    smallest = [c for c in sets if not any(set(map(id, other)) < set(map(id, c)) for other in sets)]
    assert set(found.conflicts) == {tuple(b.name for b in c) for c in smallest}
    for names in found.conflicts:
        assert " and ".join(names) + " cannot be met" in found.text() or len(names) == 1
    assert json.loads(json.dumps(found.to_json()))["conflicts"] == [list(names) for names in found.conflicts]


@given(randoms)
def test_the_nearest_policy_exceeds_the_limits_by_the_least_share(random: Random) -> None:
    problem = tight_problem(random)
    found = nearest_feasible(problem)
    policies = list(assignments(problem.space))
    assert found.solution.bits in policies
    share = min(max(b.table.total(bits) / b.limit - 1 for b in problem.budgets) for bits in policies)
    assert max(found.excess.values()) == pytest.approx(max(share, 0.0), abs=1e-8)
    for use, excess, budget in zip(found.solution.budgets, found.excess.values(), problem.budgets, strict=True):
        assert use.limit == budget.limit
        assert excess == pytest.approx(max(budget.table.total(found.solution.bits) / budget.limit - 1, 0.0), abs=1e-15)
    if share <= 0:
        assert found.solution.objective == pytest.approx(solve(problem).objective)
    # Nothing that exceeds every limit no more than this one has a better score.
    limits = [max(use.used, use.limit) for use in found.solution.budgets]
    rivals = [bits for bits in policies if all(b.table.total(bits) <= limit for b, limit in zip(problem.budgets, limits, strict=True))]
    assert found.solution.objective == pytest.approx(min(problem.score.total(bits) for bits in rivals))


PAIR = SearchSpace(dict.fromkeys("ab", Candidates((8, 4), (8,))))
FALLING = Table({name: {Bits(8, 8): 8e6, Bits(4, 8): 4e6} for name in "ab"}, "weight_bytes")
RISING = Table({name: {Bits(8, 8): 1e9, Bits(4, 8): 2e9} for name in "ab"}, "bitops")


def test_the_text_names_limits_in_units_and_the_conflict() -> None:
    problem = Problem(PAIR, FALLING, (Budget("size", 9e6, FALLING), Budget("bitops", 3.5e9, RISING)))
    assert explain_infeasible(Problem(PAIR, FALLING, (problem.budgets[0], Budget("bitops", 2.5e9, RISING)))).text() == (
        "no policy of the search space meets all budgets. size: limit 9000000 weight_bytes (9 MB), smallest reachable 8000000 (8 MB) "
        "alone and 16000000 (16 MB) with the other budgets held; bitops: limit 2500000000 bitops (2.5 GBitOps), smallest reachable "
        "2000000000 (2 GBitOps) alone and 4000000000 (4 GBitOps) with the other budgets held. size and bitops cannot be met together. "
        "Raise the limits or add narrower candidates."
    )
    assert "size cannot be met even alone" in explain_infeasible(Problem(PAIR, FALLING, (Budget("size", 7e6, FALLING),))).text()


def test_ties_that_leave_no_policy() -> None:
    pairs = [frozenset({Bits(8, 4), Bits(4, 8)}), frozenset({Bits(8, 8), Bits(4, 4)})]
    space = SearchSpace({n: Candidates((8, 4), (8, 4), p) for n, p in zip("ab", pairs, strict=True)}, (("a", "b"),), (("a", "b"),))
    cost = Table({name: dict.fromkeys(c.pairs, 1.0) for name, c in space.candidates.items()}, "cost")
    problem = Problem(space, cost, (Budget("cost", 5.0, cost),))
    assert explain_infeasible(problem).text().startswith("no policy keeps the ties")
    with pytest.raises(BitallocError, match="no policy keeps the ties"):
        nearest_feasible(problem)


def test_the_nearest_policy_keeps_the_limits_that_can_be_kept() -> None:
    # Size needs 14 % more than its limit, whatever is done; bitops would rather use the same share, and is held at its own limit.
    problem = Problem(PAIR, RISING, (Budget("size", 7e6, FALLING), Budget("bitops", 4e9, RISING)))
    found = nearest_feasible(problem)
    assert found.solution.bits == {"a": Bits(4, 8), "b": Bits(4, 8)}
    assert found.excess == {"size": pytest.approx(1 / 7), "bitops": 0.0}
    assert found.text() == (
        "size: 8000000 weight_bytes (8 MB), 14.286% above the limit of 7000000 weight_bytes (7 MB); "
        "bitops: 4000000000 bitops (4 GBitOps), inside the limit of 4000000000 bitops (4 GBitOps)"
    )


def test_a_budget_is_not_raised_because_another_one_has_to_be() -> None:
    # Size needs a third more than 6 MB, time 1/99 more than 1.98; the score alone would take twice the time.
    time = Table({name: {Bits(8, 8): 1.0, Bits(4, 8): 1.0} for name in "ab"} | {"c": {Bits(8, 8): 2.0, Bits(4, 8): 0.0}}, "ms")
    space = SearchSpace(dict.fromkeys("abc", Candidates((8, 4), (8,))))
    size = Table({**FALLING.values, "c": {Bits(8, 8): 0.0, Bits(4, 8): 0.0}}, "weight_bytes")
    score = Table({n: {Bits(8, 8): 0.0, Bits(4, 8): 1.0} for n in "abc"}, "score")
    found = nearest_feasible(Problem(space, score, (Budget("size", 6e6, size), Budget("time", 1.98, time))))
    assert found.excess == {"size": pytest.approx(1 / 3), "time": pytest.approx(1 / 99)}
    assert found.solution.bits["c"] == Bits(4, 8)


def test_without_budgets_the_nearest_policy_is_the_best() -> None:
    assert nearest_feasible(Problem(PAIR, FALLING, ())).excess == {}


def test_the_moments_of_a_peak_are_one_budget() -> None:
    # 7 and 5 or 4 and 10: the peak is 7 at best, which neither moment alone shows.
    space = SearchSpace({"a": Candidates((8, 4), (8,))})
    moments = [Table({"a": dict(zip(space.candidates["a"].pairs, row, strict=True))}, "bytes") for row in ((7.0, 4.0), (5.0, 10.0))]
    problem = Problem(space, moments[1], tuple(Budget("peak", 6.0, moment) for moment in moments))
    found = explain_infeasible(problem)
    assert [(reach.name, reach.limit, reach.alone) for reach in found.reaches] == [("peak", 6.0, 7.0)]
    assert found.conflicts == (("peak",),)
    near = nearest_feasible(problem)
    assert near.excess == {"peak": pytest.approx(1 / 6)}
    assert near.solution.bits == {"a": Bits(8, 8)}
    assert near.text() == "peak: 7 bytes, 16.667% above the limit of 6 bytes"
