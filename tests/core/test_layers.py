"""The description of a model: counts, JSON round trip, malformed files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitalloc.errors import FileError
from bitalloc.layers import Description, LayerInfo, NotCounted, by_name

names = st.text(min_size=1, max_size=12)
counts = st.integers(0, 2**62)
layer_infos = st.builds(
    LayerInfo,
    name=names,
    kind=st.sampled_from(["conv2d", "linear"]),
    weight_shape=st.lists(st.integers(1, 512), min_size=1, max_size=5).map(tuple),
    macs=counts,
    input_numel=counts,
    output_numel=counts,
    groups=st.integers(1, 64),
    bias_numel=st.integers(0, 512),
    calls=st.integers(1, 4),
)
descriptions = st.builds(
    Description,
    layers=st.lists(layer_infos, max_size=4, unique_by=lambda layer: layer.name).map(tuple),
    not_counted=st.lists(st.builds(NotCounted, names, names, names), max_size=3).map(tuple),
    producers=st.dictionaries(names, names, max_size=3),
    first=st.lists(names, max_size=2).map(tuple),
    last=st.lists(names, max_size=2).map(tuple),
)


def a_description() -> Description:
    conv = LayerInfo("stem", "conv2d", (8, 3, 3, 3), macs=221184, input_numel=3072, output_numel=8192)
    head = LayerInfo("head", "linear", (10, 8), macs=80, input_numel=8, output_numel=10, bias_numel=10)
    return Description((conv, head), (NotCounted("pool", "LPPool2d", "no weight"),), {"norm": "stem"}, ("stem",), ("head",))


def test_weight_numel_is_the_product_of_the_shape() -> None:
    assert LayerInfo("a", "conv2d", (16, 8, 3, 5), 0, 0, 0).weight_numel == 16 * 8 * 3 * 5


def test_by_name_keeps_the_order() -> None:
    assert list(by_name(a_description().layers)) == ["stem", "head"]


@settings(max_examples=40, deadline=None)
@given(descriptions)
def test_json_round_trip(description: Description) -> None:
    assert Description.from_json(json.loads(json.dumps(description.to_json()))) == description


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "layers.json"
    a_description().save(path)
    assert Description.load(path) == a_description()


@pytest.mark.parametrize("key", ["layers", "not_counted", "producers", "first", "last"])
def test_a_missing_key_is_named(key: str) -> None:
    value = a_description().to_json()
    del value[key]
    with pytest.raises(FileError, match=key):
        Description.from_json(value)


@pytest.mark.parametrize("key", sorted(a_description().to_json()["layers"][0]))
def test_a_missing_key_of_a_layer_is_named(key: str) -> None:
    value = a_description().to_json()
    del value["layers"][0][key]
    with pytest.raises(FileError, match=key):
        Description.from_json(value, "layers.json")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("layers", 3), ("layers", [3]), ("layers", ["stem"]), ("not_counted", [1]), ("producers", 5), ("producers", ["abc"]), ("first", None)],
)
def test_a_value_of_another_type_is_a_file_error(key: str, wrong: object) -> None:
    with pytest.raises(FileError, match="malformed"):
        Description.from_json({**a_description().to_json(), key: wrong})


@pytest.mark.parametrize("macs", ["many", None, [1], float("inf")])
def test_a_malformed_count_is_a_file_error(macs: object) -> None:
    value = a_description().to_json()
    value["layers"][0]["macs"] = macs
    with pytest.raises(FileError, match="layers.json"):
        Description.from_json(value, "layers.json")


def test_an_edited_shape_is_noticed() -> None:
    value = a_description().to_json()
    value["layers"][0]["weight_shape"] = [8, 3, 1, 1]
    with pytest.raises(FileError, match="weight_numel of stem"):
        Description.from_json(value)
