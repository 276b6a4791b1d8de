"""Search by variation and selection, for objectives that are not a sum over layers."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, final

from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search.links import Links
from bitalloc.search.problem import Problem
from bitalloc.search.repair import drawn, repaired
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.search.starts import starts

Objective = Callable[[Mapping[str, Bits]], float]

_STALE: Final = 5
"""The search ends after that many children for every place in the population, none of them new: the space is used up."""


@final
@dataclass(frozen=True, slots=True)
class Evolved:
    """What the search found.

    Attributes:
        solution: the best policy, judged by the problem's own score; its bound is that of no budget at all.
        objective: the value of the searched objective at the best policy, lower is better.
        evaluations: how many different policies were evaluated.
        history: the best objective after every evaluation.
    """

    solution: Solution
    objective: float
    evaluations: int
    history: tuple[float, ...]


def evolution(
    problem: Problem,
    objective: Objective | None = None,
    *,
    evaluations: int = 500,
    population: int = 50,
    tournament: int = 10,
    mutations: float = 2.0,
    seed: int = 0,
    start: Sequence[Mapping[str, Bits]] = (),
) -> Evolved:
    """Aging evolution (Real et al., "Regularized Evolution for Image Classifier Architecture Search", AAAI 2019) with crossover.

    The first population is drawn by chance. Then, one child at a time: the best of ``tournament`` members drawn from the population
    and the best of another such sample are the parents; every set of tied layers comes from either parent with equal chance; every
    free layer gets another pair with probability ``mutations`` / number of free layers, tied layers following; a child outside the
    budgets becomes the nearest policy inside (:func:`~bitalloc.search.repair.repaired`); the oldest member leaves. Unlike in the
    paper, where a child is a mutated copy of one parent, the two parents allow good parts to meet, as in genetic searches over
    widths. A policy is evaluated once, however often it is born.

    Args:
        problem: space, score and budgets.
        objective: what to minimise, for example the error of the quantized model on a validation set, for a choice for every layer;
            by default the problem's score.
        evaluations: how many different policies may be evaluated.
        population: members; 50 instead of the paper's 100, for evaluations that take seconds.
        tournament: members that compete to become a parent; a fifth of the population, where the paper has a quarter.
        mutations: how many layers change in a child on average.
        seed: of every choice by chance; the same seed and objective give the same result.
        start: policies for the first population, such as those of :func:`solve` and :func:`uniform`; repaired if they do not fit.

    Raises:
        InfeasibleError: no policy meets the budgets.
        BitallocError: a setting is out of range, or the objective of a policy is not a number; the message has the policy.
    """
    _check(evaluations, population, tournament, mutations)
    begun = time.perf_counter()
    search = _Search(problem, objective or problem.score.total, mutations, Random(seed))
    members: deque[tuple[float, Mapping[str, Bits]]] = deque(maxlen=population)  # the oldest leaves by itself
    for bits in start:
        if len(search.history) < evaluations:
            members.append(search.member(bits))
    while len(members) < population and len(search.history) < evaluations:
        members.append(search.member(search.draw()))
    stale = 0
    while len(search.history) < evaluations and stale < _STALE * population:
        before = len(search.history)
        mother, father = (min(search.random.sample(list(members), min(tournament, len(members))), key=_value) for _ in range(2))
        members.append(search.member(search.child(mother[1], father[1])))
        stale = 0 if len(search.history) > before else stale + 1
    value, best = search.best
    solution = judged(problem, best, loose_bound(problem), time.perf_counter() - begun)
    return Evolved(solution, value, len(search.history), tuple(search.history))


@final
class _Search:
    """Draws, crosses, repairs and evaluates policies; remembers the values and the best policy."""

    def __init__(self, problem: Problem, objective: Objective, mutations: float, random: Random) -> None:
        self.random = random
        self.best: tuple[float, Mapping[str, Bits]] = (math.inf, {})
        self.history: list[float] = []
        self._problem, self._objective = problem, objective
        self._links = Links(problem.space)
        self._starts = [(Links(space), bits) for space, bits in starts(problem.space)]
        self._chance = mutations / max(len(problem.space.free), 1)
        self._repaired: dict[tuple[Bits, ...], tuple[Bits, ...]] = {}
        self._known: dict[tuple[Bits, ...], float] = {}

    def draw(self) -> Mapping[str, Bits]:
        return drawn(*self.random.choice(self._starts), self.random)

    def child(self, mother: Mapping[str, Bits], father: Mapping[str, Bits]) -> Mapping[str, Bits]:
        bits = dict(mother)
        for together in self._links.components:
            if self.random.random() < 0.5:
                bits.update({name: father[name] for name in together})
        for name in self._problem.space.free:
            if self.random.random() < self._chance:
                pair = self.random.choice([p for p in self._links.pairs[name] if p != bits[name]])
                bits.update(self._links.changes(bits, name, pair) or {})
        return bits

    def member(self, wanted: Mapping[str, Bits]) -> tuple[float, Mapping[str, Bits]]:
        missing = [name for name in self._links.pairs if name not in wanted]
        if missing:
            raise BitallocError(f"a policy to start with has no widths for {', '.join(missing)}: expected a pair for every layer.")
        born = tuple(wanted[name] for name in self._links.pairs)
        if born not in self._repaired:
            self._repaired[born] = tuple(repaired(self._problem, wanted)[name] for name in self._links.pairs)
        key = self._repaired[born]
        bits = dict(zip(self._links.pairs, key, strict=True))
        if key not in self._known:
            value = float(self._objective(bits))
            if math.isnan(value):
                policy = ", ".join(f"{name} {pair}" for name, pair in bits.items())
                raise BitallocError(f"the objective of a policy is not a number, expected a float, lower is better. The policy: {policy}.")
            self._known[key] = value
            if not self.history or value < self.best[0]:
                self.best = (value, bits)
            self.history.append(self.best[0])
        return self._known[key], bits


def _value(member: tuple[float, Mapping[str, Bits]]) -> float:
    return member[0]


def _check(evaluations: int, population: int, tournament: int, mutations: float) -> None:
    for name, value, least in (("evaluations", evaluations, 1), ("population", population, 2), ("tournament", tournament, 1)):
        if value < least:
            raise BitallocError(f"{name} is {value}, expected at least {least}.")
    if tournament > population:
        raise BitallocError(f"tournament is {tournament}, expected at most the population of {population}.")
    if not 0 < mutations < math.inf:
        raise BitallocError(f"mutations is {mutations}, expected a positive mean number of layers.")
