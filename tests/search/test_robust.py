"""Several score tables: how much policies differ, and one policy for all of them."""

import itertools
import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search import Problem, bootstrap, solve, solve_robust, stability
from bitalloc.space import Candidates, SearchSpace, Table

randoms = st.randoms(use_true_random=False)
PAIR = SearchSpace({"pin": Candidates.pinned(Bits(8, 8)), **dict.fromkeys("ab", Candidates((8, 4), (8,)))})
COST = Table({"pin": {Bits(8, 8): 0.0}, **{n: {Bits(8, 8): 2.0, Bits(4, 8): 1.0} for n in "ab"}}, "cost")


def score(a: float, b: float, unit: str = "score") -> Table:
    """What 4 bits cost in layer a and in layer b; 8 bits cost nothing."""
    return Table({"pin": {Bits(8, 8): 1.0}, "a": {Bits(8, 8): 0.0, Bits(4, 8): a}, "b": {Bits(8, 8): 0.0, Bits(4, 8): b}}, unit)


PROBLEM = Problem(PAIR, score(0, 0), (Budget("cost", 3.0, COST),))


def test_shares_agreement_and_regret_by_hand() -> None:
    found = stability(PROBLEM, [score(1, 2), score(1, 3), score(5, 2)])
    # a is narrowed, a is narrowed, b is narrowed.
    assert found.weight == {
        "a": {8: pytest.approx(1 / 3), 4: pytest.approx(2 / 3)},
        "b": {8: pytest.approx(2 / 3), 4: pytest.approx(1 / 3)},
    }
    assert found.act == {"a": {8: 1.0}, "b": {8: 1.0}}
    assert found.objectives == (2.0, 2.0, 3.0)
    assert found.weight_agreement == ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert found.act_agreement == ((1.0,) * 3,) * 3
    assert found.regret == ((0.0, 0.0, 1.0), (0.0, 0.0, 2.0), (3.0, 3.0, 0.0))
    assert found.text().splitlines() == [
        "3 policies; objective 2.33333, from 2 to 3, standard deviation 0.577",
        "two policies agree on 33.3% of the weight widths and 100.0% of the activation widths, in the mean",
        "a  weight 8: 33%, 4: 67%  act 8: 100%",
        "b  weight 8: 67%, 4: 33%  act 8: 100%",
    ]
    again = json.loads(json.dumps(found.to_json()))
    assert again["weight"]["a"] == {"8": pytest.approx(1 / 3), "4": pytest.approx(2 / 3)}
    assert again["policies"][2] == {"pin": "w8a8", "a": "w8a8", "b": "w4a8"}


def test_one_table_agrees_with_itself() -> None:
    found = stability(PROBLEM, [score(1, 2)])
    assert found.weight_agreement == ((1.0,),)
    assert "agree on 100.0%" in found.text()


def test_the_bootstrap_draws_means_of_the_tables() -> None:
    tables = [score(1, 2), score(3, 2), score(8, 2)]
    samples = bootstrap(tables, draws=400, seed=3)
    means = {round(sample.values["a"][Bits(4, 8)], 9) for sample in samples}
    possible = {round(sum(drawn) / 3, 9) for drawn in itertools.combinations_with_replacement((1, 3, 8), 3)}
    assert means == possible
    assert {sample.values["b"][Bits(4, 8)] for sample in samples} == {2.0}
    assert bootstrap(tables, draws=5, seed=3) == samples[:5]
    assert bootstrap(tables, draws=5, seed=4) != samples[:5]


def test_the_worst_case_prefers_a_policy_that_no_table_hates() -> None:
    space = SearchSpace({"a": Candidates((8, 4, 2), (8,))})
    tables = [Table({"a": dict(zip(space.candidates["a"].pairs, row, strict=True))}, "score") for row in ((0, 3, 10), (9, 4, 0), (0, 4, 0))]
    problem = Problem(space, tables[0], ())
    worst, mean = solve_robust(problem, tables), solve_robust(problem, tables, "mean")
    assert (worst.solution.bits, worst.totals, worst.solution.objective) == ({"a": Bits(4, 8)}, (3, 4, 4), 4)
    assert (mean.solution.bits, mean.solution.objective) == ({"a": Bits(8, 8)}, 3)
    assert worst.solution.status == mean.solution.status == "optimal"


