"""Scores with terms between two layers, against brute force."""

import itertools
import json
import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, FileError, InfeasibleError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search import PairwiseScore, Problem, solve, solve_pairwise
from bitalloc.space import Candidates, SearchSpace, Table

WIDTHS = Candidates((8, 4), (8,))
SPACE = SearchSpace(dict.fromkeys("ab", WIDTHS))
WIDE, NARROW = Bits(8, 8), Bits(4, 8)


def table(values: dict[str, tuple[float, float]], unit: str = "loss") -> Table:
    return Table({name: {WIDE: wide, NARROW: narrow} for name, (wide, narrow) in values.items()}, unit)


COST = table({"a": (2, 1), "b": (2, 1)}, "cost")
PROBLEM = Problem(SPACE, table({"a": (0, 1), "b": (0, 2)}), (Budget("cost", 3.0, COST),))


def terms(*values: float) -> dict[tuple[Bits, Bits], float]:
    return dict(zip(itertools.product((WIDE, NARROW), repeat=2), values, strict=True))


def test_a_cross_term_turns_the_choice() -> None:
    assert solve(PROBLEM).bits == {"a": NARROW, "b": WIDE}
    # a narrow beside b wide costs 3 more; both narrow is 1 + 2 - 2.5.
    found = solve_pairwise(PROBLEM, PairwiseScore({("a", "b"): terms(0, 0, 3, -2.5)}, "loss"))
    assert found.bits == {"a": NARROW, "b": NARROW}
    assert (found.objective, found.status, found.bound, found.gap) == (0.5, "optimal", 0.5, 0.0)
    assert found.budgets[0].used == 2


def test_without_terms_it_is_the_usual_search() -> None:
    assert solve_pairwise(PROBLEM, PairwiseScore({}, "loss")).bits == solve(PROBLEM).bits


@given(st.randoms(use_true_random=False))
def test_equals_brute_force(random: Random) -> None:
    kinds = (Candidates((8, 4, 2), (8, 4)), Candidates((8, 4, 2), (8,)), Candidates.pinned(Bits(8, 8)))
    candidates = {f"l{i}": random.choice(kinds) for i in range(random.randint(1, 4))}
    tied = len(candidates) > 1 and 2 in candidates["l0"].weight and 2 in candidates["l1"].weight and random.random() < 0.5
    space = SearchSpace(candidates, (("l0", "l1"),) if tied else ())
    policies = [dict(zip(candidates, choice, strict=True)) for choice in itertools.product(*(c.pairs for c in candidates.values()))]
    policies = [bits for bits in policies if not tied or bits["l0"].weight == bits["l1"].weight]
    score, cost = (
        Table({n: {p: random.uniform(least, 10) for p in c.pairs} for n, c in candidates.items()}, unit)
        for least, unit in ((-5, "loss"), (0.1, "cost"))
    )
    cross = {
        (first, second): {
            (p, q): random.choice((0.0, random.uniform(-8, 8))) for p in candidates[first].pairs for q in candidates[second].pairs
        }
        for first, second in itertools.combinations(candidates, 2)
        if random.random() < 0.8
    }
    pairwise = PairwiseScore(cross, "loss")
    limit = cost.total(random.choice(policies)) * 1.1

    def total(bits: dict[str, Bits]) -> float:
        return score.total(bits) + sum(cross[a, b][bits[a], bits[b]] for a, b in cross)

    best = min(total(bits) for bits in policies if cost.total(bits) <= limit)
    found = solve_pairwise(Problem(space, score, (Budget("cost", limit, cost),)), pairwise)
    assert found.objective == pytest.approx(best, rel=1e-7, abs=1e-7)
    assert found.objective == pytest.approx(total(dict(found.bits)))
    assert found.bits in policies
    assert found.budgets[0].used <= limit
    assert found.bound <= best + 1e-7


