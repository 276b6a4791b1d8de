"""A score with terms between two layers, as sums over layers that bound it or come close to it."""

import math
from collections.abc import Mapping
from typing import final

from bitalloc.errors import SpaceError
from bitalloc.policy import Bits
from bitalloc.search.pairwise_score import PairwiseScore, Terms
from bitalloc.search.problem import Problem
from bitalloc.search.tables import mapped
from bitalloc.space import Table


@final
class Quadratic:
    """The score of a problem plus pairwise terms.

    Attributes:
        problem: space, budgets, and what the layers add alone.
        halves: a table whose total is at most the whole objective, for every policy: each layer's score and its shares of its terms.
        rest: what the terms have above these shares, never negative: the objective is the total of ``halves`` plus these.

    Raises:
        SpaceError: the terms do not fit the space or the unit of the score.
    """

    def __init__(self, problem: Problem, pairwise: PairwiseScore) -> None:
        pairwise.check(problem.space)
        if pairwise.unit != problem.score.unit:
            raise SpaceError(f"the pairwise terms are in {pairwise.unit} and the score in {problem.score.unit}: expected one unit.")
        self.problem, self._pairwise = problem, pairwise
        self._partners: dict[str, list[tuple[str, Terms]]] = {name: [] for name in problem.space.candidates}
        self.rest: dict[tuple[str, str], dict[tuple[Bits, Bits], float]] = {}
        shares = {(name, pair): [problem.score.values[name][pair]] for name, c in problem.space.candidates.items() for pair in c.pairs}
        for (first, second), terms in pairwise.values.items():
            self._partners[first].append((second, terms))
            self._partners[second].append((first, {(q, p): value for (p, q), value in terms.items()}))
            rows, columns = (problem.space.candidates[name].pairs for name in (first, second))
            of_first, of_second = _shared(terms, rows, columns)
            for name, share in ((first, of_first), (second, of_second)):
                for pair, value in share.items():
                    shares[name, pair].append(value)
            self.rest[first, second] = {(p, q): max(terms[p, q] - of_first[p] - of_second[q], 0.0) for p in rows for q in columns}
        self.halves = mapped(problem.space, problem.score.unit, lambda name, pair: math.fsum(shares[name, pair]))

    def total(self, bits: Mapping[str, Bits]) -> float:
        """The objective at the given widths."""
        return math.fsum((self.problem.score.total(bits), self._pairwise.total(bits)))

    def linear(self, bits: Mapping[str, Bits]) -> Table:
        """The score of every choice while all other layers are as in ``bits``: what a change of one layer does, exactly."""
        return mapped(
            self.problem.space,
            self.problem.score.unit,
            lambda name, pair: math.fsum(
                (self.problem.score.values[name][pair], *(terms[pair, bits[other]] for other, terms in self._partners[name]))
            ),
        )


def _shared(terms: Terms, rows: tuple[Bits, ...], columns: tuple[Bits, ...]) -> tuple[dict[Bits, float], dict[Bits, float]]:
    """Shares u and v of the two layers with u[p] + v[q] <= terms[p, q], which cannot be raised one by one.

    First half of the smallest term of every row and column; then what that leaves, to the columns and after that to the rows.
    """
    first = {p: min(terms[p, q] for q in columns) / 2 for p in rows}
    second = {q: min(terms[p, q] for p in rows) / 2 for q in columns}
    for q in columns:
        second[q] += min(terms[p, q] - first[p] - second[q] for p in rows)
    for p in rows:
        first[p] += min(terms[p, q] - first[p] - second[q] for q in columns)
    return first, second
