"""A limit is positive and finite, and takes its unit from its table."""

import math

import pytest

from bitalloc.budget import Budget
from bitalloc.errors import BudgetError
from bitalloc.policy import Bits
from bitalloc.space import Table

TABLE = Table({"a": {Bits(4, 4): 1.0}}, "bitops")


def test_the_unit_is_the_tables() -> None:
    assert Budget("operations", 5.0, TABLE).unit == "bitops"


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_is_not_positive_and_finite(limit: float) -> None:
    with pytest.raises(BudgetError, match="'operations'.*bitops"):
        Budget("operations", limit, TABLE)


def test_a_negative_cost_is_named() -> None:
    with pytest.raises(BudgetError, match=r"'operations': layer a at w4a4 costs -1\.0 bitops, expected 0 or more"):
        Budget("operations", 5.0, Table({"a": {Bits(8, 8): 0.0, Bits(4, 4): -1.0}}, "bitops"))