def network(layers: int, seed: int) -> tuple[Problem, PairwiseScore]:
    """Alike to what is measured on networks: terms a fifth of the scores, of either sign, that fade with the width."""
    random = Random(seed)
    space = SearchSpace({f"l{i}": Candidates((8, 4, 2), (8, 4)) for i in range(layers)})
    names = list(space.candidates)
    pain = {name: random.uniform(1, 10) for name in names}

    def loss(name: str, pair: Bits) -> float:
        return pain[name] * (2.0**-pair.weight + 2.0**-pair.act)

    score = Table({n: {p: loss(n, p) for p in c.pairs} for n, c in space.candidates.items()}, "loss")
    cost = Table({n: {p: float(p.weight * p.act) for p in c.pairs} for n, c in space.candidates.items()}, "bitops")
    cross = {}
    for a, b in itertools.combinations(names, 2):
        strength = random.uniform(-0.3, 0.3)
        cross[a, b] = {
            (p, q): strength * math.sqrt(loss(a, p) * loss(b, q)) for p in space.candidates[a].pairs for q in space.candidates[b].pairs
        }
    return Problem(space, score, (Budget("bitops", layers * 20.0, cost),)), PairwiseScore(cross, "loss")


def test_a_small_network_is_solved_to_the_optimum_and_beat_the_sum_alone() -> None:
    problem, pairwise = network(7, 1)
    found = solve_pairwise(problem, pairwise)
    assert found.status == "optimal"
    alone = solve(problem).bits
    assert found.objective <= problem.score.total(alone) + pairwise.total(alone)


def test_a_gap_and_a_time_limit_are_stated() -> None:
    problem, pairwise = network(12, 2)
    rough = solve_pairwise(problem, pairwise, time_limit=1e-9)
    assert rough.status == "feasible"
    assert rough.gap == pytest.approx((rough.objective - rough.bound) / abs(rough.objective))
    assert problem.fits(rough.bits)


def test_the_file_is_read_back(tmp_path: Path) -> None:
    pairwise = PairwiseScore({("a", "b"): terms(0, 0.5, 3, -2.5)}, "loss")
    pairwise.save(tmp_path / "terms.json")
    assert PairwiseScore.load(tmp_path / "terms.json") == pairwise
    value = json.loads((tmp_path / "terms.json").read_text())
    value["terms"].append(value["terms"][0])
    with pytest.raises(FileError, match="a and b stand there twice"):
        PairwiseScore.from_json(value)
    with pytest.raises(FileError, match="missing or malformed"):
        PairwiseScore.from_json({"unit": "loss"})


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        ({("a", "a"): terms(0, 0, 0, 0)}, "loss", "between a and itself"),
        ({("a", "b"): terms(0, 0, 0, 0), ("b", "a"): terms(0, 0, 0, 0)}, "loss", "a and b twice|b and a twice"),
        ({("a", "b"): terms(0, 0, math.nan, 0)}, "loss", "a at w4a8 with b at w8a8 is nan"),
        ({("a", "c"): terms(0, 0, 0, 0)}, "loss", "names the layer c"),
        ({("a", "b"): {(WIDE, WIDE): 0.0}}, "loss", "no value for a at w8a8 with b at w4a8"),
        ({("a", "b"): terms(0, 0, 0, 0)}, "accuracy", "in accuracy and the score in loss"),
    ],
)
def test_terms_that_do_not_fit_are_refused(values: dict[tuple[str, str], dict[tuple[Bits, Bits], float]], unit: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        solve_pairwise(PROBLEM, PairwiseScore(values, unit))


def test_settings_and_budgets_that_cannot_be() -> None:
    none = PairwiseScore({}, "loss")
    with pytest.raises(BitallocError, match="gap is -1"):
        solve_pairwise(PROBLEM, none, gap=-1)
    with pytest.raises(BitallocError, match="time_limit is 0"):
        solve_pairwise(PROBLEM, none, time_limit=0)
    with pytest.raises(InfeasibleError, match="smallest reachable 2"):
        solve_pairwise(Problem(SPACE, PROBLEM.score, (Budget("cost", 1.0, COST),)), none)
