"""From the log-probabilities of a search to a policy."""

import itertools
import math
from typing import Any

import pytest

from bitalloc import Bits, LayerInfo, search_space
from bitalloc.errors import InfeasibleError, SpaceError
from bitalloc.layers import Description
from bitalloc.pipeline.supernet_allocate import allocate_probabilities, reversed_probabilities, reversed_search
from bitalloc.supernet import LogProbabilities

NAMES = ("first", "a", "b", "c", "last")
LAYERS = tuple(LayerInfo(name, "conv2d", (4, 8), 1000 * k, 8, 4) for k, name in enumerate(NAMES, 1))
DESCRIPTION = Description(LAYERS, (), {}, ("first",), ("last",))
PINS = {"first": "w8a8", "last": "w8a8"}
MACS = {layer.name: layer.macs for layer in LAYERS}


def _space() -> Any:
    return search_space(LAYERS, (6, 4, 2), pins=PINS)


def _found(**rows: tuple[float, float, float]) -> LogProbabilities:
    """Probabilities of 6, 4 and 2 bits, the same for both sides; 0.2, 0.3, 0.5 by default."""
    halves = {n: {w: math.log(p) for w, p in zip((6, 4, 2), rows.get(n, (0.2, 0.3, 0.5)), strict=True)} for n in ("a", "b", "c")}
    shapes = {layer.name: layer.weight_shape for layer in LAYERS}
    return LogProbabilities(halves, halves, shapes, ("last",), {"method": "gmpq", "seconds": 1.5})


def _bitops(bits: Any) -> float:
    return sum(MACS[name] * b.weight * b.act for name, b in bits.items())


def test_without_a_least_use_the_policy_is_the_most_probable_inside_the_budgets() -> None:
    found = _found(a=(0.6, 0.3, 0.1), b=(0.5, 0.3, 0.2))
    allocation = allocate_probabilities(found, DESCRIPTION, _space(), {"bitops": "w4a4"}, least_use=0)
    limit = allocation.uses[0].limit
    free = [Bits(*pair) for pair in itertools.product((6, 4, 2), repeat=2)]
    pins = {"first": Bits(8, 8), "last": Bits(8, 8)}
    policies = [pins | dict(zip(("a", "b", "c"), chosen, strict=True)) for chosen in itertools.product(free, repeat=3)]

    def probability(bits: Any) -> float:
        return sum(found.weight[n][bits[n].weight] + found.act[n][bits[n].act] for n in ("a", "b", "c"))

    best = max(probability(bits) for bits in policies if _bitops(bits) <= limit)
    assert probability(allocation.policy.bits) == pytest.approx(best)
    assert allocation.policy.provenance["log_probability"] == pytest.approx(best)
    assert allocation.policy.provenance["method"] == "gmpq"
    assert "seconds" not in allocation.policy.provenance["search"]


def test_a_least_use_takes_a_less_probable_policy_that_uses_the_budget() -> None:
    plain, filled = (allocate_probabilities(_found(), DESCRIPTION, _space(), {"bitops": "w4a4"}, least_use=share) for share in (0, 0.95))
    assert {str(plain.policy.bits[name]) for name in ("a", "b", "c")} == {"w2a2"}
    assert 0.95 <= filled.uses[0].used / filled.uses[0].limit <= 1
    assert filled.policy.provenance["log_probability"] < plain.policy.provenance["log_probability"]


def test_a_use_that_no_policy_has_gives_the_one_that_uses_most() -> None:
    widest = _bitops({name: Bits(8, 8) if name in PINS else Bits(6, 6) for name in NAMES})
    found = allocate_probabilities(_found(), DESCRIPTION, _space(), {"bitops": 2 * widest})
    assert found.uses[0].used <= widest


def test_reversed_gives_the_rows_of_the_layer_with_the_most_bits_to_the_one_with_the_fewest() -> None:
    found = _found(a=(0.8, 0.1, 0.1), b=(0.3, 0.4, 0.3), c=(0.1, 0.1, 0.8))
    score = found.scores(_space())
    turned = reversed_probabilities(found, _space())
    assert turned.values["a"] == score.values["c"]
    assert turned.values["c"] == score.values["a"]
    assert turned.values["b"] == score.values["b"]
    assert turned.values["first"] == score.values["first"]
    allocation = allocate_probabilities(found, DESCRIPTION, _space(), {"bitops": "w4a4"})
    policy = reversed_search(allocation, found, DESCRIPTION, 0.9)
    assert _bitops(policy.bits) <= allocation.uses[0].limit
    assert policy.bits["a"].weight * policy.bits["a"].act < policy.bits["c"].weight * policy.bits["c"].act


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(InfeasibleError):
        allocate_probabilities(_found(), DESCRIPTION, _space(), {"bitops": 100})
    with pytest.raises(SpaceError, match=r"no probability for a \(weight at 5 bits\)"):
        allocate_probabilities(_found(), DESCRIPTION, search_space(LAYERS, (5, 4), pins=PINS), {"bitops": "w4a4"})
