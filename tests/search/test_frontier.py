"""The frontier of one budget and the surface of two, against brute force."""

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, BudgetError, FileError, InfeasibleError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits
from bitalloc.search import Problem, solve
from bitalloc.search.frontier import frontier
from bitalloc.search.frontier_points import Frontier
from bitalloc.space import Candidates, SearchSpace, Table

CLOSE = 1e-9

costs = st.integers(1, 9).map(float) | st.floats(0.5, 20)
scores = st.integers(-3, 9).map(float) | st.floats(-5, 5).map(lambda x: round(x, 3))
widths = st.lists(st.sampled_from((8, 4, 3, 2)), min_size=1, max_size=2, unique=True).map(lambda w: (*w,))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to four layers, tied or not, and one or two budgets; scores often equal, costs sometimes."""
    names = [f"layer.{i}" for i in range(draw(st.integers(1, 4)))]
    tied = len(names) > 1 and draw(st.booleans())
    common = Candidates((8, 4), draw(widths))
    space = SearchSpace(
        {name: common if tied and i < 2 else Candidates(draw(widths), draw(widths)) for i, name in enumerate(names)},
        weight_ties=(tuple(names[:2]),) if tied else (),
        act_ties=(tuple(names[:2]),) if tied and draw(st.booleans()) else (),
    )

    def table(values: st.SearchStrategy[float], unit: str) -> Table:
        return Table({name: {bits: draw(values) for bits in c.pairs} for name, c in space.candidates.items()}, unit)

    first, second = table(costs, "bitops"), table(costs, "bytes")
    budgets = [Budget("bitops", 1.0, first)]
    if draw(st.booleans()):
        policies = list(assignments(space))
        budgets.append(Budget("bytes", draw(st.sampled_from([second.total(bits) for bits in policies])), second))
    return Problem(space, table(scores, "importance"), tuple(budgets))


def assignments(space: SearchSpace) -> Iterator[dict[str, Bits]]:
    """Every choice that keeps the ties, by the definition."""
    for choice in itertools.product(*(c.pairs for c in space.candidates.values())):
        bits = dict(zip(space.candidates, choice, strict=True))
        tied = all(len({bits[name].weight for name in group}) == 1 for group in space.weight_ties)
        if tied and all(len({bits[name].act for name in group}) == 1 for group in space.act_ties):
            yield bits


def feasible(problem: Problem, varied: str = "bitops") -> list[tuple[float, float]]:
    """Cost and score of every policy inside all budgets but the varied one."""
    others = [budget for budget in problem.budgets if budget.name != varied]
    (cost,) = (budget.table for budget in problem.budgets if budget.name == varied)
    inside = (bits for bits in assignments(problem.space) if all(b.table.total(bits) <= b.limit * (1 + 1e-15) for b in others))
    return [(cost.total(bits), problem.score.total(bits)) for bits in inside]


def pareto(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """By growing cost, every pair that no other is at least as good as in both and better in one; equal ones once."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(pairs):
        if not kept or score < kept[-1][1] - CLOSE:
            if kept and cost <= kept[-1][0] * (1 + 1e-12):
                kept.pop()
            kept.append((cost, score))
    return kept


