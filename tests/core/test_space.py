"""Search spaces and tables: patterns, ties, completeness, JSON round trip."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.choices import matching, search_space
from bitalloc.errors import BitallocError, FileError, PolicyError, SpaceError
from bitalloc.layers import LayerInfo
from bitalloc.policy import WIDTHS, Bits
from bitalloc.space import Candidates, SearchSpace, Table

width_sets = st.lists(st.sampled_from(WIDTHS), min_size=1, unique=True).map(tuple)
candidates = st.builds(Candidates, width_sets, width_sets)
spaces = st.dictionaries(st.text(max_size=8), candidates, min_size=1, max_size=4).map(SearchSpace)
values = st.floats(allow_nan=False, allow_infinity=False)
tables = st.builds(
    Table,
    st.dictionaries(st.text(max_size=8), st.dictionaries(st.builds(Bits, *[st.sampled_from(WIDTHS)] * 2), values), max_size=4),
    st.text(max_size=8),
)
LAYERS = [LayerInfo(name, "linear", (4,), 1, 1, 1) for name in ("stem", "block.0.conv", "block.1.conv", "head")]


@settings(max_examples=40, deadline=None)
@given(candidates)
def test_candidates_run_from_wide_to_narrow_and_pair_up(choices: Candidates) -> None:
    assert list(choices.weight) == sorted(choices.weight, reverse=True)
    assert len(set(choices.pairs)) == len(choices.weight) * len(choices.act)


def test_candidates_need_not_be_consecutive_nor_alike() -> None:
    choices = Candidates((2, 8, 4), (8, 32))
    assert (choices.weight, choices.act) == ((8, 4, 2), (32, 8))


@pytest.mark.parametrize(("weight", "act", "complaint"), [((), (4,), "no weight"), ((4,), (), "no activation"), ((4, 4), (4,), "twice")])
def test_malformed_candidates(weight: tuple[int, ...], act: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint):
        Candidates(weight, act)


def test_an_unsupported_candidate() -> None:
    with pytest.raises(PolicyError, match="weight width 1 "):
        Candidates((4, 1), (4,))


def test_search_space_pins_excludes_and_overrides() -> None:
    space = search_space(
        LAYERS, (4, 2), (8, 4), pins={"stem": Bits(8, 8)}, exclude=["head"], overrides={"block.1.*": Candidates((8, 4), (8,))}
    )
    assert list(space.candidates) == [layer.name for layer in LAYERS]
    assert space.pinned == {"stem": Bits(8, 8), "head": Bits(32, 32)}
    assert space.free == ("block.0.conv", "block.1.conv")
    assert space.candidates["block.0.conv"] == Candidates((4, 2), (8, 4))
    assert space.candidates["block.1.conv"] == Candidates((8, 4), (8,))


def test_activation_candidates_default_to_the_weights() -> None:
    assert search_space(LAYERS, (8, 4, 2)).candidates["stem"] == Candidates((8, 4, 2), (8, 4, 2))


def test_a_generator_of_widths_serves_both_sides() -> None:
    assert search_space(LAYERS, (width for width in (4, 2))).candidates["stem"] == Candidates((4, 2), (4, 2))


def test_a_later_pin_wins() -> None:
    space = search_space(LAYERS, (4, 2), pins={"block.*": Bits(8, 8), "block.1.conv": Bits(4, 4)})
    assert space.pinned == {"block.0.conv": Bits(8, 8), "block.1.conv": Bits(4, 4)}


@pytest.mark.parametrize(
    ("where", "patterns"),
    [
        ("include", ["nothing.*"]),
        ("exclude", ["nothing.*"]),
        ("pins", {"nothing.*": Bits(8, 8)}),
        ("overrides", {"nothing.*": Candidates((4,), (4,))}),
    ],
)
def test_a_pattern_that_matches_nothing_is_named_with_the_layers(where: str, patterns: Any) -> None:
    with pytest.raises(SpaceError, match=r"'nothing\.\*' matches no layer.*stem, block\.0\.conv"):
        search_space(LAYERS, (4, 2), **{where: patterns})


def test_nothing_left_to_quantize() -> None:
    with pytest.raises(SpaceError, match="no layer is left"):
        search_space(LAYERS, (4, 2), exclude=["*"])
    with pytest.raises(SpaceError, match="no quantizable layer"):
        SearchSpace({})


def test_matching_is_case_sensitive_and_ordered() -> None:
    assert matching("*conv", ["b.conv", "a.conv", "A.Conv"]) == ["b.conv", "a.conv"]


def test_ties_of_unknown_or_incompatible_layers() -> None:
    choices = {"a": Candidates((8, 4), (8,)), "b": Candidates((2,), (8, 4))}
    SearchSpace(choices, act_ties=(("a", "b"),))
    with pytest.raises(SpaceError, match="a tie names c"):
        SearchSpace(choices, act_ties=(("a", "c"),))
    with pytest.raises(SpaceError, match="a, b are tied but have no weight width"):
        SearchSpace(choices, weight_ties=(("a", "b"),))


@settings(max_examples=40, deadline=None)
@given(spaces)
def test_space_json_round_trip(space: SearchSpace) -> None:
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert list(again.candidates) == list(space.candidates)


def test_ties_survive_json() -> None:
    choices = Candidates((4, 2), (4, 2))
    space = SearchSpace({"a": choices, "b": choices, "c": choices}, (("a", "b"),), (("b", "c"),))
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("candidates", None),
        ("candidates", {}),
        ("candidates", [1]),
        ("candidates", {"a": 1}),
        ("candidates", {"a": {"weight": [4]}}),
        ("candidates", {"a": {"weight": [4, "2"], "act": [4]}}),
        ("candidates", {"a": {"weight": [[4]], "act": [4]}}),
        ("candidates", {"a": {"weight": 4, "act": [4]}}),
        ("weight_ties", 3),
        ("act_ties", [["unknown"]]),
    ],
)
def test_a_malformed_space_is_a_named_error(key: str, wrong: object) -> None:
    good = SearchSpace({"a": Candidates((4,), (4,))}).to_json()
    with pytest.raises(BitallocError):
        SearchSpace.from_json({**good, key: wrong})
    with pytest.raises(FileError, match=key):
        SearchSpace.from_json({name: value for name, value in good.items() if name != key})


@settings(max_examples=40, deadline=None)
@given(tables)
def test_table_json_round_trip(table: Table) -> None:
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_table_saved_and_loaded(tmp_path: Path) -> None:
    table = Table({"a": {Bits(4, 4): 0.5}}, "importance")
    table.save(tmp_path / "importance.json")
    assert Table.load(tmp_path / "importance.json") == table


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_table_is_finite(value: float) -> None:
    with pytest.raises(SpaceError, match="the cost of layer a at w4a8"):
        Table({"a": {Bits(4, 8): value}}, "cost")


def test_a_table_names_what_it_lacks() -> None:
    space = SearchSpace({"a": Candidates((4, 2), (4,)), "b": Candidates((4,), (4,))})
    with pytest.raises(SpaceError, match="no value for layer a at w2a4"):
        Table({"a": {Bits(4, 4): 1.0}, "b": {Bits(4, 4): 1.0}}, "cost").check(space)
    with pytest.raises(SpaceError, match="no layer b"):
        Table({"a": {Bits(4, 4): 1.0, Bits(2, 4): 1.0}}, "cost").check(space)


def test_a_total_does_not_depend_on_the_order() -> None:
    table = Table({name: {Bits(4, 4): value} for name, value in (("a", 1e16), ("b", 1.0), ("c", -1e16))}, "cost")
    assert table.total(dict.fromkeys("abc", Bits(4, 4))) == table.total(dict.fromkeys("cab", Bits(4, 4))) == 1.0


@pytest.mark.parametrize(
    "rows",
    [None, 3, {"a": 3}, {"a": {"four": 1.0}}, {"a": {"w4a4": None}}, {"a": {"w4a4": "1"}}, {"a": {"w4a4": True}}, {"a": {"w9a4": 1}}],
)
def test_a_malformed_table_is_a_named_error(rows: object) -> None:
    with pytest.raises(BitallocError):
        Table.from_json({"unit": "cost", "values": rows})


def test_an_infinite_number_in_a_table_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"schema": "bitalloc.table", "version": 1, "unit": "x", "values": {"a": {"w4a4": 1e999}}}')
    with pytest.raises(FileError, match="layer a at w4a4 is inf"):
        Table.load(path)


def test_pins_may_be_written_like_in_a_recipe() -> None:
    layers = [LayerInfo(name, "linear", (2, 2), 4, 2, 2) for name in ("a", "b")]
    assert search_space(layers, (8, 4), pins={"a": "w4a8"}) == search_space(layers, (8, 4), pins={"a": Bits(4, 8)})