@given(randoms)
def test_robust_policies_equal_brute_force(random: Random) -> None:
    candidates = {f"l{i}": Candidates((8, 4, 2), (8, 4)) for i in range(random.randint(1, 4))}
    ties = (("l0", "l1"),) if len(candidates) > 1 and random.random() < 0.4 else ()
    space = SearchSpace(candidates, ties)
    erased = random.random() < 0.3

    def table(unit: str, least: float) -> Table:
        values = {n: {p: random.uniform(least, 10) for p in c.pairs} for n, c in space.candidates.items()}
        if erased and unit == "score":
            values["l0"][Bits(2, 4)] = 1e8
        return Table(values, unit)

    policies = [dict(zip(candidates, choice, strict=True)) for choice in itertools.product(*(c.pairs for c in candidates.values()))]
    policies = [bits for bits in policies if not ties or bits["l0"].weight == bits["l1"].weight]
    cost = table("cost", 0.1)
    limit = cost.total(random.choice(policies)) * 1.1
    inside = [bits for bits in policies if cost.total(bits) <= limit]
    tables = [table("score", -5.0) for _ in range(random.randint(1, 4))]
    problem = Problem(space, tables[0], (Budget("cost", limit, cost),))
    for criterion, merged in (("worst", max), ("mean", lambda totals: sum(totals) / len(totals))):
        found = solve_robust(problem, tables, criterion)
        assert found.totals == tuple(t.total(found.solution.bits) for t in tables)
        assert found.solution.objective == pytest.approx(merged(found.totals), rel=1e-9, abs=1e-9)
        assert found.solution.objective == pytest.approx(min(merged([t.total(b) for t in tables]) for b in inside), rel=1e-7, abs=1e-7)
        assert found.solution.bits in inside


def test_tables_of_different_units_are_compared_by_their_ranges() -> None:
    # The second table is a thousand times the first one's scale, and would decide alone.
    tables = [score(1, 4, "loss"), score(3000, 1000, "error")]
    with pytest.raises(SpaceError, match="loss, error.*scale='range'"):
        solve_robust(PROBLEM, tables)
    found = solve_robust(PROBLEM, tables, scale="range")
    # Narrowing a costs (1/5, 3/4) of the ranges, narrowing b (4/5, 1/4).
    assert found.solution.bits["a"] == Bits(4, 8)
    assert found.totals == (pytest.approx(0.2), pytest.approx(0.75))
    # Narrowing a, b, or both: the means are 0.475, 0.525 and 1.
    assert solve_robust(PROBLEM, tables, "mean", scale="range").solution.objective == pytest.approx(0.475)


def test_bad_input_is_refused() -> None:
    other = Table({"a": {Bits(8, 8): 0.0}}, "score")
    with pytest.raises(BitallocError, match="no score table"):
        stability(PROBLEM, [])
    with pytest.raises(BitallocError, match="no score table"):
        solve_robust(PROBLEM, [])
    with pytest.raises(BitallocError, match="criterion is 'best'"):
        solve_robust(PROBLEM, [score(1, 1)], "best")  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match="no layer pin"):
        solve_robust(PROBLEM, [score(1, 1), other])
    with pytest.raises(BitallocError, match="at least two tables"):
        bootstrap([score(1, 1)])
    with pytest.raises(SpaceError, match="different choices in pin, a, b"):
        bootstrap([score(1, 1), other])
    with pytest.raises(SpaceError, match="one table is in score, another in loss"):
        bootstrap([score(1, 1), score(1, 1, "loss")])
    impossible = Problem(PAIR, PROBLEM.score, (Budget("cost", 1.0, COST),))
    for attempt in (lambda: stability(impossible, [score(1, 1)]), lambda: solve_robust(impossible, [score(1, 1)])):
        with pytest.raises(InfeasibleError, match="smallest reachable 2"):
            attempt()


def test_robust_is_never_worse_in_its_criterion_than_the_policy_of_any_table() -> None:
    random = Random(1)
    space = SearchSpace({f"l{i}": Candidates((8, 6, 4, 2), (8, 4)) for i in range(15)})
    cost = Table({n: {p: float(p.weight * p.act) for p in c.pairs} for n, c in space.candidates.items()}, "bitops")
    tables = [
        Table({n: {p: random.random() * (1 / p.weight + 1 / p.act) for p in c.pairs} for n, c in space.candidates.items()}, "score")
        for _ in range(4)
    ]
    problem = Problem(space, tables[0], (Budget("bitops", 15 * 24.0, cost),))
    worst = solve_robust(problem, tables).solution
    assert worst.status == "optimal"
    for table in tables:
        own = solve(Problem(space, table, problem.budgets))
        assert worst.objective <= max(t.total(own.bits) for t in tables) + 1e-9
        assert worst.objective >= own.objective - 1e-9