@settings(max_examples=80, deadline=None)
@given(problems())
def test_all_policies_are_the_pareto_set(problem: Problem) -> None:
    found = frontier(problem, "bitops")
    assert found.complete
    expected = pareto(feasible(problem))
    assert [(point.cost, point.objective) for point in found.points] == [pytest.approx(pair, rel=1e-9, abs=CLOSE) for pair in expected]
    assert (found.smallest, found.largest) == pytest.approx((expected[0][0], expected[-1][0]))
    for point in found.points:
        assert point.objective - point.bound <= CLOSE
        assert problem.score.total(point.bits) == point.objective
        assert all(use.used <= use.limit * (1 + 1e-15) for use in point.budgets)
        assert [use.name for use in point.budgets] == [budget.name for budget in problem.budgets]


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(2, 7), st.sampled_from([0.0, 0.1]))
def test_points_at_even_limits_are_proven_and_monotone(problem: Problem, count: int, gap: float) -> None:
    found = frontier(problem, "bitops", points=count, gap=gap)
    pairs = feasible(problem)
    assert not found.complete
    assert 1 <= len(found.points) <= count
    for point in found.points:
        best = min(score for cost, score in pairs if cost <= point.limit * (1 + 1e-15))
        assert point.cost <= point.limit * (1 + 1e-15)
        assert point.bound <= best + CLOSE
        assert best - CLOSE <= point.objective <= best + gap * abs(point.objective) + CLOSE
    for a, b in itertools.pairwise(found.points):
        assert a.cost < b.cost
        assert a.objective > b.objective
    assert min(score for _, score in pairs) == pytest.approx(found.points[-1].objective, rel=2 * gap, abs=CLOSE)


FREE = Candidates((4, 3, 2), (4,))
SPACE = SearchSpace({"first": Candidates.pinned(Bits(8, 8)), "a": FREE, "b": FREE})
SCORE = Table(
    {
        "first": {Bits(8, 8): 0.0},
        "a": {Bits(4, 4): 0.0, Bits(3, 4): 1.0, Bits(2, 4): 4.0},
        "b": {Bits(4, 4): 0.0, Bits(3, 4): 2.0, Bits(2, 4): 3.5},
    },
    "importance",
)
COST = Table({name: {pair: float(pair.weight * pair.act) for pair in c.pairs} for name, c in SPACE.candidates.items()}, "bitops")
PROBLEM = Problem(SPACE, SCORE, (Budget("bitops", 80.0, COST),))


def test_a_frontier_counted_by_hand() -> None:
    """First takes 64; a and b take 16, 12 or 8 each: 80 to 96, and one policy is the best at every step of 4."""
    found = frontier(PROBLEM, "bitops")
    chosen = [(point.cost, point.objective, point.bits["a"].weight, point.bits["b"].weight) for point in found.points]
    assert chosen == [(80.0, 7.5, 2, 2), (84.0, 4.5, 3, 2), (88.0, 3.0, 3, 3), (92.0, 1.0, 3, 4), (96.0, 0.0, 4, 4)]
    assert found.complete
    assert found.differences()[0] == {"a": (Bits(2, 4), Bits(3, 4))}
    assert found.differences()[-1] == {"a": (Bits(3, 4), Bits(4, 4))}


def test_given_limits_merge_where_the_policy_is_the_same() -> None:
    found = frontier(PROBLEM, "bitops", limits=[95, 84, 92, 1000])
    assert [(point.limit, point.cost) for point in found.points] == [(84, 84.0), (92, 92.0), (1000, 96.0)]
    assert [use.slack for point in found.points for use in point.budgets] == [0.0, 0.0, 904.0]


def test_every_point_is_what_solve_finds_there() -> None:
    for point in frontier(PROBLEM, "bitops", points=4).points:
        alone = solve(Problem(SPACE, SCORE, (Budget("bitops", point.limit, COST),)))
        assert alone.objective == point.objective


def test_a_cap_is_said() -> None:
    found = frontier(PROBLEM, "bitops", at_most=2)
    assert not found.complete
    assert [point.cost for point in found.points] == [92.0, 96.0]


def test_a_frontier_with_one_policy() -> None:
    space = SearchSpace({"a": Candidates.pinned(Bits(4, 4))})
    table = Table({"a": {Bits(4, 4): 0.0}}, "importance")
    cost = Table({"a": {Bits(4, 4): 16.0}}, "bitops")
    found = frontier(Problem(space, table, (Budget("bitops", 99.0, cost),)), "bitops", points=5)
    assert [(point.limit, point.cost) for point in found.points] == [(16.0, 16.0)]
    assert found.differences() == ()


