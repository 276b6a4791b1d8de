"""The exact solver against brute force, and by properties."""

import itertools
import json
import math
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search import Problem, Solution, solve
from bitalloc.space import Candidates, SearchSpace, Table

TOLERANCE = 1e-9


def assignments(space: SearchSpace) -> Iterator[dict[str, Bits]]:
    """Every choice that keeps the ties, by the definition."""
    names = list(space.candidates)
    for choice in itertools.product(*(space.candidates[name].pairs for name in names)):
        bits = dict(zip(names, choice, strict=True))
        few = space.max_widths is None or all(
            len({getattr(choice, side) for choice in bits.values()} - {32}) <= space.max_widths for side in ("weight", "act")
        )
        weights_tied = all(bits[a].weight == bits[b].weight for group in space.weight_ties for a in group for b in group)
        acts_tied = all(bits[a].act == bits[b].act for group in space.act_ties for a in group for b in group)
        if weights_tied and acts_tied and few:
            yield bits


def smallest(space: SearchSpace, table: Table, budgets: tuple[Budget, ...]) -> float | None:
    """The least total of ``table`` inside ``budgets``, by trying everything."""
    inside = (bits for bits in assignments(space) if all(b.table.total(bits) <= b.limit * (1 + 1e-15) for b in budgets))
    return min((table.total(bits) for bits in inside), default=None)


widths = st.lists(st.sampled_from((8, 6, 4, 3, 2, 32)), min_size=1, max_size=3, unique=True).map(lambda w: (*w,))
shared = st.lists(st.sampled_from((8, 4, 3, 2)), min_size=2, max_size=3, unique=True).map(lambda w: (*w,))
scores = st.floats(-10, 10).map(lambda x: round(x, 3)) | st.floats(0, 1) | st.just(1e8)
costs = st.integers(0, 9).map(float) | st.floats(0.01, 20)


