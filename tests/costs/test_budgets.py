"""Budgets as a person writes them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, WeightBytes, resolve_budgets, uniform_bits_of
from bitalloc.errors import BudgetError, SpaceError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits

LAYERS = [
    LayerInfo("first", "conv2d", (4, 3, 3, 3), 1000, 1, 1),
    LayerInfo("middle", "conv2d", (8, 4, 3, 3), 5000, 1, 1),
    LayerInfo("last", "linear", (10, 8), 80, 1, 1),
]
WEIGHTS = 108 + 288 + 80
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
    with pytest.raises(BudgetError, match="'latency' is no budget: expected one of bitops, weight_bytes, compression"):
        resolve_budgets({"bitops": "1G", "latency": 3}, LAYERS, SPACE)
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
    with pytest.raises(BudgetError, match="w1a4"):
        uniform_bits_of({"bitops": "w1a4"})
