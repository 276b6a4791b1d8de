"""The reference solver, and the exact solver held against it where trying everything takes too long."""

import random
from typing import NoReturn

import highspy
import pytest

from bitalloc.budget import Budget
from bitalloc.policy import Bits
from bitalloc.search import Problem, prepare, solve, solve_with_highs
from bitalloc.search.model import Found, Model
from bitalloc.space import Candidates, SearchSpace, Table


def drawn(seed: int, layers: int = 12, budgets: int = 2, ties: bool = False, max_widths: int | None = None) -> Problem:
    """Layers of different sizes; scores fall with the bits, with noise; budgets in the middle of what can be reached."""
    draw = random.Random(seed)
    names = [f"l{i}" for i in range(layers)]
    tied = (tuple(names[:3]), tuple(names[5:7])) if ties else ()
    space = SearchSpace(dict.fromkeys(names, Candidates((8, 4, 3, 2), (8, 4, 2))), tied[:1], tied, max_widths=max_widths)
    pairs = space.candidates["l0"].pairs
    score = {n: {p: draw.uniform(0.5, 2) * (2.0**-p.weight + 2.0**-p.act) for p in pairs} for n in names}
    made = []
    for k in range(budgets):
        size = {n: draw.randint(1, 50) for n in names}
        table = Table({n: {p: float(size[n] * (p.weight * p.act if k % 2 == 0 else p.weight)) for p in pairs} for n in names}, f"unit{k}")
        made.append(Budget(f"budget{k}", 0.4 * sum(table.values[n][Bits(8, 8)] for n in names), table))
    return Problem(space, Table(score, "importance"), tuple(made))


@pytest.mark.parametrize(
    "problem",
    [
        *(drawn(seed, budgets=1 + seed % 3) for seed in range(6)),
        drawn(7, ties=True),
        drawn(8, ties=True, max_widths=2),
        drawn(9, max_widths=1),
    ],
)
def test_the_exact_solver_finds_what_highs_finds(problem: Problem) -> None:
    ours, reference = solve(problem), solve_with_highs(problem)
    assert ours.objective == pytest.approx(reference.objective, rel=1e-9)
    assert ours.status == reference.status == "optimal"
    assert problem.fits(ours.bits)
    assert [use.price for use in reference.budgets] == [None] * len(problem.budgets)


@pytest.mark.parametrize("limit", ["_STATES", "_COMBINED", "_BUDGETS"])
def test_what_is_too_much_for_the_exact_search_is_left_to_highs(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    problem = drawn(3, ties=True)
    expected = solve(problem)
    monkeypatch.setattr(f"bitalloc.search.exact.{limit}", 0)
    found = solve(problem)
    assert (found.bits, found.status) == (expected.bits, "optimal")
    assert [use.price for use in found.budgets] == [use.price for use in expected.budgets]


def test_ties_of_too_many_modes_are_left_to_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = drawn(4, ties=True)
    expected = solve(problem)
    monkeypatch.setattr("bitalloc.search.ties.MODES", 2)
    assert prepare(problem).instance.layout is None
    found = solve(problem)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
    # The prices of the linear relaxation, which is no tighter than that over the blocks' choices.
    assert all(use.price is not None and use.price >= 0 for use in found.budgets)
    assert sum(use.price or 0.0 for use in found.budgets) > 0


def test_the_linear_prices_without_ties_are_those_of_the_exact_solver() -> None:
    problem = drawn(4)
    model = Model(problem.space)
    for budget in problem.budgets:
        model.limit(budget)
    model.add(problem.score.values)
    assert list(model.prices()) == pytest.approx([use.price for use in solve(problem).budgets], rel=1e-6)


def test_the_best_so_far_is_returned_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = drawn(1, layers=2, budgets=0)
    bits = dict.fromkeys(("l0", "l1"), Bits(2, 2))
    score = problem.score.total(bits)
    monkeypatch.setattr(Model, "minimise", lambda *_: Found(bits, bound=score / 4, infeasible=False, complete=False))
    found = solve_with_highs(problem, time_limit=1.0)
    assert (found.bits, found.status, found.objective, found.bound, found.gap) == (bits, "feasible", score, score / 4, 0.75)


def test_ctrl_c_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(highspy.Highs, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        solve_with_highs(drawn(1))
