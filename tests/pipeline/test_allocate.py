"""From indicators and budgets to a policy in one call."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bitalloc import Bits, Candidates, Indicators, LayerInfo, SearchSpace, Table, allocate, search_space
from bitalloc.errors import BudgetError, InfeasibleError, SpaceError
from bitalloc.layers import Description, Meeting, Site
from bitalloc.pipeline.allocate import reversed_policy

NAMES = ("first", "middle", "wide", "last")
LAYERS = tuple(LayerInfo(name, "conv2d", (4 * k, 8), 1000 * k, 8, 4 * k) for k, name in enumerate(NAMES, 1))
DESCRIPTION = Description(LAYERS, (), {}, ("first",), ("last",))
PINS = {"first": Bits(8, 8), "last": Bits(8, 8)}
MACS = {layer.name: layer.macs for layer in LAYERS}
WEIGHTS = {layer.name: layer.weight_numel for layer in LAYERS}
WEIGHT = {8: 0.01, 6: 0.1, 4: 0.2, 2: 0.9}
ACT = {8: 0.1, 6: 0.2, 4: 0.25, 2: 0.3}


def _indicators(**changed: dict[int, float]) -> Indicators:
    weight = {name: {bits: value * (index + 1) for bits, value in WEIGHT.items()} for index, name in enumerate(NAMES)}
    act = {name: {bits: value / (index + 1) for bits, value in ACT.items()} for index, name in enumerate(NAMES)}
    return Indicators(weight | {name: row for name, row in changed.items()}, act, {"method": "by hand"})


def _space(weight: tuple[int, ...] = (6, 4, 2), pins: dict[str, Bits] | None = PINS) -> SearchSpace:
    return search_space(LAYERS, weight, pins=pins)


def _bitops(bits: Any) -> float:
    return sum(MACS[name] * b.weight * b.act for name, b in bits.items())


def _score(indicators: Indicators, alpha: float, space: SearchSpace, bits: Any) -> float:
    return sum(indicators.act[name][bits[name].act] + alpha * indicators.weight[name][bits[name].weight] for name in space.free)


@pytest.mark.parametrize("alpha", [None, 0.5, 3.0])
def test_the_policy_is_the_best_inside_the_budgets(alpha: float | None) -> None:
    space, indicators = _space(), _indicators()
    found = allocate(indicators, DESCRIPTION, space, {"bitops": "w4a4", "weight_bytes": "300B"}, alpha=alpha)
    limit = _bitops({**dict.fromkeys(NAMES, Bits(4, 4)), **PINS})
    choices = [
        dict(zip(space.candidates, pairs, strict=True)) for pairs in itertools.product(*(c.pairs for c in space.candidates.values()))
    ]
    inside = [
        bits for bits in choices if _bitops(bits) <= limit and sum(-(-WEIGHTS[name] * b.weight // 8) for name, b in bits.items()) <= 300
    ]
    best = min(_score(indicators, found.alpha.value, space, bits) for bits in inside)
    assert _score(indicators, found.alpha.value, space, found.policy.bits) == pytest.approx(best)
    assert found.policy.bits in inside
    assert found.solution.status == "optimal"
    assert {use.name: use.limit for use in found.solution.budgets} == {"bitops": limit, "weight_bytes": 300}
    if alpha is not None:
        assert found.alpha.value == alpha


def test_the_automatic_alpha_balances_the_halves_of_the_free_layers() -> None:
    narrow = {"weight": sum((index + 1) * (0.9 - 0.01) for index in range(4)), "act": sum((0.3 - 0.1) / (index + 1) for index in range(4))}
    found = allocate(_indicators(), DESCRIPTION, _space(), {"bitops": "w4a4"})
    assert found.alpha.value == pytest.approx(narrow["act"] / narrow["weight"])
    assert found.policy.provenance["alpha"] == found.alpha.value


def test_the_projections() -> None:
    bent = _indicators(wide={6: 0.5, 4: 0.3, 2: 0.9})  # the point at 4 bits is below that at 6
    budgets = {"bitops": "w4a4"}
    smooth = allocate(bent, DESCRIPTION, _space(), budgets, projection="isotonic")
    assert {(c.layer, c.side, c.width): c.after for c in smooth.changes} == {("wide", "weight", 6): 0.4, ("wide", "weight", 4): 0.4}
    erased = allocate(bent, DESCRIPTION, _space(), budgets, projection="erase", alpha=1.0)
    assert [(c.layer, c.width, c.after) for c in erased.changes] == [("wide", 4, 1e8)]
    assert erased.policy.bits["wide"].weight != 4
    plain = allocate(bent, DESCRIPTION, _space(), budgets, projection="none", alpha=1.0)
    assert plain.changes == ()
    assert plain.policy.bits["wide"].weight == 4


def test_the_uniform_policy_keeps_the_ends_at_8_bits_where_the_search_may_lower_them() -> None:
    reference = _space((4, 3, 2))
    free = SearchSpace({**reference.candidates, "first": Candidates((8, 4, 2), (8, 4, 2)), "last": Candidates((8, 4, 2), (8, 4, 2))})
    indicators = Indicators(
        {name: {8: 0.1, 4: 0.2, 3: 0.5, 2: 0.6} for name in NAMES}, {name: {8: 0.1, 4: 0.2, 3: 0.5, 2: 0.6} for name in NAMES}
    )
    found = allocate(indicators, DESCRIPTION, free, {"bitops": "w2a2"}, uniform_space=reference)
    assert found.uniform.bits == {"first": Bits(8, 8), "middle": Bits(2, 2), "wide": Bits(2, 2), "last": Bits(8, 8)}
    limit = _bitops(found.uniform.bits)
    assert [use.limit for use in found.solution.budgets] == [limit]
    assert _bitops(found.policy.bits) <= limit
    # What the ends give away goes to the middle, which would have no choice otherwise.
    assert found.policy.bits["middle"] > Bits(2, 2)
    assert allocate(indicators, DESCRIPTION, reference, {"bitops": "w2a2"}).policy.bits == found.uniform.bits


@pytest.mark.parametrize(
    ("budgets", "asked", "given"),
    [
        ({"bitops": "w4a6"}, None, Bits(4, 6)),
        ({"bitops": "w4a6"}, Bits(4, 4), Bits(4, 4)),
        ({"bitops": 410_000}, None, Bits(4, 4)),  # 320 000 for the ends, 5 000 x 16 for the others
        ({"compression": 5}, None, Bits(4, 6)),  # of 320 weights, half at 8 bits: at most 256 bytes
        ({"bitops": "w5a5"}, None, Bits(4, 6)),  # no candidate: the largest that fits
    ],
)
def test_the_uniform_policy_is_the_one_asked_for_or_the_largest_that_fits(budgets: Any, asked: Bits | None, given: Bits) -> None:
    found = allocate(_indicators(), DESCRIPTION, _space(), budgets, uniform_bits=asked)
    assert found.uniform.bits == {**dict.fromkeys(NAMES, given), **PINS}


@pytest.mark.parametrize("asked", [Bits(6, 6), Bits(3, 3)])
def test_a_uniform_policy_that_cannot_be_had_is_an_error(asked: Bits) -> None:
    with pytest.raises(InfeasibleError, match=f"the uniform policy {asked} is not inside the budgets.*the largest that is: w4a4"):
        allocate(_indicators(), DESCRIPTION, _space(), {"bitops": "w4a4"}, uniform_bits=asked)


def test_the_reversed_policy_keeps_the_budgets_and_scores_worse() -> None:
    space, indicators = _space(), _indicators()
    found = allocate(indicators, DESCRIPTION, space, {"bitops": "w4a4"})
    turned = reversed_policy(found, DESCRIPTION)
    assert turned.provenance["method"] == "reversed"
    assert _bitops(turned.bits) <= found.solution.budgets[0].limit
    alpha = found.alpha.value
    assert _score(indicators, alpha, space, turned.bits) > _score(indicators, alpha, space, found.policy.bits)


def test_provenance_says_where_a_policy_comes_from() -> None:
    found = allocate(_indicators(), DESCRIPTION, _space(), {"bitops": "w4a4"}, provenance={"seed": 3})
    told = found.policy.provenance
    assert {key: told[key] for key in ("method", "seed", "requested", "projection", "indicators", "status")} == {
        "method": "by hand",
        "seed": 3,
        "requested": {"bitops": "w4a4"},
        "projection": "isotonic",
        "indicators": {"method": "by hand"},
        "status": "optimal",
    }
    assert told["budgets"][0]["used"] == _bitops(found.policy.bits)
    assert found.uniform.provenance["method"] == "uniform"
    assert "alpha" not in found.uniform.provenance


def test_the_smallest_reachable_value_is_said() -> None:
    smallest = _bitops({**dict.fromkeys(NAMES, Bits(2, 2)), **PINS})
    with pytest.raises(InfeasibleError, match=f"limit 1000 bitops .1 kBitOps., smallest reachable {smallest}"):
        allocate(_indicators(), DESCRIPTION, _space(), {"bitops": 1000})


def test_what_cannot_be_understood_is_refused() -> None:
    with pytest.raises(BudgetError, match="'flops' is no budget"):
        allocate(_indicators(), DESCRIPTION, _space(), {"flops": 1})
    with pytest.raises(SpaceError, match=r"no importance for middle \(weight at 5 bits\)"):
        allocate(_indicators(), DESCRIPTION, _space((6, 5)), {"bitops": "w5a5"})
    with pytest.raises(SpaceError, match="alpha is -1"):
        allocate(_indicators(), DESCRIPTION, _space(), {"bitops": "w4a4"}, alpha=-1)


# middle and wide read what first gives; what they give is added, and last reads the sum.
READS = {"first": "input", "middle": "relu", "wide": "relu", "last": "sum"}
JOINED = Description(
    tuple(replace(layer, site=READS[layer.name]) for layer in LAYERS),
    (),
    {},
    ("first",),
    ("last",),
    sites=(
        Site("input", "input", 60, ("first",), 0, 1),
        Site("relu", "relu", 100, ("middle", "wide"), 1, 3),
        Site("middle", "conv2d", 80, (), 2, 4),
        Site("wide", "conv2d", 80, (), 3, 4),
        Site("sum", "add", 80, ("last",), 4, 5),
        Site("last", "conv2d", 5, (), 5, 5),
    ),
    meetings=(Meeting("sum", "add", ("relu", "middle"), "sum"),),
)


def test_layers_that_share_an_input_get_one_width_in_every_policy() -> None:
    space = search_space(JOINED, (6, 4, 2), pins={"first": "w8a8"})
    found = allocate(_indicators(), JOINED, space, {"bitops": "w4a4"})
    for policy in (found.policy, found.uniform, reversed_policy(found, JOINED)):
        assert policy.shared_inputs == (("middle", "wide"),)
        assert policy.bits["middle"].act == policy.bits["wide"].act
    free = search_space(JOINED, (6, 4, 2), pins={"first": "w8a8"}, coupling="free")
    assert allocate(_indicators(), JOINED, free, {"bitops": "w4a4"}).policy.shared_inputs == ()


def test_the_uniform_policy_keeps_a_width_that_a_pin_reaches() -> None:
    space = search_space(JOINED, (6, 4, 2), pins={"wide": "w4a6"})
    found = allocate(_indicators(), JOINED, space, {"bitops": "w2a2"}, uniform_bits=Bits(2, 2))
    assert found.uniform.bits == {"first": Bits(2, 2), "middle": Bits(2, 6), "wide": Bits(4, 6), "last": Bits(2, 2)}
    assert found.solution.budgets[0].limit == _bitops(found.uniform.bits)


def test_requantizations_are_told() -> None:
    space = search_space(JOINED, (4,), (6, 4), pins={"last": "w4a4"})
    found = allocate(_indicators(), JOINED, space, {"bitops": "w4a6"})
    assert found.policy.bits["middle"].act == 6
    assert found.policy.provenance["requantizations"] == {"operands": 1, "width_changes": 1, "numel": 100}
    assert "requantizations" not in allocate(_indicators(), DESCRIPTION, _space(), {"bitops": "w4a4"}).policy.provenance


def test_a_peak_is_one_use_and_the_largest_moment() -> None:
    space = search_space(JOINED, (4,), (6, 4, 2))
    budgets = {"peak_activation_bytes": "430B", "bitops": "w4a6"}
    found = allocate(_indicators(), JOINED, space, budgets)
    act = {name: bits.act for name, bits in found.policy.bits.items()}
    # The convolution wide flows into nothing that a layer reads, so it has 32 bits; middle has the width of the sum.
    moments = [
        60 * act["first"] + 100 * act["wide"],
        100 * act["wide"] + 80 * act["last"],
        100 * act["wide"] + 80 * act["last"] + 80 * 32,
        80 * act["last"] + 80 * 32 + 80 * act["last"],
        80 * act["last"] + 5 * 32,
    ]
    peak, bitops = found.uses
    assert (peak.name, peak.limit, peak.used) == ("peak_activation_bytes", 430, max(moments) / 8)
    assert peak.used <= 430 < (100 * 6 + 80 * 6 + 80 * 32) / 8
    assert (bitops.name, bitops.used) == ("bitops", _bitops(found.policy.bits))
    assert [use["name"] for use in found.policy.provenance["budgets"]] == list(budgets)
    assert found.costs.used("activation_bytes", found.policy.bits) > peak.used


def test_a_measured_cost_is_a_budget_like_the_others() -> None:
    widths = [Bits(w, a) for w in (8, 6, 4, 2) for a in (8, 6, 4, 2)]
    latency = Table({layer.name: {bits: layer.macs * max(bits.weight, bits.act) / 1e4 for bits in widths} for layer in LAYERS}, "ms")
    found = allocate(_indicators(), DESCRIPTION, _space(), {"latency": "1x w4a6"}, tables={"latency": latency})
    (use,) = found.uses
    assert (use.name, use.unit) == ("latency", "ms")
    assert use.limit == pytest.approx((1000 * 8 + 2000 * 6 + 3000 * 6 + 4000 * 8) / 1e4)
    assert use.used == latency.total(found.policy.bits)
    assert use.used <= use.limit
    # The wider of the two widths decides, so there is nothing to be won by making one of them narrower.
    assert {found.policy.bits[name] for name in ("middle", "wide")} == {Bits(6, 6)}
