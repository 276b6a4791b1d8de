"""Budgets as a person writes them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, Costs, WeightBytes, resolve_budgets, uniform_bits_of
from bitalloc.errors import BudgetError, SpaceError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import Bits
from bitalloc.space import Candidates, SearchSpace, Table

LAYERS = [
    LayerInfo("first", "conv2d", (4, 3, 3, 3), 1000, 1, 1),
    LayerInfo("middle", "conv2d", (8, 4, 3, 3), 5000, 1, 1),
    LayerInfo("last", "linear", (10, 8), 80, 1, 1),
]
WEIGHTS = 108 + 288 + 80
EVERY = [Bits(8, 8), Bits(5, 5), *(Bits(w, a) for w in (4, 3, 2) for a in (4, 3, 2)), Bits(32, 32)]
LATENCY = Table({layer.name: {bits: layer.macs * bits.weight / 1000 for bits in EVERY} for layer in LAYERS}, "ms")
SPACE = search_space(LAYERS, (4, 3, 2), pins={"first": Bits(8, 8), "last": Bits(8, 8)})


def limit(key: str, value: str | int | float) -> float:
    (budget,) = resolve_budgets({key: value}, LAYERS, SPACE)
    assert budget.name == key
    return budget.limit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.2MB", 1_200_000),
        ("800kB", 800_000),
        ("800KB", 800_000),
        ("1.1MiB", 1.1 * 2**20),
        ("97KiB", 97 * 1024),
        ("2GiB", 2 * 2**30),
        ("3 GB", 3e9),
        ("5000B", 5000),
        (" 5000 ", 5000),
        ("1e3", 1000),
        (5000, 5000),
        (5000.5, 5000.5),
    ],
)
def test_bytes(text: str | int | float, size: float) -> None:
    assert limit("weight_bytes", text) == pytest.approx(size, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "operations"),
    [
        ("23.07G", 23.07e9),
        ("55.3GBitOps", 55.3e9),
        ("55.3 GBitOps", 55.3e9),
        ("120M", 120e6),
        ("1.5T", 1.5e12),
        ("7k", 7000),
        ("12BitOps", 12),
        ("2.5e9", 2.5e9),
        (4e9, 4e9),
    ],
)
def test_bitops(text: str | float, operations: float) -> None:
    assert limit("bitops", text) == pytest.approx(operations, rel=1e-15)


def test_like_a_uniform_policy_counts_the_pins_at_their_pins() -> None:
    assert limit("bitops", "w3a4") == (1000 + 80) * 64 + 5000 * 12
    assert limit("weight_bytes", "W3A4") == 108 + 80 + 288 * 3 / 8


def test_a_uniform_policy_need_not_be_a_candidate() -> None:
    assert limit("bitops", "w5a6") == (1000 + 80) * 64 + 5000 * 30


@pytest.mark.parametrize("value", [12.2, "12.2", "12.2x", " 12.2 x "])
def test_compression_counts_all_weights(value: str | float) -> None:
    assert limit("compression", value) == pytest.approx(4 * WEIGHTS / 12.2, rel=1e-15)


def test_a_budget_counts_like_its_cost() -> None:
    spec = {"compression": 5, "bitops": "w4a4", "weight_bytes": "1kB"}
    budgets = resolve_budgets(spec, LAYERS, SPACE)
    assert [budget.name for budget in budgets] == list(spec)
    assert [budget.unit for budget in budgets] == ["weight_bytes", "bitops", "weight_bytes"]
    assert budgets[0].table == budgets[2].table == WeightBytes().table(LAYERS, SPACE)
    assert budgets[1].table == BitOps().table(LAYERS, SPACE)


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 1e15))
def test_numbers_and_their_texts_mean_the_same(number: float) -> None:
    assert limit("bitops", number) == limit("bitops", repr(number)) == number


@pytest.mark.parametrize("key", ["bitops", "weight_bytes", "compression"])
@pytest.mark.parametrize(
    "value", ["", "much", "1.2.3", "1,2", "-5", 0, -1, "0", float("nan"), float("inf"), True, None, [1], "5Mb", "5m", "w1a4", "w4", "1e999"]
)
def test_what_cannot_be_understood_is_named_with_examples(key: str, value: str) -> None:
    with pytest.raises(BudgetError) as caught:
        resolve_budgets({key: value}, LAYERS, SPACE)
    assert f"{key} = {value!r}" in str(caught.value)
    assert "write it like" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("bitops", "5MB"), ("weight_bytes", "5GBitOps"), ("compression", "w4a4"), ("compression", 0.5)])
def test_a_value_of_another_budget(key: str, value: str | float) -> None:
    with pytest.raises(BudgetError, match=key):
        resolve_budgets({key: value}, LAYERS, SPACE)


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(BudgetError, match="'latency' is no budget: expected one of bitops, weight_bytes, compression.*mean_bits.*, energy"):
        resolve_budgets({"bitops": "1G", "latency": 3}, LAYERS, SPACE, tables={"energy": LATENCY})
    with pytest.raises(BudgetError, match="no budget is given"):
        resolve_budgets({}, LAYERS, SPACE)


def test_another_models_layers() -> None:
    with pytest.raises(SpaceError, match="last"):
        resolve_budgets({"bitops": "1G"}, LAYERS[:2], SPACE)


def test_uniform_bits_of() -> None:
    assert uniform_bits_of({"compression": 12.2, "bitops": "w3a4"}) == Bits(3, 4)
    assert uniform_bits_of({"bitops": " W2A8 ", "weight_bytes": "w4a4"}) == Bits(2, 8)
    assert uniform_bits_of({"bitops": "23G", "compression": "8x"}) is None
    assert uniform_bits_of({}) is None
    # Not what the uniform policy itself takes: there it would have no place.
    assert uniform_bits_of({"bitops": "0.9x w3a4", "model_bytes": "0.2x float", "latency": "w2a4"}) == Bits(2, 4)
    with pytest.raises(BudgetError, match="w1a4"):
        uniform_bits_of({"bitops": "w1a4"})


@pytest.mark.parametrize(
    ("text", "operations"),
    [
        ("0.25x float", 0.25 * 6080 * 1024),
        ("0.5 x Float", 0.5 * 6080 * 1024),
        ("1x float", 6080 * 1024),
        ("0.9x w3a4", 0.9 * (1080 * 64 + 5000 * 12)),
        ("2 x W3A4", 2 * (1080 * 64 + 5000 * 12)),
        ("1e-1x w3a4", 0.1 * (1080 * 64 + 5000 * 12)),
        ("w32a32", 1080 * 64 + 5000 * 1024),  # the pins stay where they are, unlike in the network in floating point
    ],
)
def test_relative_limits(text: str, operations: float) -> None:
    assert limit("bitops", text) == pytest.approx(operations, rel=1e-15)


@pytest.mark.parametrize("value", ["0x float", "-1x w4a4", "0.5 float", "50% of float", "0.5x", "0.5x w4", "x float", "0.5x w1a4"])
def test_relative_limits_that_cannot_be_understood(value: str) -> None:
    with pytest.raises(BudgetError, match=r"bitops = .* write it like .*'0\.9x w4a4' or '0\.02x float'"):
        limit("bitops", value)


def test_mean_bits() -> None:
    assert limit("mean_bits", 2.8) == limit("mean_bits", "2.8 bits") == 2.8
    assert limit("mean_bits", "w4a4") == pytest.approx((108 * 8 + 288 * 4 + 80 * 8) / WEIGHTS)
    assert limit("mean_bits", "0.25x float") == pytest.approx(8)


def test_a_uniform_policy_keeps_widths_that_leave_no_choice() -> None:
    half = SearchSpace({**SPACE.candidates, "first": Candidates((8, 3), (8, 4)), "middle": Candidates((4, 3), (8,))})
    (budget,) = resolve_budgets({"bitops": "w3a4"}, LAYERS, half)
    macs = {layer.name: layer.macs for layer in LAYERS}
    assert budget.limit == macs["first"] * 3 * 4 + macs["middle"] * 3 * 8 + macs["last"] * 64


@pytest.mark.parametrize("value", ["w3a4", "0.9x w4a6"])
def test_widths_that_no_layer_can_have_are_no_limit(value: str) -> None:
    fixed = SearchSpace({**SPACE.candidates, "middle": Candidates((4, 3), (8,))})
    with pytest.raises(BudgetError, match="activations at [46] bits, but those of all layers are fixed at 8"):
        resolve_budgets({"bitops": value}, LAYERS, fixed)


def test_the_uniform_policys_own_space() -> None:
    free = search_space(LAYERS, (8, 4, 3, 2))
    (budget,) = resolve_budgets({"bitops": "w3a4"}, LAYERS, free, SPACE)
    assert budget.limit == 1080 * 64 + 5000 * 12
    assert len(budget.table.values["first"]) == 16


@pytest.mark.parametrize(("value", "most"), [(3.5, 3.5), ("3.5", 3.5), ("3.5 ms", 3.5), ("3.5ms", 3.5)])
def test_a_limit_in_the_unit_of_a_table(value: str | float, most: float) -> None:
    (budget,) = resolve_budgets({"latency": value}, LAYERS, SPACE, tables={"latency": LATENCY})
    assert (budget.name, budget.limit, budget.unit) == ("latency", most, "ms")
    assert budget.table.values["first"] == {Bits(8, 8): 8.0}


def test_a_limit_relative_to_a_table() -> None:
    spec = {"latency": "0.5x w5a5", "bitops": "w3a4"}
    latency, _ = resolve_budgets(spec, LAYERS, SPACE, tables={"latency": LATENCY})
    assert latency.limit == pytest.approx(0.5 * (1.08 * 8 + 5 * 5))
    with pytest.raises(BudgetError, match="table of the budget latency has no value for layer middle at w6a6"):
        resolve_budgets({"latency": "w6a6"}, LAYERS, SPACE, tables={"latency": LATENCY})


@pytest.mark.parametrize("value", ["3 us", "3 s", "3k", "3MB", "fast", 0, "-1ms"])
def test_another_unit_than_the_tables(value: str | float) -> None:
    with pytest.raises(BudgetError, match=r"the budget latency = .*as its table is in ms"):
        resolve_budgets({"latency": value}, LAYERS, SPACE, tables={"latency": LATENCY})


def test_tables_that_do_not_fit() -> None:
    def resolved(rows: dict[str, dict[Bits, float]], name: str = "latency") -> None:
        resolve_budgets({name: 3}, LAYERS, SPACE, tables={name: Table(rows, "ms")})

    rows = {name: dict(row) for name, row in LATENCY.values.items()}
    with pytest.raises(BudgetError, match="budget latency has layers that the model does not have: other"):
        resolved({**rows, "other": rows["first"]})
    with pytest.raises(BudgetError, match="the budget latency: the ms table has no layer last"):
        resolved({name: rows[name] for name in ("first", "middle")})
    with pytest.raises(BudgetError, match="the budget latency: the ms table has no value for layer middle at w4a4, w4a3, w4a2"):
        resolved({**rows, "middle": {bits: value for bits, value in rows["middle"].items() if bits.weight != 4}})
    with pytest.raises(BudgetError, match="'latency': layer middle at w2a3 costs -1"):
        resolved({**rows, "middle": {**rows["middle"], Bits(2, 3): -1.0}})
    with pytest.raises(BudgetError, match="a table is called bitops, which is counted without one"):
        resolved(rows, "bitops")


@pytest.mark.parametrize("key", ["model_bytes", "activation_bytes", "peak_activation_bytes"])
def test_what_needs_the_graph_says_so(key: str) -> None:
    with pytest.raises(BudgetError, match=f"{key} needs the graph of the model"):
        limit(key, 1000)


def test_activations_need_sites() -> None:
    model = Description(tuple(LAYERS), (), {}, ("first",), ("last",))
    with pytest.raises(BudgetError, match="peak_activation_bytes needs the activation sites"):
        resolve_budgets({"peak_activation_bytes": 1000}, model, SPACE)
    assert resolve_budgets({"model_bytes": 1000}, model, SPACE)[0].unit == "model_bytes"


def test_budgets_of_a_graph_relative_to_float_and_uniform(residual: Description) -> None:
    space = search_space(residual, (8, 4), coupling="free")
    elements = sum(site.numel for site in residual.sites)
    # In floating point a tensor exists once, however many quantizers its readers have.
    assert resolve_budgets({"activation_bytes": "0.25x float"}, residual, space)[0].limit == elements
    assert resolve_budgets({"peak_activation_bytes": "1x float"}, residual, space)[0].limit == 4 * 512
    uniform = dict.fromkeys((layer.name for layer in residual.layers), Bits(4, 4))
    costs = Costs(residual, space)
    for key in ("model_bytes", "activation_bytes", "peak_activation_bytes"):
        assert costs.budgets({key: "w4a4"})[0].limit == costs.used(key, uniform)
    with_channels = Costs(residual, space, per_channel=True)
    assert with_channels.used("model_bytes", uniform) - costs.used("model_bytes", uniform) == 4 * (46 - 6)


def test_the_same_limits_over_another_space(residual: Description) -> None:
    wide, narrow = search_space(residual, (8, 4)), search_space(residual, (4, 2))
    budgets = Costs(residual, wide).budgets({"compression": 8, "peak_activation_bytes": 300, "bitops": "w4a4"})
    again = Costs(residual, narrow).recounted(budgets)
    assert {b.name: b.limit for b in again} == {b.name: b.limit for b in budgets}
    for budget in again:
        budget.table.check(narrow)