@st.composite
def candidates(draw: st.DrawFn, of: st.SearchStrategy[tuple[int, ...]]) -> Candidates:
    full = Candidates(draw(of), draw(of))
    if draw(st.integers(0, 2)):
        return full
    return Candidates(full.weight, full.act, frozenset(draw(st.lists(st.sampled_from(full.pairs), min_size=1))))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Layers with and without ties; ties overlap, and need not leave anything to choose."""
    names = [f"layer.{i}" for i in range(draw(st.integers(1, 4)))]
    common = draw(candidates(shared))
    tied = len(names) > 1 and draw(st.booleans())
    choices = {}
    for i, name in enumerate(names):
        pinned = draw(st.integers(0, 4)) == 0
        own = draw(candidates(widths))
        choices[name] = common if tied and i < 3 else Candidates.pinned(own.pairs[0]) if pinned else own
    group = st.lists(st.sampled_from(names[:3]), min_size=1, max_size=3).map(lambda names: (*names,))
    groups = st.lists(group, max_size=2).map(lambda groups: (*groups,))
    weight, act = (draw(groups), draw(groups)) if tied else ((), ())
    return SearchSpace(choices, weight, act, max_widths=draw(st.none() | st.integers(1, 3)))


@st.composite
def problems(draw: st.DrawFn, most_budgets: int = 3) -> Problem:
    space = draw(spaces())

    def table(values: st.SearchStrategy[float], unit: str) -> Table:
        return Table({name: {bits: draw(values) for bits in c.pairs} for name, c in space.candidates.items()}, unit)

    budgets = []
    for i in range(draw(st.integers(0, most_budgets))):
        cost = table(costs, f"unit{i}")
        low, high = (sum(pick(cost.values[name][p] for p in c.pairs) for name, c in space.candidates.items()) for pick in (min, max))
        budgets.append(Budget(f"budget{i}", max(low + draw(st.floats(-0.05, 1.0)) * (high - low), 0.5 * low, 1e-3), cost))
    return Problem(space, table(scores, "importance"), tuple(budgets))


def solved(problem: Problem) -> Solution | None:
    try:
        return solve(problem)
    except InfeasibleError:
        return None


@settings(max_examples=120, deadline=None)
@given(problems())
def test_equals_brute_force_and_is_inside_every_budget(problem: Problem) -> None:
    best = smallest(problem.space, problem.score, problem.budgets)
    found = solved(problem)
    assert (found is None) == (best is None)
    if found is None or best is None:
        return
    # Scores of 1e8 stand beside scores below 1: what matters is the last digit that their sum has.
    assert found.objective == pytest.approx(best, rel=TOLERANCE, abs=TOLERANCE)
    assert found.objective == problem.score.total(found.bits)
    assert (found.status, found.gap, found.bound) == ("optimal", 0.0, found.objective)
    assert problem.fits(found.bits)
    assert found.bits in list(assignments(problem.space))
    for use, budget in zip(found.budgets, problem.budgets, strict=True):
        assert (use.name, use.limit, use.unit) == (budget.name, budget.limit, budget.unit)
        assert use.used == budget.table.total(found.bits) <= budget.limit * (1 + TOLERANCE)
        assert use.slack == max(budget.limit - use.used, 0.0)


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(1.0, 3.0))
def test_a_looser_budget_is_never_worse(problem: Problem, factor: float) -> None:
    tight = solved(problem)
    if tight is None:
        return
    loose = solve(Problem(problem.space, problem.score, tuple(Budget(b.name, b.limit * factor, b.table) for b in problem.budgets)))
    assert loose.objective <= tight.objective + TOLERANCE * max(1.0, abs(tight.objective))


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_layers_does_not_matter(problem: Problem, random: object) -> None:
    names = list(problem.space.candidates)
    random.shuffle(names)  # type: ignore[attr-defined]
    space = problem.space
    shuffled = SearchSpace({n: space.candidates[n] for n in names}, space.weight_ties, space.act_ties, max_widths=space.max_widths)
    first, second = solved(problem), solved(Problem(shuffled, problem.score, problem.budgets))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert second.objective == pytest.approx(first.objective, rel=TOLERANCE, abs=TOLERANCE)
        assert list(second.bits) == names


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(1e-6, 1e6))
def test_scaled_scores_give_the_scaled_optimum(problem: Problem, factor: float) -> None:
    scaled = Table({n: {b: v * factor for b, v in row.items()} for n, row in problem.score.values.items()}, "importance")
    first, second = solved(problem), solved(Problem(problem.space, scaled, problem.budgets))
    if first is not None and second is not None:
        assert second.objective / factor == pytest.approx(first.objective, rel=TOLERANCE, abs=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(-20, 20))
def test_scaled_costs_change_nothing(problem: Problem, power: int) -> None:
    def scaled(b: Budget) -> Budget:
        rows = {n: {bits: v * 2.0**power for bits, v in row.items()} for n, row in b.table.values.items()}
        return Budget(b.name, b.limit * 2.0**power, Table(rows, b.unit))

    first, second = solved(problem), solved(Problem(problem.space, problem.score, tuple(map(scaled, problem.budgets))))
    assert (None if first is None else first.bits) == (None if second is None else second.bits)


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_a_further_candidate_is_never_worse(problem: Problem, random: object) -> None:
    def fewer(c: Candidates) -> Candidates:
        return Candidates(c.weight, c.act, frozenset(random.sample(c.pairs, max(1, len(c.pairs) - 1))))  # type: ignore[attr-defined]

    space = problem.space
    try:
        small = SearchSpace(
            {n: fewer(c) for n, c in space.candidates.items()}, space.weight_ties, space.act_ties, max_widths=space.max_widths
        )
    except SpaceError:
        return
    less, more = solved(Problem(small, problem.score, problem.budgets)), solved(problem)
    if less is not None:
        assert more is not None
        assert more.objective <= less.objective + TOLERANCE * max(1.0, abs(less.objective))


HUMAN = r"(?: \([^)]*\))?"
NUMBER = r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)"


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0.7, 1.2))
def test_infeasible_budgets_say_the_smallest_reachable_values(problem: Problem, factor: float) -> None:
    if smallest(problem.space, problem.score, ()) is None:
        return
    tight = tuple(Budget(b.name, factor * (smallest(problem.space, b.table, ()) or 1.0), b.table) for b in problem.budgets)
    problem = Problem(problem.space, problem.score, tight)
    if smallest(problem.space, problem.score, problem.budgets) is not None:
        return
    with pytest.raises(InfeasibleError) as caught:
        solve(problem)
    for k, budget in enumerate(problem.budgets):
        alone = smallest(problem.space, budget.table, ())
        held = smallest(problem.space, budget.table, problem.budgets[:k] + problem.budgets[k + 1 :])
        head = rf"{budget.name}: limit {NUMBER} {budget.unit}{HUMAN}, smallest reachable {NUMBER}{HUMAN}"
        pattern = rf"{head}(?: alone and {NUMBER}{HUMAN} with the other)?"
        match = re.search(pattern, str(caught.value))
        assert match is not None
        assert float(match[1]) == budget.limit
        assert float(match[2]) == pytest.approx(alone, rel=TOLERANCE)
        assert float(match[3] or match[2]) == pytest.approx(alone if held is None else held, rel=TOLERANCE)


def line(values: dict[str, tuple[float, ...]], unit: str) -> Table:
    """A table over 8, 4, 2 weight bits (as many as given) at 8 activation bits."""
    return Table({name: dict(zip((Bits(8, 8), Bits(4, 8), Bits(2, 8)), row, strict=False)) for name, row in values.items()}, unit)


PAIR = SearchSpace({"a": Candidates((8, 4), (8,)), "b": Candidates((8, 4), (8,))})


def test_no_budget_takes_the_best_of_every_layer() -> None:
    found = solve(Problem(PAIR, line({"a": (1, 2), "b": (5, 3)}, "importance"), ()))
    assert found.bits == {"a": Bits(8, 8), "b": Bits(4, 8)}
    assert found.objective == 4


def test_a_choice_at_exactly_the_limit_is_taken() -> None:
    # 0.1 + 0.2 is a little more than 0.3 in floating point; a person means the same number.
    budget = Budget("latency", 0.3, line({"a": (0.2, 0.1), "b": (0.1, 0.05)}, "latency"))
    found = solve(Problem(PAIR, line({"a": (0, 1), "b": (0, 1)}, "importance"), (budget,)))
    assert found.objective == 0
    assert found.budgets[0].slack == 0.0


@pytest.mark.parametrize("excess", [1e-6, 3e-8, 1e-9, 3e-10, 1e-11])
def test_a_policy_above_the_limit_by_less_than_the_solvers_tolerance_is_not_returned(excess: float) -> None:
    budget = Budget("cost", 1.0, line({"a": (0.5 + excess, 0.1), "b": (0.5 + excess, 0.1)}, "cost"))
    found = solve(Problem(PAIR, line({"a": (0, 1), "b": (0, 2)}, "importance"), (budget,)))
    assert found.bits == {"a": Bits(4, 8), "b": Bits(8, 8)}
    assert found.status == "optimal"


def test_a_layer_of_next_to_no_cost_is_still_counted() -> None:
    costs = line({"big": (1e12, 5e11), "small": (2.0, 1.0)}, "bitops")
    space = SearchSpace(dict.fromkeys(("big", "small"), Candidates((8, 4), (8,))))
    found = solve(Problem(space, line({"big": (0, 9), "small": (0, 1)}, "importance"), (Budget("bitops", 1e12 + 1, costs),)))
    assert found.bits == {"big": Bits(8, 8), "small": Bits(4, 8)}


def test_erased_scores_do_not_blur_the_others() -> None:
    names = [f"l{i}" for i in range(12)]
    space = SearchSpace(dict.fromkeys(names, Candidates((8, 4, 2), (8,))))
    score = line({name: (1e-9 * i, 1e8 if i % 2 else 2e-9 * i, 3e-9 * (i + 1)) for i, name in enumerate(names)}, "importance")
    cost = line(dict.fromkeys(names, (8.0, 4.0, 2.0)), "cost")
    problem = Problem(space, score, (Budget("cost", 60.0, cost),))
    # Dynamic programming over the integer costs, an independent exact answer.
    least = {0: 0.0}
    for name in names:
        step: dict[int, float] = {}
        for spent, value in least.items():
            for bits, price in cost.values[name].items():
                total = value + score.values[name][bits]
                step[spent + int(price)] = min(step.get(spent + int(price), math.inf), total)
        least = step
    assert solve(problem).objective == pytest.approx(min(v for s, v in least.items() if s <= 60), rel=1e-9)


def test_many_erased_scores_do_not_blur_the_others() -> None:
    choices = Candidates((8, 4), (8, 4))
    space = SearchSpace({"a": choices, "b": choices}, (("a", "b"),), (("a", "b"),))
    rows = {"a": (0.0, 1e8, 0.0, 0.0), "b": (1e8, 0.0, 1.0, 1e8)}
    score = Table({name: dict(zip(choices.pairs, row, strict=True)) for name, row in rows.items()}, "importance")
    found = solve(Problem(space, score, ()))
    assert (found.bits["a"], found.objective, found.status, found.bound) == (Bits(4, 8), 1.0, "optimal", 1.0)


def test_scores_next_to_nothing_beside_large_ones() -> None:
    found = solve(Problem(PAIR, line({"a": (0.0, 1e-309), "b": (-1.0, 5.0)}, "importance"), ()))
    assert (found.objective, found.bound, found.status) == (-1.0, -1.0, "optimal")


def test_ties_hold_only_the_side_they_name() -> None:
    choices = Candidates((8, 4), (8, 4))
    space = SearchSpace({"a": choices, "b": choices}, weight_ties=(("a", "b"),))
    score = Table({"a": {p: p.weight + p.act for p in choices.pairs}, "b": {p: -3 * p.weight - p.act for p in choices.pairs}}, "importance")
    assert solve(Problem(space, score, ())).bits == {"a": Bits(8, 4), "b": Bits(8, 8)}


def test_a_tie_closes_the_widths_that_one_layer_lacks() -> None:
    space = SearchSpace({"a": Candidates((8, 4), (8,)), "b": Candidates((4, 2), (8,))}, weight_ties=(("a", "b", "a"),))
    score = Table({"a": {Bits(8, 8): 0, Bits(4, 8): 9}, "b": {Bits(4, 8): 9, Bits(2, 8): 0}}, "importance")
    assert set(solve(Problem(space, score, ())).bits.values()) == {Bits(4, 8)}


def test_ties_without_a_common_choice_are_told_from_tight_budgets() -> None:
    choices = {"a": Candidates((8, 4), (8,)), "b": Candidates((4, 2), (8,)), "c": Candidates((8, 2), (8,))}
    space = SearchSpace(choices, weight_ties=(("a", "b"), ("b", "c"), ("a", "c")))
    table = Table({name: dict.fromkeys(c.pairs, 1.0) for name, c in choices.items()}, "cost")
    with pytest.raises(InfeasibleError, match="ties"):
        solve(Problem(space, table, (Budget("cost", 10.0, table),)))


def wide_problem() -> Problem:
    """Too large for brute force: 40 layers, 3 choices, a knapsack."""
    names = [f"l{i}" for i in range(40)]
    space = SearchSpace(dict.fromkeys(names, Candidates((8, 4, 2), (8,))))
    score = line({n: (0.0, 1 + 0.37 * (i * 7 % 11), 3 + 0.91 * (i * 5 % 13)) for i, n in enumerate(names)}, "importance")
    cost = line({n: (8.0 * (1 + i % 17), 4.0 * (1 + i % 17), 2.0 * (1 + i % 17)) for i, n in enumerate(names)}, "cost")
    return Problem(space, score, (Budget("cost", 0.4 * sum(cost.values[n][Bits(8, 8)] for n in names), cost),))


def test_the_same_answer_every_time() -> None:
    assert solve(wide_problem()).bits == solve(wide_problem()).bits


def test_a_gap_is_kept_and_said() -> None:
    best = solve(wide_problem()).objective
    found = solve(wide_problem(), gap=0.2)
    assert best <= found.objective <= best * 1.25 + TOLERANCE
    assert found.bound <= best + TOLERANCE
    assert found.gap <= 0.2 + TOLERANCE
    assert (found.status == "optimal") == (found.gap == 0)


def test_a_time_limit_that_is_over_at_once() -> None:
    with pytest.raises(BitallocError, match="time limit passed"):
        solve(wide_problem(), time_limit=1e-9)


def test_a_time_limit_that_is_not_reached_changes_nothing() -> None:
    free, limited = solve(wide_problem()), solve(wide_problem(), time_limit=1e6)
    assert (limited.bits, limited.status, limited.bound) == (free.bits, "optimal", free.bound)


@pytest.mark.parametrize("options", [{"gap": -0.1}, {"gap": math.nan}, {"time_limit": 0.0}, {"time_limit": -1.0}, {"time_limit": math.nan}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(BitallocError, match=next(iter(options))):
        solve(wide_problem(), **options)


def test_a_table_that_does_not_cover_the_space() -> None:
    full = line({"a": (1, 2), "b": (5, 3)}, "cost")
    holed = line({"a": (1, 2), "b": (5,)}, "cost")
    with pytest.raises(SpaceError, match="layer b at w4a8"):
        Problem(PAIR, holed, ())
    with pytest.raises(SpaceError, match="layer b at w4a8"):
        Problem(PAIR, full, (Budget("cost", 5.0, holed),))


@settings(max_examples=20, deadline=None)
@given(problems())
def test_a_solution_is_json(problem: Problem) -> None:
    found = solved(problem)
    if found is not None:
        assert all(math.isfinite(x) for x in (found.objective, found.bound, found.gap, found.seconds))
        json.dumps([str(bits) for bits in found.bits.values()])
