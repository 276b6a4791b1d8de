"""Indicators: monotone projection, the published erasing rule, automatic alpha, scores, JSON."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.errors import FileError, PolicyError, SpaceError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import WIDTHS, Bits
from bitalloc.sensitivity.indicators import Change, Indicators
from bitalloc.space import Candidates, SearchSpace

values = st.floats(-100, 100)
rows = st.dictionaries(st.text(max_size=6), st.dictionaries(st.sampled_from(WIDTHS), values, max_size=6), max_size=4)
indicators = st.builds(Indicators, rows, rows, st.dictionaries(st.text(max_size=4), st.integers(), max_size=2))

SMALL = Indicators(
    weight={"a": {8: 0.1, 4: 0.2, 2: 0.6}, "b": {8: 0.3, 4: 0.4, 2: 0.5}},
    act={"a": {8: 1.0, 4: 2.0}, "b": {8: 1.5, 4: 3.5}},
)


def falls(row: dict[int, float]) -> bool:
    ordered = [row[width] for width in sorted(row)]
    return all(narrow >= wide for narrow, wide in itertools.pairwise(ordered))


def description(**shapes: tuple[int, ...]) -> Description:
    layers = [LayerInfo(name, "linear", shape, 1, 1, 1) for name, shape in shapes.items()]
    return Description(tuple(layers), (), {}, ("a",), (layers[-1].name,))


SOURCE = description(a=(4, 3), b=(4, 4), head=(10, 4))


def test_indicators_move_to_the_same_network_with_another_head() -> None:
    assert SMALL.transferred(description(a=(4, 3), b=(4, 4), head=(2, 9)).layers, SOURCE) == SMALL
    renamed = SMALL.transferred(description(x=(4, 3), y=(4, 4), head=(2, 9)).layers, SOURCE, {"x": "a", "y": "b"})
    assert renamed.weight == {"x": SMALL.weight["a"], "y": SMALL.weight["b"]}
    assert renamed.act == {"x": SMALL.act["a"], "y": SMALL.act["b"]}


def test_indicators_do_not_move_to_another_network() -> None:
    with pytest.raises(PolicyError, match=r"b \(source \(4, 4\), here \(4, 5\)\)"):
        SMALL.transferred(description(a=(4, 3), b=(4, 5), head=(2, 9)).layers, SOURCE)
    with pytest.raises(PolicyError, match="a and b -> b"):
        SMALL.transferred(SOURCE.layers, SOURCE, {"a": "b"})


def test_pooling_by_hand() -> None:
    measured = Indicators({"a": {6: 5.0, 4: 1.0, 2: 9.0}}, {"a": {4: 1.0, 2: 2.0}})
    monotone, changes = measured.isotonic()
    assert monotone.weight == {"a": {6: 3.0, 4: 3.0, 2: 9.0}}
    assert monotone.act == measured.act
    assert changes == (Change("a", "weight", 6, 5.0, 3.0), Change("a", "weight", 4, 1.0, 3.0))


def test_pooling_goes_on_until_no_neighbours_are_in_the_wrong_order() -> None:
    monotone, _ = Indicators({}, {"a": {8: 4.0, 6: 5.0, 4: 3.0, 3: 0.0, 2: 3.5}}).isotonic()
    assert monotone.act == {"a": {8: 3.0, 6: 3.0, 4: 3.0, 3: 3.0, 2: 3.5}}


@settings(max_examples=40, deadline=None)
@given(indicators)
def test_isotonic_is_monotone_idempotent_and_keeps_means(measured: Indicators) -> None:
    monotone, changes = measured.isotonic()
    for before, after in ((measured.weight, monotone.weight), (measured.act, monotone.act)):
        assert list(before) == list(after)
        for name, row in before.items():
            assert falls(dict(after[name]))
            assert sum(after[name].values()) == pytest.approx(sum(row.values()), abs=1e-9)
            if falls(dict(row)):
                assert after[name] == row
    assert monotone.isotonic()[0] == monotone
    sides = {"weight": (measured.weight, monotone.weight), "act": (measured.act, monotone.act)}
    for change in changes:
        before, after = (half[change.layer][change.width] for half in sides[change.side])
        assert (change.before, change.after) == (before, after)
        assert before != after


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_isotonic_is_the_closest_monotone_row(row: list[int]) -> None:
    monotone, _ = Indicators({"a": {8: row[0], 4: row[1], 2: row[2]}}, {}).isotonic()
    found = [monotone.weight["a"][width] for width in (8, 4, 2)]

    def distance(other: Iterable[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(row, other, strict=True))

    grid = [step / 6 for step in range(19)]  # holds every mean of up to three values
    assert distance(found) == pytest.approx(min(map(distance, itertools.combinations_with_replacement(grid, 3))))


def test_erased_compares_with_the_wider_neighbour_as_measured() -> None:
    # 6 bits is the outlier; the published rule erases 5 bits, and keeps 4, which is above 5 though below 6.
    erased, changes = Indicators({"a": {6: 0.011, 5: 0.004, 4: 0.007, 2: 0.02}}, {"a": {6: 1.0, 5: 1.0}}).erased()
    assert erased.weight == {"a": {6: 0.011, 5: 1e8, 4: 0.007, 2: 0.02}}
    assert erased.act == {"a": {6: 1.0, 5: 1.0}}
    assert changes == (Change("a", "weight", 5, 0.004, 1e8),)


def test_alpha_balances_the_total_ranges() -> None:
    alpha = SMALL.automatic_alpha()
    assert alpha.value == pytest.approx((1.0 + 2.0) / (0.5 + 0.2))
    assert "activations 3" in alpha.reason


@settings(max_examples=40, deadline=None)
@given(indicators, st.floats(0.01, 100))
def test_alpha_follows_the_scale_of_the_activations(measured: Indicators, factor: float) -> None:
    measured, _ = measured.isotonic()
    scaled = Indicators(measured.weight, {n: {w: v * factor for w, v in row.items()} for n, row in measured.act.items()})
    first, second = measured.automatic_alpha(), scaled.automatic_alpha()
    assert first.value > 0
    if not first.reason.startswith("1,") and not second.reason.startswith("1,"):
        assert second.value == pytest.approx(first.value * factor, rel=1e-6)


def test_layers_without_a_choice_do_not_count_for_alpha() -> None:
    more = Indicators({**SMALL.weight, "pinned": {8: 100.0}}, {**SMALL.act, "pinned": {8: 50.0}})
    assert more.automatic_alpha() == SMALL.automatic_alpha()


@pytest.mark.parametrize(
    ("measured", "named"),
    [
        (Indicators({}, {}), "of weights and of activations"),
        (Indicators({"a": {8: 1.0, 4: 1.0}}, SMALL.act), "of weights does"),
        (Indicators(SMALL.weight, {"a": {8: 2.0, 4: 1.0}}), "of activations does"),
    ],
)
def test_alpha_is_one_where_there_is_nothing_to_balance(measured: Indicators, named: str) -> None:
    alpha = measured.automatic_alpha()
    assert alpha.value == 1.0
    assert named in alpha.reason


def test_scores_are_the_sum_of_the_halves() -> None:
    space = SearchSpace({"a": Candidates((8, 2), (8, 4)), "b": Candidates((4, 2), (8,)), "first": Candidates.pinned(Bits(8, 32))})
    table = SMALL.table(2.0, space)
    assert table.unit == "importance"
    assert table.values["a"] == pytest.approx({Bits(8, 8): 1.2, Bits(8, 4): 2.2, Bits(2, 8): 2.2, Bits(2, 4): 3.2})
    assert table.values["b"] == pytest.approx({Bits(4, 8): 0.8, Bits(2, 8): 1.0})  # a side without a choice adds nothing
    assert table.values["first"] == {Bits(8, 32): 0.0}


def test_missing_layers_and_widths_are_named() -> None:
    space = SearchSpace({"a": Candidates((8, 3), (8, 4)), "new": Candidates((4, 2), (8, 4))})
    with pytest.raises(SpaceError, match=r"a \(weight at 3 bits\); new \(weight at 4, 2 bits\); new \(activation at 8, 4 bits\)"):
        SMALL.table(1.0, space)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_is_positive(alpha: float) -> None:
    with pytest.raises(SpaceError, match="alpha"):
        SMALL.table(alpha, SearchSpace({"a": Candidates((8, 2), (8, 4))}))


@pytest.mark.parametrize("row", [{8: float("nan")}, {8: float("inf")}, {7.5: 1.0}, {1: 1.0}])
def test_indicators_are_finite_and_of_known_widths(row: dict[int, float]) -> None:
    with pytest.raises(SpaceError, match="importance of layer a"):
        Indicators({"a": row}, {})
    with pytest.raises(SpaceError, match="activation importance of layer a"):
        Indicators({}, {"a": row})


@settings(max_examples=40, deadline=None)
@given(indicators)
def test_json_round_trip(measured: Indicators) -> None:
    again = Indicators.from_json(json.loads(json.dumps(measured.to_json())))
    assert again == measured
    assert list(again.weight) == list(measured.weight)


def test_saved_and_loaded(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "importance.json")
    assert Indicators.load(tmp_path / "importance.json") == SMALL


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("weight", None),
        ("weight", [1]),
        ("act", {"a": 3}),
        ("act", {"a": {"four": 1.0}}),
        ("act", {"a": {"9": 1.0}}),
        ("weight", {"a": {"4": None}}),
        ("weight", {"a": {"4": float("inf")}}),
        ("provenance", 3),
    ],
)
def test_a_malformed_file_is_named(key: str, wrong: object) -> None:
    with pytest.raises(FileError, match=r"importance\.json"):
        Indicators.from_json({**SMALL.to_json(), key: wrong}, "importance.json")
    with pytest.raises(FileError, match=key):
        Indicators.from_json({name: value for name, value in SMALL.to_json().items() if name != key})