def test_a_json_file_gives_the_same_frontier(tmp_path: Path) -> None:
    found = frontier(PROBLEM, "bitops")
    found.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == found
    (tmp_path / "frontier.json").write_text((tmp_path / "frontier.json").read_text().replace('"bound"', '"bond"'))
    with pytest.raises(FileError, match=r"frontier\.json: KeyError\('bound'\) is missing or malformed"):
        Frontier.load(tmp_path / "frontier.json")


def test_json_has_no_value_that_json_has_not() -> None:
    value = frontier(PROBLEM, "bitops").to_json()
    assert Frontier.from_json(json.loads(json.dumps(value, allow_nan=False))) == frontier(PROBLEM, "bitops")


def test_csv_has_a_row_a_point_and_every_layer() -> None:
    found = frontier(PROBLEM, "bitops")
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [float(row["cost"]) for row in rows] == [point.cost for point in found.points]
    assert [float(row["used:bitops"]) for row in rows] == [point.cost for point in found.points]
    assert [Bits.parse(row["bits:a"]) for row in rows] == [point.bits["a"] for point in found.points]
    assert set(rows[0]) == {"limit", "cost", "objective", "bound", "gap", "used:bitops", "bits:first", "bits:a", "bits:b"}


def test_a_point_becomes_a_policy_of_the_model() -> None:
    layers = [LayerInfo(name, "conv2d", (4,), 4, 1, 1) for name in SPACE.candidates]
    policy = frontier(PROBLEM, "bitops").points[1].policy(layers, {"method": "frontier"})
    assert policy.bits["a"] == Bits(3, 4)
    assert policy.provenance["status"] == "optimal"
    assert policy.provenance["budgets"][0]["limit"] == 84.0


def test_bad_input_is_named() -> None:
    with pytest.raises(BudgetError, match="'bytes' is no budget of this problem: expected one of bitops"):
        frontier(PROBLEM, "bytes")
    with pytest.raises(BitallocError, match="points is 1, expected at least 2"):
        frontier(PROBLEM, "bitops", points=1)
    with pytest.raises(BitallocError, match="gap is -0.1"):
        frontier(PROBLEM, "bitops", points=3, gap=-0.1)
    with pytest.raises(BitallocError, match="give one of them"):
        frontier(PROBLEM, "bitops", points=3, limits=[90])
    with pytest.raises(BitallocError, match="limits is empty"):
        frontier(PROBLEM, "bitops", limits=[])
    with pytest.raises(BitallocError, match="at_most is 0"):
        frontier(PROBLEM, "bitops", at_most=0)
    with pytest.raises(InfeasibleError, match="bitops 79.5, 12 bitops .* smallest reachable value is 80"):
        frontier(PROBLEM, "bitops", limits=[79.5, 12, 90])


def test_a_budget_of_several_sums_is_varied_as_a_whole() -> None:
    """A peak: the largest of the sums counts, here of either layer alone."""
    moments = [
        Table({name: {bits: float(bits.weight) * (name == layer) for bits in c.pairs} for name, c in SPACE.candidates.items()}, "bytes")
        for layer in ("a", "b")
    ]
    problem = Problem(SPACE, SCORE, tuple(Budget("peak", 1.0, moment) for moment in moments))
    found = frontier(problem, "peak")
    assert [(point.cost, point.objective) for point in found.points] == [(2.0, 7.5), (3.0, 3.0), (4.0, 0.0)]
    assert (found.complete, found.smallest, found.largest) == (True, 2.0, 4.0)
    assert all(len({use.limit for use in point.budgets}) == 1 for point in found.points)
    assert [row["used:peak"] for row in csv.DictReader(io.StringIO(found.to_csv()))] == ["2.0", "3.0", "4.0"]


def test_other_budgets_that_cannot_be_met_are_named() -> None:
    budgets = (Budget("bitops", 80.0, COST), Budget("bytes", 1.0, COST))
    with pytest.raises(InfeasibleError, match="bytes: limit 1 bitops, smallest reachable 80"):
        frontier(Problem(SPACE, SCORE, budgets), "bitops", points=3)
