"""The surface of two budgets against brute force."""

import csv
import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, BudgetError, FileError
from bitalloc.policy import Bits
from bitalloc.search import Problem
from bitalloc.search.frontier import frontier
from bitalloc.search.surface import Surface, surface
from bitalloc.space import Candidates, SearchSpace, Table

FREE = Candidates((4, 2), (8, 4))
SPACE = SearchSpace({"a": FREE, "b": FREE})


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Two layers and three budgets, the last of which may bind."""
    ties = (("a", "b"),) if draw(st.booleans()) else ()

    def table(unit: str) -> Table:
        return Table({name: {bits: float(draw(st.integers(1, 9))) for bits in FREE.pairs} for name in ("a", "b")}, unit)

    budgets = (Budget("bitops", 1.0, table("bitops")), Budget("bytes", 1.0, table("bytes")), Budget("third", 14.0, table("third")))
    problem = Problem(SearchSpace(SPACE.candidates, weight_ties=ties), table("importance"), budgets)
    return problem if totals(problem) else Problem(problem.space, problem.score, budgets[:2])


def totals(problem: Problem) -> list[tuple[float, float, float]]:
    """Bitops, bytes and score of every policy inside the third budget."""
    found = []
    for choice in itertools.product(FREE.pairs, FREE.pairs):
        bits = dict(zip("ab", choice, strict=True))
        tied = not problem.space.weight_ties or choice[0].weight == choice[1].weight
        first, second, *third = (budget.table.total(bits) for budget in problem.budgets)
        if tied and (not third or third[0] <= 14):
            found.append((first, second, problem.score.total(bits)))
    return found


@settings(max_examples=30, deadline=None)
@given(problems())
def test_every_cell_is_the_best_inside_both_limits(problem: Problem) -> None:
    found = surface(problem, "bitops", "bytes", points=(4, 3))
    every = totals(problem)
    assert found.first_limits[0] == min(first for first, _, _ in every)
    assert found.second_limits[0] == min(second for _, second, _ in every)
    for limit, row in zip(found.first_limits, found.cells, strict=True):
        for other, point in zip(found.second_limits, row, strict=True):
            inside = [score for first, second, score in every if first <= limit * (1 + 1e-15) and second <= other * (1 + 1e-15)]
            assert (point is None) == (not inside)
            if point is not None:
                assert (point.objective, point.gap) == (min(inside), 0)
                assert point.limit == other
                first_use, second_use = point.budgets[:2]
                assert (first_use.limit, second_use.limit, second_use.used) == (limit, other, point.cost)
                assert all(use.used <= use.limit * (1 + 1e-15) for use in point.budgets)
    corner = found.cells[-1][-1]
    assert corner is not None
    assert corner.objective == min(score for _, _, score in every)


SCORES = {Bits(4, 4): 0.0, Bits(4, 8): 1.0, Bits(2, 8): 2.0, Bits(2, 4): 3.0}
SCORE = Table(dict.fromkeys("ab", SCORES), "importance")
BITOPS = Table({name: {bits: float(bits.weight * bits.act) for bits in FREE.pairs} for name in "ab"}, "bitops")
# Fewer bytes take more BitOps: at the smallest of either the other is at its largest.
BYTES = Table({name: {bits: 40.0 - bits.weight * bits.act for bits in FREE.pairs} for name in "ab"}, "bytes")
PROBLEM = Problem(SPACE, SCORE, (Budget("bitops", 1.0, BITOPS), Budget("bytes", 1.0, BYTES)))


def test_cells_that_cannot_be_reached_are_empty_in_both_files(tmp_path: Path) -> None:
    found = surface(PROBLEM, "bitops", "bytes", points=(3, 2))
    assert found.cells[0][0] is None
    corner = found.cells[-1][-1]
    assert corner is not None
    assert corner.objective == 0
    found.save(tmp_path / "surface.json")
    assert Surface.load(tmp_path / "surface.json") == found
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == len(found.first_limits) * len(found.second_limits)
    assert (rows[0]["limit:bitops"], rows[0]["objective"], rows[0]["bits:a"]) == ("16.0", "", "")
    assert Bits.parse(rows[-1]["bits:a"]) == corner.bits["a"]


def test_a_row_is_a_frontier() -> None:
    found = surface(PROBLEM, "bitops", "bytes", points=(3, 4))
    for limit, row in zip(found.first_limits, found.cells, strict=True):
        held = Problem(SPACE, SCORE, (Budget("bitops", limit, BITOPS), PROBLEM.budgets[1]))
        points = {point.objective for point in frontier(held, "bytes").points}
        assert {point.objective for point in row if point is not None} <= points


def test_a_file_whose_cells_do_not_fit_is_refused() -> None:
    value = surface(PROBLEM, "bitops", "bytes", points=(2, 2)).to_json()
    with pytest.raises(FileError, match="the cells do not fit the 2 x 2 limits"):
        Surface.from_json({**value, "cells": value["cells"][:1]})


def test_bad_input_is_named() -> None:
    with pytest.raises(BudgetError, match="'energy' is no budget of this problem: expected one of bitops, bytes"):
        surface(PROBLEM, "bitops", "energy")
    with pytest.raises(BudgetError, match="'bitops' is both"):
        surface(PROBLEM, "bitops", "bitops")
    with pytest.raises(BitallocError, match="points is 5 x 1"):
        surface(PROBLEM, "bitops", "bytes", points=(5, 1))
